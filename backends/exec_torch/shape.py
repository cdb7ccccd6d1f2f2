"""Ops that move elements or make them from a shape, and compute nothing."""

from __future__ import annotations

from typing import Any

import torch

from .row import Rows, number, plain, sizes
from .tensors import Tensor


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """Other dims; 0 keeps one, -1 is what is left."""
    target = list(sizes(shape))
    if not allowzero:
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the dims before `axis`, and the others."""
    rows = 1
    for size in x.shape[: axis + x.ndim if axis < 0 else axis]:
        rows = rows * size
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, x[..., :0].numel())


def transpose(x: Tensor, *, perm: tuple[int, ...] | None = None) -> Tensor:
    """Dims in another order."""
    return x.permute(tuple(range(x.ndim))[::-1] if perm is None else perm)


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Without dims of one."""
    return x.squeeze() if axes is None else x.squeeze(sizes(axes))


def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """With dims of one at `axes` of the result."""
    given = sizes(axes)
    for axis in sorted(a + x.ndim + len(given) if a < 0 else a for a in given):
        x = x.unsqueeze(axis)
    return x


def expand(x: Tensor, shape: Any) -> Tensor:
    """Repeat dims of one, by the rules of broadcasting."""
    target = list(sizes(shape))
    for back in range(1, min(x.ndim, len(target)) + 1):
        if target[-back] == 1:
            target[-back] = x.shape[-back]
    return x.expand([*x.shape[: max(0, x.ndim - len(target))], *target])


def concat(*parts: Tensor, axis: int) -> Tensor:
    """Join along a dim."""
    return torch.cat(parts, axis)


