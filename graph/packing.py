"""Codes of fewer than eight bits, several to a byte, the first in the lowest bits."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def bytes_of_codes(count: int, bits: int) -> int:
    """Bytes of a row of `count` codes, which is padded to whole bytes."""
    return -(-count * bits // 8)


def unpack(packed: Array, bits: int) -> Array:
    """Codes of a u8[..., n] as u8[..., n * 8/bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(codes.reshape(*packed.shape[:-1], -1))


def pack(codes: Array, bits: int) -> Array:
    """The inverse of `unpack`: u8[..., count] as bytes, zeros after the last code of a row."""
    per_byte, count = 8 // bits, codes.shape[-1]
    room = bytes_of_codes(count, bits) * per_byte - count
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, room)])
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = padded.reshape(*codes.shape[:-1], -1, per_byte) << shifts
    return np.asarray(np.bitwise_or.reduce(parts, axis=-1), np.uint8)
