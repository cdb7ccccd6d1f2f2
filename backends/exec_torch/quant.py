"""Quantised weights and activations: quantise, dequantise, products of integers."""

from __future__ import annotations

from typing import Any

import torch

from .casts import CODES, to_float8
from .row import Rows, many
from .tensors import Tensor

FLOAT32_EXACT = 256
"""So many products of 8-bit numbers have a sum that float32 holds exactly."""
FULL_RANGE = 255


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product of integers, by floats wide enough to hold it, as i32 or i64."""
    small = a.shape[-1] <= FLOAT32_EXACT and a.element_size() == b.element_size() == 1
    kind = torch.float32 if small else torch.float64
    result = torch.int64 if a.dtype == torch.int64 else torch.int32
    return torch.matmul(a.to(kind), b.to(kind)).to(result)


def centred_product(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """The product of codes minus their zero points, exact, as floats."""
    kind = torch.float64 if a.shape[-1] > FLOAT32_EXACT // 4 else torch.float32
    left, right = a.to(kind), b.to(kind)
    if a_zero is not None:
        zero = a_zero.to(kind)
        left = left - (zero[:, None] if zero.ndim == 1 and zero.numel() > 1 else zero)
    if b_zero is not None:
        right = right - b_zero.to(kind)
    return torch.matmul(left, right)


def along(parameter: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point as it meets x: one, one per index of a dim, or one per block."""
    if parameter.numel() == 1 and not block:
        return parameter.reshape(())
    if block:
        spread = parameter.repeat_interleave(block, axis)
        return spread.narrow(axis, 0, x.shape[axis])
    view = [1] * x.ndim
    view[axis] = -1
    return parameter.reshape(view)


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, to: Any = torch.uint8) -> Tensor:
    """round(x / scale) + zero point, within the limits of the type."""
    if isinstance(to, str):
        low, high = CODES[to]
        kind = torch.int8 if low else torch.uint8
    else:
        low, high, kind = torch.iinfo(to).min, torch.iinfo(to).max, to
    codes = torch.round(x / scale)
    codes = codes if zero is None else codes + zero.to(codes.dtype)
    return torch.clamp(codes, low, high).to(torch.int32).to(kind)


def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    made: Any = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: Any = None,
    saturate: int = 1,
    precision: int = 0,
) -> Tensor:
    """Codes of x, with one scale, or one per index or block along `axis`."""
    to = output_dtype or made or (torch.uint8 if zero is None else zero.dtype)
    wide = along(scale, x, axis % max(x.ndim, 1), block_size)
    point = None if zero is None else along(zero, x, axis % max(x.ndim, 1), block_size)
    numbers = x.to(scale.dtype) if x.dtype == torch.int32 else x
    if not isinstance(to, str) and to.is_floating_point:
        return to_float8(numbers / wide, to, bool(saturate))
    return quantize(numbers, wide, point, to)


def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: Any = None,
) -> Tensor:
    """(x - zero point) · scale."""
    dim = axis % max(x.ndim, 1)
    is_float = x.dtype.is_floating_point
    # A difference of 8-bit codes is exact in every float type, one of 32-bit codes is not.
    codes = x.to(torch.int32) if zero is not None and not is_float else x
    if zero is not None and not is_float:
        codes = codes - along(zero, x, dim, block_size).to(torch.int32)
    made = codes.to(torch.float32) * along(scale, x, dim, block_size)
    return made.to(output_dtype or scale.dtype)


def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of x by its own smallest and largest value, their scale and zero point."""
    low, high = torch.amin(x).clamp(max=0), torch.amax(x).clamp(min=0)
    scale = (high - low) / FULL_RANGE
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, FULL_RANGE).to(torch.uint8)
    return quantize(x, scale, zero), scale, zero


def matmul_integer(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """The product of codes minus their zero points, i32."""
    return centred_product(a, b, a_zero, b_zero).to(torch.int32)


def q_linear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """The product of two quantised matrices, quantised."""
    total = centred_product(a, b, a_zero, b_zero).to(torch.float32)
    rows = a_scale[:, None] if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale
    factor = rows.to(torch.float32) * b_scale / y_scale
    return quantize(total * factor, torch.ones_like(y_scale), y_zero, y_zero.dtype)


def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of two quantised matrices as floats; B's parameters may be per column."""
    y = centred_product(a, b, a_zero, b_zero).to(torch.float32) * (a_scale * b_scale)
    return (y if bias is None else y + bias).to(a_scale.dtype)


def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Quantise A by its own smallest and largest value, multiply, and dequantise."""
    codes, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(codes, b, scale, b_scale, zero, b_zero, bias)


def q_gemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha · op(A) · op(B) + C of codes; C has the scale of the product, B's may be per column."""
    left, right = a.T if transA else a, b.T if transB else b
    total = centred_product(left, right, a_zero, b_zero)
    total = total if c is None else total + c
    y = total.to(torch.float32) * (alpha * a_scale * b_scale)
    if y_scale is None:
        return y
    return quantize(y, y_scale, y_zero, a.dtype if y_zero is None else y_zero.dtype)


STANDARD: Rows = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": many(dynamic_quantize_linear),
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": q_linear_matmul,
    "QuantizeLinear": quantize_linear,
}
MICROSOFT: Rows = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "QGemm": q_gemm,
    "QuantizeLinear": quantize_linear,
}
