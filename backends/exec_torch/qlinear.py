"""Ops on codes that stay codes: dequantise, compute, quantise under a scale of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .pool import average_pool
from .quant import quantize
from .row import Rows
from .tensors import Tensor


def _floats(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    codes = x.to(torch.float32)
    return (codes if zero is None else codes - zero.to(torch.float32)) * scale


def _codes(y: Tensor, scale: Tensor, zero: Tensor | None, like: Tensor) -> Tensor:
    return quantize(y, scale, zero, like.dtype if zero is None else zero.dtype)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor | None,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor | None,
        c_scale: Tensor,
        c_zero: Tensor | None = None,
    ) -> Tensor:
        made = function(_floats(a, a_scale, a_zero), _floats(b, b_scale, b_zero))
        return _codes(made, c_scale, c_zero, a)

    run.__name__ = run.__qualname__ = f"q_linear_{function.__name__}"
    return run


def _unary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor | None,
        y_scale: Tensor,
        y_zero: Tensor | None = None,
        **attributes: Any,
    ) -> Tensor:
        return _codes(function(_floats(x, x_scale, x_zero), **attributes), y_scale, y_zero, x)

    run.__name__ = run.__qualname__ = f"q_linear_{function.__name__}"
    return run


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """alpha · x below zero."""
    return F.leaky_relu(x, alpha)


def softmax(x: Tensor, *, opset: int, axis: int = -1) -> Tensor:
    """Softmax along a dim; before opset 13, over all dims from it on."""
    if opset >= 13:
        return torch.softmax(x, axis)
    return torch.softmax(x.flatten(axis % x.ndim), -1).reshape(x.shape)


def global_average(x: Tensor, *, channels_last: int = 0) -> Tensor:
    """Mean over space."""
    return x.mean(tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim)), True)


def average(x: Tensor, *, channels_last: int = 0, **attributes: Any) -> Tensor:
    """Mean over windows."""
    if not channels_last:
        return average_pool(x, **attributes)
    return torch.movedim(average_pool(torch.movedim(x, -1, 1), **attributes), 1, -1)


def q_where(
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    z_scale: Tensor,
    z_zero: Tensor,
) -> Tensor:
    """X where the condition holds, else Y, with a scale of its own."""
    made = torch.where(condition, _floats(x, x_scale, x_zero), _floats(y, y_scale, y_zero))
    return _codes(made, z_scale, z_zero, x)


def q_concat(y_scale: Tensor, y_zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    """Join tensors, each followed by its scale and zero point, under one scale."""
    wide = [_floats(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return _codes(torch.cat(wide, axis), y_scale, y_zero, parts[0])


STANDARD: Rows = {}
MICROSOFT: Rows = {
    "QLinearAdd": _binary(torch.add),
    "QLinearAveragePool": _unary(average),
    "QLinearConcat": q_concat,
    "QLinearGlobalAveragePool": _unary(global_average),
    "QLinearLeakyRelu": _unary(leaky_relu),
    "QLinearMul": _binary(torch.mul),
    "QLinearSigmoid": _unary(torch.sigmoid),
    "QLinearSoftmax": _unary(softmax),
    "QLinearWhere": q_where,
}
