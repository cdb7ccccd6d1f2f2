"""Pools over windows and over all of space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .row import Rows, many, plain, sizes
from .tensors import Tensor
from .windows import edges_of, padded, reach_of, unfolded, with_ceiling

Sizes = Sequence[int]


def _windows(
    x: Tensor, kernel: Sizes, strides: Sizes | None, pads: Sizes | None, dilations: Sizes | None,
    auto_pad: str, ceil_mode: int, fill: float,
) -> Tensor:  # fmt: skip
    """All windows f[b, c, …, taps] over the padded x."""
    step, spread = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    reach = reach_of(kernel, spread)
    edges = edges_of(x.shape[2:], reach, step, pads, auto_pad)
    edges = with_ceiling(x.shape[2:], reach, step, edges) if ceil_mode else edges
    return unfolded(padded(x, edges, fill), kernel, step, spread)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    strides: Sizes | None = None,
    pads: Sizes | None = None,
    dilations: Sizes | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    """Mean over windows; padding counts only if asked to, what the ceiling adds never."""
    step, spread = strides or [1] * len(kernel_shape), dilations or [1] * len(kernel_shape)
    reach = reach_of(kernel_shape, spread)
    edges = edges_of(x.shape[2:], reach, step, pads, auto_pad)
    whole = with_ceiling(x.shape[2:], reach, step, edges) if ceil_mode else edges
    beyond = [(0, all_[1] - own[1]) for all_, own in zip(whole, edges)]
    ones = torch.ones_like(x[:1, :1])
    counted = padded(padded(ones, edges, float(count_include_pad)), beyond)
    total = unfolded(padded(x, whole), kernel_shape, step, spread).sum(-1)
    return total / unfolded(counted, kernel_shape, step, spread).sum(-1)


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    strides: Sizes | None = None,
    pads: Sizes | None = None,
    dilations: Sizes | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Largest of each window, and its place in the flat tensor."""
    shape = (kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    is_float = x.dtype.is_floating_point
    low = -math.inf if is_float else torch.iinfo(x.dtype).min
    taps = _windows(x, *shape, low)
    if outputs == 1:
        return (taps.amax(-1),)
    best, tap = taps.max(-1)
    place = torch.zeros((), dtype=torch.int64, device=x.device)
    axes = range(2, x.ndim)
    for axis in axes if storage_order == 0 else reversed(axes):
        index = torch.arange(x.shape[axis], device=x.device)
        index = index.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        place = place * x.shape[axis] + index
    places = _windows(place.expand(1, 1, *x.shape[2:]).to(torch.float64), *shape, -1)
    chosen = places.expand(taps.shape).gather(-1, tap[..., None])[..., 0].to(torch.int64)
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    planes = planes.reshape(x.shape[0], x.shape[1], *[1] * (x.ndim - 2))
    return best, chosen + planes * x[0, 0].numel()


def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    p: int = 2,
    strides: Sizes | None = None,
    pads: Sizes | None = None,
    dilations: Sizes | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Tensor:
    """The p-norm of each window."""
    taps = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode, 0.0)
    return torch.linalg.vector_norm(taps, p, -1)


def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Any = None,
    *,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Elements back at their places in a larger tensor of zeros."""
    count = len(kernel_shape)
    step, edges = strides or [1] * count, pads or [0] * 2 * count
    small = [
        (x.shape[2 + i] - 1) * step[i] - edges[i] - edges[i + count] + kernel_shape[i]
        for i in range(count)
    ]
    shape = list(x.shape[:2]) + small
    flat = x.new_zeros(math.prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1))
    made = flat.reshape(shape)
    if output_shape is None:
        return made
    wanted = sizes(output_shape)[2:]
    return padded(made, [(0, more - have) for more, have in zip(wanted, small)])


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all of space."""
    return x.mean(tuple(range(2, x.ndim)), True)


def global_max_pool(x: Tensor) -> Tensor:
    """Largest element over all of space."""
    return x.amax(tuple(range(2, x.ndim)), True)


def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over all of space."""
    return torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), True)


STANDARD: Rows = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": many(max_pool),
    "MaxUnpool": plain(max_unpool, 2),
}
MICROSOFT: Rows = {}
