"""Weights of a few bits in blocks: dequantised tile by tile, never a whole matrix at a time."""

from __future__ import annotations

from typing import Any

import torch

from .row import Rows
from .tensors import Tensor

CPU_TILE, DEVICE_TILE = 1 << 18, 1 << 24
"""Weights that are floats at a time: what a core's cache holds, what keeps a device busy."""
WHOLE = (2, 4, 8)
"""Widths of which bytes hold a whole number."""


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Codes out of bytes, the first in the lowest bits, u8[..., codes]."""
    if bits not in WHOLE:
        raise NotImplementedError(f"codes of {bits} bits")
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    parts = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)


def matmul_n_bits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Tensor:
    """A times the transposed weights u8[N, blocks, bytes] with a scale per row and block."""
    if g_idx is not None or weight_prepacked:
        raise NotImplementedError("MatMulNBits with g_idx or packed for one kind of device")
    blocks = -(-K // block_size)
    codes, rates = b.reshape(N, blocks, -1), scales.reshape(N, blocks)
    zeros = zero_points if zero_points is None else zero_points.reshape(N, -1)
    rows = max(1, (CPU_TILE if a.device.type == "cpu" else DEVICE_TILE) // K)
    tiles = [
        a @ _weights(codes, rates, zeros, bits, start, min(rows, N - start))[:, :K].T
        for start in range(0, N, rows)
    ]
    made = tiles[0] if len(tiles) == 1 else torch.cat(tiles, -1)
    return made if bias is None else made + bias


def _weights(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, start: int, count: int
) -> Tensor:
    """Some rows of the matrix as floats."""
    rates = scales.narrow(0, start, count)
    numbers = unpack(codes.narrow(0, start, count), bits).to(rates.dtype)
    if zeros is None:
        middle: Any = 1 << (bits - 1)
    else:
        middle = zeros.narrow(0, start, count)
        if not middle.is_floating_point():
            middle = unpack(middle, bits)[:, : rates.shape[1]]
        middle = middle.to(rates.dtype)[..., None]
    return ((numbers - middle) * rates[..., None]).flatten(1)


def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """Rows of a table that is quantised in blocks along `quantize_axis`; those alone are floats."""
    at, axis = gather_axis % data.ndim, quantize_axis % data.ndim
    if at == axis:
        raise NotImplementedError("GatherBlockQuantized along the dim of its blocks")
    packed = data.dtype == torch.uint8
    index = (*[slice(None)] * at, indices.to(torch.int64))
    after = axis + indices.ndim - 1 if axis > at else axis
    codes, rates = data[index], scales[index]
    codes = unpack(codes, bits) if packed else codes
    middle: Any = 1 << (bits - 1) if packed else 0
    if zero_points is not None:
        points = zero_points[index]
        points = unpack(points, bits) if points.dtype == torch.uint8 else points
        for dim, size in enumerate(rates.shape):
            points = points.narrow(dim, 0, size)
        middle = _wide(points.to(rates.dtype), codes, after, block_size)
    return (codes.to(rates.dtype) - middle) * _wide(rates, codes, after, block_size)


def _wide(parameter: Tensor, codes: Tensor, axis: int, block: int) -> Tensor:
    """A parameter of every block as one of every code."""
    return parameter.repeat_interleave(block, axis).narrow(axis, 0, codes.shape[axis])


STANDARD: Rows = {}
MICROSOFT: Rows = {"GatherBlockQuantized": gather_block_quantized}
