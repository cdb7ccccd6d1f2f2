"""What ONNX Runtime's quantised operators mean: one function each, plain numpy.

Same conventions as `graph.contrib_reference`, of which this is the quantised part. Codes are packed
several to a byte, the first in the lowest bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graph.packing import unpack
from graph.quant_codes import CODES, centred, quantize, softmax, zero_of

Array = np.ndarray[Any, Any]
Outputs = tuple[Array, ...]


def matmul_n_bits(
    a: Array,
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Outputs:
    """A times the transposed weights u8[N, blocks, bytes] with a scale per row and block."""
    if g_idx is not None or weight_prepacked:
        raise NotImplementedError("MatMulNBits with g_idx or packed for one kind of device")
    blocks = -(-K // block_size)
    codes = unpack(b.reshape(N, blocks, -1), bits).astype(np.int32)
    zero: Array = np.full((N, blocks), 1 << (bits - 1))
    if zero_points is not None and zero_points.dtype == np.uint8:
        zero = unpack(zero_points.reshape(N, -1), bits)[:, :blocks]
    elif zero_points is not None:
        zero = zero_points.reshape(N, blocks)
    weights = (codes - zero[..., None]) * scales.reshape(N, blocks, 1).astype(np.float32)
    y = a.astype(np.float32) @ weights.reshape(N, -1)[:, :K].T
    return ((y if bias is None else y + bias).astype(a.dtype),)


def gather_block_quantized(
    data: Array,
    indices: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Outputs:
    """Rows of a table that is quantised in blocks along `quantize_axis`, dequantised."""
    codes, zero = data.astype(np.int32), None
    if data.dtype == np.uint8:
        codes = unpack(data, bits).astype(np.int32)
        zero = np.full(scales.shape, 1 << (bits - 1))
    if zero_points is not None:
        packed = zero_points.dtype == np.uint8
        zero = (unpack(zero_points, bits) if packed else zero_points).astype(np.int32)
        zero = zero[tuple(slice(size) for size in scales.shape)]
    axis = quantize_axis % codes.ndim

    def wide(parameter: Array) -> Array:
        spread = np.repeat(parameter, block_size, axis)
        return np.asarray(np.take(spread, range(codes.shape[axis]), axis))

    table = (codes if zero is None else codes - wide(zero)) * wide(scales.astype(np.float32))
    return (np.take(table, indices, gather_axis).astype(scales.dtype),)


# --- integer matrix products ----------------------------------------------------------------------


def dynamic_quantize_matmul(
    a: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None = None,
    bias: Array | None = None,
) -> Outputs:
    """Quantise A by its own smallest and largest value, multiply, and dequantise."""
    low, high = min(float(a.min()), 0.0), max(float(a.max()), 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero = np.uint8(np.clip(np.round(-low / scale), 0, 255))
    codes = quantize(a, np.asarray(scale), np.asarray(zero))
    return matmul_integer_to_float(
        codes, b, np.asarray(scale), b_scale, np.asarray(zero), b_zero_point, bias
    )


def matmul_integer_to_float(
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
    bias: Array | None = None,
) -> Outputs:
    """The product of two quantised matrices as floats; B's parameters may be per column."""
    total = centred(a, a_zero_point) @ centred(b, b_zero_point)
    y = total.astype(np.float32) * (a_scale * b_scale)
    return ((y if bias is None else y + bias).astype(a_scale.dtype),)


def q_gemm(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero_point: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Outputs:
    """alpha · op(A) · op(B) + C of codes; C has the scale of the product, B's may be per column."""
    left = centred(a, a_zero_point)
    spread = (slice(None), None) if transB and np.ndim(b_zero_point) else ...
    right = b.astype(np.int32) - b_zero_point.astype(np.int32)[spread]
    total = (left.T if transA else left) @ (right.T if transB else right)
    total = total if c is None else total + c
    y = total.astype(np.float32) * (np.float32(alpha) * a_scale * b_scale)
    return ((y if y_scale is None else quantize(y, y_scale, zero_of(y_zero_point, a))),)


def q_attention(
    x: Array,
    weight: Array,
    bias: Array,
    x_scale: Array,
    weight_scale: Array,
    mask_index: Array | None = None,
    x_zero_point: Array | None = None,
    weight_zero_point: Array | None = None,
    past: Array | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
) -> Outputs:
    """Attention over quantised input f[b, s, hidden] and packed weights [hidden, q|k|v].

    past and present are f[2, b, heads, t, d]; a mask is i32[b, t], zero where hidden.
    """
    product = centred(x, x_zero_point) @ centred(weight, weight_zero_point)
    packed = product.astype(np.float32) * (x_scale * weight_scale) + bias
    q, k, v = (
        part.reshape(*part.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)
        for part in np.split(packed, 3, -1)
    )
    present = np.stack([k, v])
    present = present if past is None else np.concatenate([past, present], axis=3)
    scores = q @ present[0].swapaxes(-1, -2) * np.float32(scale or 1 / math.sqrt(q.shape[-1]))
    if mask_index is not None:
        scores = scores + np.where(mask_index == 0, mask_filter_value, 0)[:, None, None]
    if unidirectional:
        queries, keys = scores.shape[-2:]
        hidden = np.triu(np.ones((queries, keys), bool), keys - queries + 1)
        scores = np.where(hidden, mask_filter_value, scores)
    mixed = softmax(scores, -1).astype(np.float32) @ present[1]
    return mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1).astype(bias.dtype), present


MICROSOFT = "com.microsoft"
QUANTISED: dict[tuple[str, str], Callable[..., Outputs]] = {
    (MICROSOFT, "MatMulNBits"): matmul_n_bits,
    (MICROSOFT, "GatherBlockQuantized"): gather_block_quantized,
    (MICROSOFT, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    (MICROSOFT, "MatMulIntegerToFloat"): matmul_integer_to_float,
    (MICROSOFT, "QGemm"): q_gemm,
    (MICROSOFT, "QAttention"): q_attention,
    **CODES,
}
