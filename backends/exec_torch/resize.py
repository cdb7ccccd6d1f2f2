"""Resize: every dim by itself, as a weighted sum of neighbours. Formulas: ONNX's Resize-19."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .row import Rows, plain, sizes
from .tensors import Tensor

CENTRE = 0.5


def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    wanted: Any = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Another size, by scales or by sizes."""
    dims = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    factors, targets = _targets(x, dims, scales, wanted, keep_aspect_ratio_policy)
    weigh = _weights_of(mode, bool(antialias), cubic_coeff_a)
    made = x
    for place, dim in enumerate(dims):
        size, target, factor = x.shape[dim], targets[place], factors[place]
        crop = (sizes(roi)[place], sizes(roi)[place + len(dims)]) if roi else (0.0, 1.0)
        is_crop = coordinate_transformation_mode == "tf_crop_and_resize"
        if target == size and factor == 1 and not is_crop:
            continue
        at = _source(coordinate_transformation_mode, size, target, factor, crop, x.device)
        if mode == "nearest":
            made = made.index_select(dim, _nearest(at, nearest_mode).clamp(0, size - 1))
        else:
            made = _along(made, dim, at, weigh(at, factor), bool(exclude_outside))
        if is_crop:
            outside = ((at < 0) | (at > size - 1)).reshape([-1] + [1] * (x.ndim - dim - 1))
            made = torch.where(outside, extrapolation_value, made)
    return made.to(x.dtype) if x.dtype.is_floating_point else _rounded(made, x.dtype)


def _rounded(x: Tensor, dtype: Any) -> Tensor:
    if not x.dtype.is_floating_point:
        return x
    limits = torch.iinfo(dtype)
    return torch.trunc(x).clamp(limits.min, limits.max).to(dtype)


def _targets(
    x: Tensor, dims: list[int], scales: Any, wanted: Any, policy: str
) -> tuple[list[float], list[int]]:
    if not wanted:
        factors = [float(s) for s in sizes(scales)]
        return factors, [math.floor(x.shape[d] * s) for d, s in zip(dims, factors)]
    factors = [size / x.shape[dim] for dim, size in zip(dims, sizes(wanted))]
    if policy == "stretch":
        return factors, list(sizes(wanted))
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(dims), [math.floor(x.shape[d] * factor + CENTRE) for d in dims]


def _source(
    mode: str, size: int, target: int, factor: float, crop: tuple[float, float], device: Any
) -> Tensor:
    """Where each new element lies among the old ones, f64[target]."""
    at = torch.arange(target, dtype=torch.float64, device=device)
    whole = factor * size
    if mode == "align_corners":
        return at * 0 if whole == 1 else at * ((size - 1) / (whole - 1))
    if mode == "asymmetric":
        return at / factor
    if mode == "tf_crop_and_resize":
        start, end = crop
        if whole == 1:
            return at * 0 + (end - start) * (size - 1) / 2
        return at * ((end - start) * (size - 1) / (whole - 1)) + start * (size - 1)
    if mode == "pytorch_half_pixel" and whole == 1:
        return at * 0 - CENTRE
    offset = size / 2 * (1 - target / whole) if mode == "half_pixel_symmetric" else 0.0
    return offset + (at + CENTRE) / factor - CENTRE


def _nearest(at: Tensor, mode: str) -> Tensor:
    if mode == "round_prefer_floor":
        at = torch.ceil(at - CENTRE)
    elif mode == "round_prefer_ceil":
        at = torch.floor(at + CENTRE)
    else:
        at = torch.floor(at) if mode == "floor" else torch.ceil(at)
    return at.to(torch.int64)


Weigh = Callable[[Tensor, float], Tensor]


def _weights_of(mode: str, antialias: bool, a: float) -> Weigh:
    """Weights f64[target, neighbours] of the nearest elements."""

    def cubic(distance: Tensor) -> Tensor:
        d = distance.abs()
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))

    def linear(distance: Tensor) -> Tensor:
        return (1 - distance.abs()).clamp(0, 1)

    kernel, reach = (cubic, 2) if mode == "cubic" else (linear, 1)

    def weigh(at: Tensor, factor: float) -> Tensor:
        shrink = min(factor, 1.0) if antialias else 1.0
        start = math.floor(-reach / shrink) + 1
        taps = torch.arange(start, 2 - start, dtype=torch.float64, device=at.device)
        weights = kernel((taps - _ratio(at)[:, None]) * shrink)
        return weights / weights.sum(1, True)

    return weigh


def _ratio(at: Tensor) -> Tensor:
    """How far behind its left neighbour each lies, in (0, 1]: on an element, the one before."""
    rest = at - torch.floor(at)
    return torch.where(rest == 0, torch.ones_like(rest), rest)


def _along(x: Tensor, dim: int, at: Tensor, weights: Tensor, exclude: bool) -> Tensor:
    """The weighted sums of neighbours along one dim."""
    count, size = weights.shape[1], x.shape[dim]
    left = torch.ceil(at).to(torch.int64) - 1
    index = left[:, None] + torch.arange(count, device=x.device) - (count // 2 - 1)
    if exclude:
        inside = (index >= 0) & (index < size)
        weights = torch.where(inside, weights, torch.zeros_like(weights))
        total = weights.sum(1, True)
        weights = weights / torch.where(total == 0, torch.ones_like(total), total)
    wide = x if x.dtype.is_floating_point else x.to(torch.float32)
    taken = wide.index_select(dim, index.clamp(0, size - 1).reshape(-1))
    taken = taken.unflatten(dim, index.shape)
    view = [1] * taken.ndim
    view[dim], view[dim + 1] = weights.shape
    return (taken * weights.reshape(view).to(wide.dtype)).sum(dim + 1)


def upsample(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    """Resize by whole factors, from the upper left corner."""
    return resize(
        x, None, scales, mode=mode, nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


STANDARD: Rows = {"Resize": plain(resize, 1, 2, 3), "Upsample": plain(upsample, 1)}
MICROSOFT: Rows = {}
