"""Ops that sample images at points of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .row import Rows
from .tensors import Tensor

MODES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: int = 0,
) -> Tensor:
    """x at the points of a grid in [-1, 1]."""
    return F.grid_sample(
        x, grid.to(x.dtype), mode=MODES.get(mode, mode), padding_mode=padding_mode,
        align_corners=bool(align_corners),
    )  # fmt: skip


def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Regions of images as maps of one size: mean or largest of samples in every bin."""
    half = coordinate_transformation_mode == "half_pixel"
    made = []
    corners = (rois * spatial_scale - (0.5 if half else 0)).tolist()
    for (left, top, right, bottom), batch in zip(corners, batch_indices.tolist()):
        wide, high = right - left, bottom - top
        if not half:
            wide, high = max(wide, 1.0), max(high, 1.0)
        ys = _places(top, high, output_height, sampling_ratio, x.device)
        xs = _places(left, wide, output_width, sampling_ratio, x.device)
        made.append(_bins(x[batch], ys, xs, mode))
    empty = x.new_zeros(0, x.shape[1], output_height, output_width)
    return torch.stack(made) if made else empty


def _places(start: float, length: float, bins: int, ratio: int, device: object) -> Tensor:
    """Sample points of every bin, f[bins, samples]."""
    each = length / bins
    count = ratio if ratio > 0 else int(-(-each // 1))
    steps = (torch.arange(count, device=device) + 0.5) * (each / max(count, 1))
    return start + torch.arange(bins, device=device)[:, None] * each + steps


def _bins(image: Tensor, ys: Tensor, xs: Tensor, mode: str) -> Tensor:
    """Mean of bilinear samples, or the largest of their weighted corners, f[c, bins, bins]."""
    y0, y1, y_low, y_high = _neighbours(ys.flatten(), image.shape[1])
    x0, x1, x_low, x_high = _neighbours(xs.flatten(), image.shape[2])
    corners = [
        image[:, y][:, :, x] * (wy[:, None] * wx)
        for y, wy in ((y0, y_low), (y1, y_high))
        for x, wx in ((x0, x_low), (x1, x_high))
    ]
    shape = (-1, ys.shape[0], ys.shape[1], xs.shape[0], xs.shape[1])
    if mode == "avg":
        return sum(corners).reshape(shape).mean((2, 4))
    largest = torch.stack(corners).amax(0)
    return largest.reshape(shape).amax((2, 4))


def _neighbours(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices on both sides of each point, and their weights; zero beyond one pixel outside."""
    inside = ((at >= -1) & (at <= size)).to(at.dtype)
    at = at.clamp(0, size - 1)
    low = at.floor().to(torch.int64)
    high = (low + 1).clamp(max=size - 1)
    share = at - low
    return low, high, (1 - share) * inside, share * inside


STANDARD: Rows = {"GridSample": grid_sample, "RoiAlign": roi_align}
MICROSOFT: Rows = {}