def split(
    x: Tensor, parts: Any = None, *, outputs: int, axis: int = 0, num_outputs: int = 0
) -> tuple[Tensor, ...]:
    """Cut along a dim, evenly or by sizes."""
    if parts is None:
        size, count = x.shape[axis], num_outputs or outputs
        each = -(-size // count)
        parts = (*[each] * (count - 1), size - each * (count - 1))
    return tuple(torch.split(x, list(sizes(parts)), axis))


def slices(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """Ranges of indices, which may run backwards."""
    begin, end = sizes(starts), sizes(ends)
    dims = tuple(range(len(begin))) if axes is None else sizes(axes)
    stride = (1,) * len(begin) if steps is None else sizes(steps)
    for first, last, dim, step in zip(begin, end, dims, stride):
        if step > 0:
            at = dim + x.ndim if dim < 0 else dim
            x = x[(*[slice(None)] * at, slice(first, last, step))]
        else:
            places = list(range(*slice(first, last, step).indices(x.shape[dim])))
            index = torch.tensor(places, dtype=torch.int64, device=x.device)
            x = x.index_select(dim, index)
    return x


def tile(x: Tensor, repeats: Any) -> Tensor:
    """The whole tensor several times along each dim."""
    return x.repeat(sizes(repeats))


def pad(
    x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant"
) -> Tensor:
    """More (or, for negative sizes, fewer) elements at the ends of dims."""
    edges = sizes(pads)
    dims = range(x.ndim) if axes is None else sizes(axes)
    for i, dim in enumerate(dims):
        before, after = edges[i], edges[i + len(edges) // 2]
        if before or after:
            x = _pad_dim(x, dim % x.ndim, before, after, mode, number(value, 0))
    return x


def _pad_dim(x: Tensor, dim: int, before: int, after: int, mode: str, value: Any) -> Tensor:
    if mode == "constant":
        edges = [0, 0] * (x.ndim - 1 - dim) + [before, after]
        return torch.nn.functional.pad(x, edges, value=value)
    size = x.shape[dim]
    places = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:
        period = max(2 * (size - 1), 1)
        places = (places % period).clamp(max=period)
        places = torch.where(places < size, places, period - places)
    return x.index_select(dim, places)


def range_of(start: Any, limit: Any, delta: Any, *, operand_dtype: Any, device: Any) -> Tensor:
    """Numbers from `start` in steps of `delta`."""
    first, last, step = number(start), number(limit), number(delta)
    count = max(0, -(-(last - first) // step))
    if not isinstance(first, float):
        end = first + count * step
        return torch.arange(first, end, step, dtype=operand_dtype, device=device)
    return (first + step * torch.arange(int(count), device=device)).to(operand_dtype)


def constant_of_shape(
    shape: Any, *, device: Any, made: Any, value: tuple[Any, Any] | None = None
) -> Tensor:
    """One number everywhere."""
    number, dtype = value or (0.0, made or torch.float32)
    return torch.full(sizes(shape), number, dtype=dtype, device=device)


def eye_like(x: Tensor, *, k: int = 0, dtype: Any = None) -> Tensor:
    """Ones on a diagonal of a matrix of zeros."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None] + k
    ones = rows == torch.arange(x.shape[1], device=x.device)
    return ones.to(dtype or x.dtype)


def trilu(x: Tensor, k: Any = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangles of matrices."""
    return (torch.triu if upper else torch.tril)(x, number(k, 0))


def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """values[1] at the index along a new dim, values[0] elsewhere."""
    count = int(number(depth))
    place = indices.to(torch.int64)
    place = torch.where(place < 0, place + count, place).unsqueeze(axis)
    ranked = torch.arange(count, device=indices.device)
    dims = [1] * place.ndim
    dims[axis] = count
    return torch.where(place == ranked.reshape(dims), values[1], values[0])


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become blocks of space."""
    b, c, h, w = x.shape
    inner = c // blocksize**2
    if mode == "DCR":
        parts = x.reshape(b, blocksize, blocksize, inner, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(b, inner, blocksize, blocksize, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(b, inner, h * blocksize, w * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Blocks of space become channels."""
    b, c, h, w = x.shape
    parts = x.reshape(b, c, h // blocksize, blocksize, w // blocksize, blocksize)
    parts = parts.permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(b, c * blocksize**2, h // blocksize, w // blocksize)


def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first `lengths[b]` steps of each sequence backwards."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    valid = lengths.to(torch.int64)[:, None]
    place = torch.where(steps < valid, valid - 1 - steps, steps)
    place = place if batch_axis == 0 else place.T
    index = place.reshape(*place.shape, *[1] * (x.ndim - 2)).expand(x.shape)
    return torch.gather(x, time_axis, index)


def affine_grid(theta: Tensor, size: Any, *, align_corners: int = 0) -> Tensor:
    """Where each element of a map comes from."""
    return torch.nn.functional.affine_grid(theta, list(sizes(size)), bool(align_corners))


def col2im(
    x: Tensor,
    image_shape: Any,
    block_shape: Any,
    *,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Add blocks, each a column, up to an image."""
    image, block = sizes(image_shape), sizes(block_shape)
    count = len(image)
    spread, step = dilations or (1,) * count, strides or (1,) * count
    edges = pads or (0,) * 2 * count
    full = [n + edges[i] + edges[i + count] for i, n in enumerate(image)]
    reach = [(k - 1) * d + 1 for k, d in zip(block, spread)]
    blocks = [(n - r) // s + 1 for n, r, s in zip(full, reach, step)]
    at: Tensor = torch.zeros((), dtype=torch.int64, device=x.device)
    for dim in range(count):
        taps = torch.arange(block[dim], device=x.device) * spread[dim]
        starts = torch.arange(blocks[dim], device=x.device) * step[dim]
        ours = [1] * (2 * count)
        ours[dim], ours[dim + count] = block[dim], blocks[dim]
        at = at * full[dim] + (taps[:, None] + starts).reshape(ours)
    channels = x.shape[1] // x.new_empty(block).numel()
    columns = x.reshape(x.shape[0], channels, -1)
    made = x.new_zeros(x.shape[0], channels, torch.zeros(full).numel())
    index = at.reshape(-1).expand(columns.shape)
    made = made.scatter_add(2, index, columns).reshape(*made.shape[:2], *full)
    inside = tuple(slice(edges[i], edges[i] + n) for i, n in enumerate(image))
    return made[(slice(None), slice(None), *inside)]


STANDARD: Rows = {
    "AffineGrid": plain(affine_grid, 1),
    "Col2Im": plain(col2im, 1, 2),
    "Concat": concat,
    "ConstantOfShape": plain(constant_of_shape, 0),
    "DepthToSpace": depth_to_space,
    "Expand": plain(expand, 1),
    "EyeLike": eye_like,
    "Flatten": flatten,
    "OneHot": plain(one_hot, 1),
    "Pad": plain(pad, 1, 2, 3),
    "Range": plain(range_of, 0, 1, 2),
    "Reshape": plain(reshape, 1),
    "ReverseSequence": reverse_sequence,
    "Slice": plain(slices, 1, 2, 3, 4),
    "SpaceToDepth": space_to_depth,
    "Split": plain(split, 1, many=True),
    "Squeeze": plain(squeeze, 1),
    "Tile": plain(tile, 1),
    "Transpose": transpose,
    "Trilu": plain(trilu, 1),
    "Unsqueeze": plain(unsqueeze, 1),
}
MICROSOFT: Rows = {"Trilu": plain(trilu, 1)}
