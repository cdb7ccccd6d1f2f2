"""Ops that change the element type."""

from __future__ import annotations

from typing import Any

import torch

from .row import Rows
from .tensors import Tensor

CODES = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
"""Types of which a code takes a byte of its own here, and their limits."""
LAST_ROUNDED = 464.0
_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)


def cast(x: Tensor, *, to: Any, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The numbers of x in another type."""
    if isinstance(to, str):
        return _to_codes(x, to)
    if to in _FLOAT8:
        return to_float8(x, to, bool(saturate))
    if to == torch.float8_e8m0fnu and round_mode != "nearest":
        return _to_power_of_two(x, round_mode, bool(saturate))
    return x.to(to)


def _to_codes(x: Tensor, name: str) -> Tensor:
    """The lowest bits, as casts between integers have it."""
    low, high = CODES[name]
    codes = x.to(torch.int32) & (high - low)
    signed = torch.where(codes > high, codes - (high - low + 1), codes)
    return signed.to(torch.int8 if low else torch.uint8)


def to_float8(x: Tensor, to: Any, saturate: bool) -> Tensor:
    """Nearest 8-bit float; what is out of range becomes the largest one, or NaN or infinite."""
    largest, wide = torch.finfo(to).max, x.to(torch.float32)
    if not saturate and to != torch.float8_e4m3fn:
        return x.to(to)
    if not saturate:  # torch saturates to this type alone; up to here numbers round to the largest
        return torch.where(wide.abs() <= LAST_ROUNDED, wide, torch.nan).to(to)
    return wide.clamp(-largest, largest).to(to)


def _to_power_of_two(x: Tensor, round_mode: str, saturate: bool) -> Tensor:
    wide = x.to(torch.float32).abs()
    bits = wide.view(torch.int32)
    exponent, rest = bits >> 23, bits & 0x7FFFFF
    up = (rest > 0) if round_mode == "up" else torch.zeros_like(rest, dtype=torch.bool)
    made = exponent + up.to(torch.int32)
    made = torch.where(made > 254, 254 if saturate else 255, made)
    made = torch.where(torch.isnan(x), 255, made)
    return made.to(torch.uint8).view(torch.float8_e8m0fnu)


def cast_like(
    x: Tensor, like: Tensor, *, made: Any = None, saturate: int = 1, round_mode: str = "up"
) -> Tensor:
    """The numbers of x in the type of another tensor."""
    return cast(x, to=made or like.dtype, saturate=saturate, round_mode=round_mode)


def bit_cast(x: Tensor, *, to: Any) -> Tensor:
    """The bits of x read as another type of the same size."""
    if isinstance(to, str):
        raise NotImplementedError(f"BitCast to {to}")
    return x.contiguous().view(to)


STANDARD: Rows = {"Cast": cast, "CastLike": cast_like, "BitCast": bit_cast}
MICROSOFT: Rows = {}
