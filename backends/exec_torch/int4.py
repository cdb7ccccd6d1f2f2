"""torch's own kernels for 4-bit weights, which compute in bfloat16 alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .n_bits import matmul_n_bits, unpack
from .row import Prepacked, Row, Rows
from .tensors import Tensor

BLOCKS = (32, 64, 128, 256)
ROWS = 16
"""Rows of the weight come in groups of so many."""
CHUNK = 1024
"""Rows that are unpacked at a time."""
TILES = 8
"""Tiles of 16 columns that the kernel of a device reads at a time."""
MIDDLE = 8


def prepack(
    operands: Sequence[Tensor | None], attributes: dict[str, Any], device: Any, dtype: Any
) -> Prepacked | None:
    """The weight in the kernel's order, where the kernel can do it; None elsewhere."""
    _, codes, scales, zeros, order, *_ = (*operands, None, None, None)
    count, width, block = attributes["N"], attributes["K"], attributes["block_size"]
    pack = _PACK.get(device.type)
    fits = block in BLOCKS and count % ROWS == 0 and width % block == 0
    fits = fits and attributes.get("bits", 4) == 4 and dtype == torch.bfloat16
    fits = fits and (device.type == "cpu" or width % (16 * TILES) == 0)
    if not fits or pack is None or codes is None or scales is None or order is not None:
        return None
    codes, scales = codes.reshape(count, -1), scales.reshape(count, -1).to(torch.float32)
    factors = torch.stack([scales.T, (_offsets(zeros, scales) * scales).T], -1)
    factors = factors.to(device, dtype).contiguous()
    return Prepacked(
        int4_matmul, {1: pack(codes, device), 2: factors, 3: None}, {"block_size": block}
    )


def _pack_on_host(codes: Tensor, device: Any) -> Tensor:
    chunks = [
        torch._convert_weight_to_int4pack_for_cpu(unpack(part, 4).to(torch.int32), 1)
        for part in codes.split(CHUNK)
    ]
    return torch.cat(chunks)


def _pack_on_device(codes: Tensor, device: Any) -> Tensor:
    given = codes.to(device)
    swapped = (given << 4) | (given >> 4)  # its first code of two is in the high bits
    return torch._convert_weight_to_int4pack(swapped, TILES)


_PACK = {"cpu": _pack_on_host, "cuda": _pack_on_device}


def _offsets(zeros: Tensor | None, scales: Tensor) -> Tensor:
    """How far zero points lie below the middle."""
    if zeros is None:
        return torch.zeros_like(scales)
    points = zeros.reshape(scales.shape[0], -1)
    if not points.is_floating_point():
        points = unpack(points, 4)[:, : scales.shape[1]]
    return MIDDLE - points.to(torch.float32)


def int4_matmul(
    a: Tensor,
    weight: Tensor,
    factors: Tensor,
    zeros: None = None,
    order: None = None,
    bias: Tensor | None = None,
    *,
    block_size: int,
) -> Tensor:
    """A times a prepacked weight."""
    rows = a.reshape(-1, a.shape[-1])
    on_host = rows.device.type == "cpu"
    product = torch._weight_int4pack_mm_for_cpu if on_host else torch._weight_int4pack_mm
    made = product(rows, weight, block_size, factors)
    made = made.reshape(*a.shape[:-1], -1)
    return made if bias is None else made + bias


STANDARD: Rows = {}
MICROSOFT: Rows = {"MatMulNBits": Row(matmul_n_bits, prepack=prepack)}
