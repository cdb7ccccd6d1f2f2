"""What ONNX Runtime's operators on codes mean: quantise, and compute under scales of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Outputs = tuple[Array, ...]


def quantize(x: Array, scale: Array, zero_point: Array) -> Array:
    """round(x / scale) + zero point, within the limits of the zero point's type."""
    limits = np.iinfo(zero_point.dtype)
    codes = np.round(x / scale) + zero_point.astype(np.float32)
    return np.asarray(np.clip(codes, limits.min, limits.max), zero_point.dtype)


def dequantize(x: Array, scale: Array, zero_point: Array | None) -> Array:
    """(x - zero point) · scale."""
    return np.asarray(centred(x, zero_point).astype(np.float32) * scale)


def quantize_linear(
    x: Array, scale: Array, zero_point: Array | None = None, *, axis: int = 1
) -> Outputs:
    """Codes of x, with one scale or one per index along `axis`."""
    zero = np.zeros_like(scale, np.uint8) if zero_point is None else zero_point
    return (quantize(x, _along(scale, x, axis), _along(zero, x, axis)),)


def dequantize_linear(
    x: Array, scale: Array, zero_point: Array | None = None, *, axis: int = 1
) -> Outputs:
    """What codes stand for, with one scale or one per index along `axis`."""
    zero = None if zero_point is None else _along(zero_point, x, axis)
    return (dequantize(x, _along(scale, x, axis), zero),)


def _along(parameter: Array, x: Array, axis: int) -> Array:
    if parameter.size == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _binary(function: Callable[[Array, Array], Array]) -> Callable[..., Outputs]:
    def run(
        a: Array,
        a_scale: Array,
        a_zero: Array | None,
        b: Array,
        b_scale: Array,
        b_zero: Array | None,
        c_scale: Array,
        c_zero: Array | None = None,
    ) -> Outputs:
        y = function(dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero))
        return (quantize(y, c_scale, zero_of(c_zero, a)),)

    return run


def _unary(function: Callable[..., Array]) -> Callable[..., Outputs]:
    def run(
        x: Array,
        x_scale: Array,
        x_zero: Array | None,
        y_scale: Array,
        y_zero: Array | None = None,
        **attributes: Any,
    ) -> Outputs:
        y = function(dequantize(x, x_scale, x_zero), **attributes)
        return (quantize(y, y_scale, zero_of(y_zero, x)),)

    return run


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    return np.where(x < 0, np.float32(alpha) * x, x)


def _softmax_of(x: Array, *, opset: int, axis: int = -1) -> Array:
    if opset >= 13:
        return softmax(x, axis)
    flat = x.reshape(*x.shape[: axis % x.ndim], -1)
    return softmax(flat, -1).reshape(x.shape)


def softmax(x: Array, axis: int) -> Array:
    """Softmax along one axis."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def _global_average(x: Array, *, channels_last: int = 0) -> Array:
    axes = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
    return np.asarray(x.mean(axis=axes, keepdims=True))


def _average(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    count_include_pad: int = 0,
    channels_last: int = 0,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Array:
    """Mean over windows; padding counts only if asked to."""
    if auto_pad != "NOTSET" or ceil_mode:
        raise NotImplementedError("QLinearAveragePool that pads as needed")
    planes = np.moveaxis(x, -1, 1) if channels_last else x
    count = len(kernel_shape)
    edges = pads or [0] * 2 * count
    room = [(0, 0), (0, 0), *zip(edges[:count], edges[count:], strict=True)]
    places = tuple(slice(None, None, step) for step in strides or [1] * count)

    def sums(padded: Array) -> Array:
        axes = tuple(range(2, 2 + count))
        windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel_shape), axes)
        return np.asarray(windows.sum(axis=tuple(range(-count, 0)))[(slice(None),) * 2 + places])

    seen = np.pad(np.ones_like(planes), room, constant_values=float(count_include_pad))
    mean = sums(np.pad(planes, room)) / sums(seen)
    return np.moveaxis(mean, 1, -1) if channels_last else mean


def q_where(
    condition: Array,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    y: Array,
    y_scale: Array,
    y_zero: Array,
    z_scale: Array,
    z_zero: Array,
) -> Outputs:
    """X where the condition holds, else Y, with a scale of its own."""
    z = np.where(condition, dequantize(x, x_scale, x_zero), dequantize(y, y_scale, y_zero))
    return (quantize(z, z_scale, z_zero),)


def q_concat(y_scale: Array, y_zero: Array, *parts: Array, axis: int) -> Outputs:
    """Join tensors, each followed by its scale and zero point, under one scale."""
    wide = [dequantize(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return (quantize(np.concatenate(wide, axis), y_scale, y_zero),)


def centred(x: Array, zero_point: Array | None) -> Array:
    """Codes minus their zero point, as i32."""
    wide = x.astype(np.int32)
    return wide if zero_point is None else np.asarray(wide - zero_point.astype(np.int32))


def zero_of(zero_point: Array | None, like: Array) -> Array:
    """The zero point, 0 of the type of `like` where left out."""
    return np.zeros((), like.dtype) if zero_point is None else zero_point


MICROSOFT = "com.microsoft"
CODES: dict[tuple[str, str], Callable[..., Outputs]] = {
    (MICROSOFT, "QuantizeLinear"): quantize_linear,
    (MICROSOFT, "DequantizeLinear"): dequantize_linear,
    (MICROSOFT, "QLinearAdd"): _binary(np.add),
    (MICROSOFT, "QLinearMul"): _binary(np.multiply),
    (MICROSOFT, "QLinearSigmoid"): _unary(_sigmoid),
    (MICROSOFT, "QLinearLeakyRelu"): _unary(_leaky_relu),
    (MICROSOFT, "QLinearSoftmax"): _unary(_softmax_of),
    (MICROSOFT, "QLinearAveragePool"): _unary(_average),
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary(_global_average),
    (MICROSOFT, "QLinearWhere"): q_where,
    (MICROSOFT, "QLinearConcat"): q_concat,
}
