"""Ops that read or write elements by index."""

from __future__ import annotations

from typing import Any

import torch

from .row import Row, Rows, many, number, plain
from .tensors import Tensor


def _positive(index: Tensor, size: int) -> Tensor:
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    """x[indices] along a dim."""
    at = axis + x.ndim if axis < 0 else axis
    if not isinstance(indices, torch.Tensor):
        return x.select(at, indices)
    return x[(*[slice(None)] * at, indices.to(torch.int64))]


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """x[.., indices[..], ..] along a dim."""
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices of x at tuples of indices."""
    parts = tuple(indices.to(torch.int64).unbind(-1))
    if not batch_dims:
        return x[parts]
    count = parts[0].ndim
    rows = [
        torch.arange(x.shape[dim], device=x.device).reshape(
            [-1 if i == dim else 1 for i in range(count)]
        )
        for dim in range(batch_dims)
    ]
    return x[(*rows, *parts)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """x with updates written, added, … at indices along a dim."""
    index = _positive(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _REDUCE[reduction], include_self=True)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """x with slices written, added, … at tuples of indices."""
    depth = indices.shape[-1]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for dim in range(depth):
        flat = flat * x.shape[dim] + _positive(indices[..., dim], x.shape[dim])
    rest = x.shape[depth:]
    rows = x.reshape(-1, *rest) if rest else x.reshape(-1)
    at, new = flat.reshape(-1), updates.reshape(-1, *rest)
    if reduction == "none":
        made = rows.index_copy(0, at, new) if at.numel() else rows.clone()
    else:
        at = at.reshape(-1, *[1] * len(rest)).expand(new.shape)
        made = rows.scatter_reduce(0, at, new, _REDUCE[reduction], include_self=True)
    return made.reshape(x.shape)


def tensor_scatter(
    cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache with new entries of each sequence from its write index on."""
    dim, length = axis % cache.ndim, update.shape[axis]
    steps = torch.arange(length, device=cache.device)
    start = torch.zeros(cache.shape[0], dtype=torch.int64, device=cache.device)
    start = start if write_indices is None else write_indices.to(torch.int64)
    place = start[:, None] + steps
    place = place % cache.shape[dim] if mode == "circular" else place
    view = [1] * cache.ndim
    view[0], view[dim] = place.shape
    return torch.scatter(cache, dim, place.reshape(view).expand(update.shape), update)


def non_zero(x: Tensor) -> Tensor:
    """Indices of what is not zero, i64[dims, count]."""
    return torch.nonzero(x).T


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices for which the condition holds; of the flat tensor without an axis."""
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def unique(
    x: Tensor,
    *,
    axis: int | None = None,
    sorted: int = 1,
) -> tuple[Tensor, ...]:
    """Distinct slices, where they were first, where each went, and how many there are."""
    whole = x.reshape(-1) if axis is None else x
    dim = 0 if axis is None else axis % x.ndim
    made, inverse, counts = torch.unique(whole, True, True, True, dim=dim)
    inverse = inverse.reshape(-1)
    positions = torch.arange(inverse.shape[0], device=x.device)
    first = torch.full_like(counts, inverse.shape[0]).scatter_reduce(0, inverse, positions, "amin")
    if not sorted:
        order = torch.argsort(first)
        made, first, counts = made.index_select(dim, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return made, first, inverse, counts


def top_k(
    x: Tensor,
    k: Any,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along a dim; of equals the first ones."""
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = number(k)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output: Any = None,
    iou_threshold: Any = None,
    score_threshold: Any = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Best boxes of each class that overlap no better one, i64[count, (batch, class, box)]."""
    limit, overlap, least = number(max_output, 0), number(iou_threshold, 0.0), score_threshold
    corners = _corners(boxes, bool(center_point_box))
    found: list[list[int]] = []
    for batch in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            chosen = _best(corners[batch], scores[batch, kind], limit, overlap, number(least))
            found += [[batch, kind, box] for box in chosen]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    if centred:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return torch.cat([middle - half, middle + half], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _best(
    boxes: Tensor, scores: Tensor, limit: int, overlap: float, least: float | None
) -> list[int]:
    chosen: list[int] = []
    for box in torch.sort(scores, descending=True, stable=True).indices.tolist():
        if len(chosen) >= limit or (least is not None and scores[box] <= least):
            break
        if not chosen or bool((_shared_area(boxes[chosen], boxes[box]) <= overlap).all()):
            chosen.append(box)
    return chosen


def _shared_area(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    inside = (high - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, box)]
    return inside / (areas[0] + areas[1] - inside)


STANDARD: Rows = {
    "Compress": compress,
    "Gather": Row(gather, scalar=(1,)),
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonMaxSuppression": plain(non_max_suppression, 2, 3, 4),
    "NonZero": non_zero,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "TopK": plain(top_k, 1, many=True),
    "Unique": many(unique),
}
MICROSOFT: Rows = {}
