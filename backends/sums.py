"""Sums in rank order: the one way in which a communicator on the host reduces the ranks' parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from graph.dialect import REDUCTIONS

Reduction = Callable[[np.ndarray, Sequence[np.ndarray]], None]
"""Reduces parts of equal shape, by rank, into an array of that shape.

That may be the part of rank 0 or 1 itself, but no later one.
"""

NARROW = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
"""Types that are summed in float32 and rounded once."""
_BLOCK = 32 << 10
"""Elements that are widened at a time, so that they stay in the cache."""


def reduction(reduce: str, dtype: np.dtype[Any]) -> Reduction:
    """What `graph.dialect.reduce_in_rank_order` means, into memory that is there already."""
    function = REDUCTIONS[reduce]
    if dtype in NARROW:
        return lambda total, parts: _reduce_narrow(function, total, parts)

    def reduce_wide(total: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        function(parts[0], parts[1], out=total)
        for part in parts[2:]:
            function(total, part, out=total)

    return reduce_wide


def _reduce_narrow(function: np.ufunc, total: np.ndarray, parts: Sequence[np.ndarray]) -> None:
    """Sum 16-bit floats in float32, block by block."""
    flat, rows = total.reshape(-1), [part.reshape(-1) for part in parts]
    wide = np.empty(min(_BLOCK, flat.size), np.float32)
    part = np.empty_like(wide)
    for begin in range(0, flat.size, _BLOCK):
        block = slice(begin, min(begin + _BLOCK, flat.size))
        size = block.stop - begin
        np.copyto(wide[:size], rows[0][block])
        for row in rows[1:]:
            np.copyto(part[:size], row[block])
            function(wide[:size], part[:size], out=wide[:size])
        np.copyto(flat[block], wide[:size], casting="unsafe")
