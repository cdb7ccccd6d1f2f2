"""Padding and sizes of what slides a window over space: Conv, pools, their transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F

from .tensors import Tensor

Sizes = Sequence[int]


def edges_of(
    sizes: Sizes, reach: Sizes, strides: Sizes, pads: Sizes | None, auto_pad: str
) -> list[tuple[int, int]]:
    """Padding before and after each dim; `reach` is how far a dilated kernel goes."""
    count = len(sizes)
    if not auto_pad.startswith("SAME"):
        given = pads if pads and auto_pad == "NOTSET" else [0] * 2 * count
        return list(zip(given[:count], given[count:]))
    found = []
    for size, far, step in zip(sizes, reach, strides):
        short = max(0, (-(-size // step) - 1) * step + far - size)
        low, high = short // 2, short - short // 2
        found.append((low, high) if auto_pad == "SAME_UPPER" else (high, low))
    return found


def with_ceiling(
    sizes: Sizes, reach: Sizes, strides: Sizes, edges: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Padding such that a last window that does not fit whole counts too, if it starts inside."""
    found = []
    for size, far, step, (low, high) in zip(sizes, reach, strides, edges):
        windows = math.ceil((size + low + high - far) / step) + 1
        if (windows - 1) * step >= size + low:
            windows -= 1
        found.append((low, max(high, (windows - 1) * step + far - size - low)))
    return found


def padded(x: Tensor, edges: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x with padding around its last dims."""
    if not any(low or high for low, high in edges):
        return x
    flat = [size for low, high in reversed(edges) for size in (low, high)]
    return F.pad(x, flat, value=value)


def reach_of(kernel: Sizes, dilations: Sizes) -> list[int]:
    """How far a dilated kernel goes."""
    return [(size - 1) * by + 1 for size, by in zip(kernel, dilations)]


def unfolded(x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes) -> Tensor:
    """All windows over the last dims, f[..., windows (per dim), taps]."""
    count = len(kernel)
    for size, step, by in zip(kernel, strides, dilations):
        x = x.unfold(x.ndim - count, (size - 1) * by + 1, step)[..., ::by]
    return x.flatten(-count)
