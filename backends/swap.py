"""Every rank hands a piece to every other one, through their window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from .window import Window

Shape = tuple[int, ...]
Swap = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Takes a piece for every rank and returns the pieces of all ranks for this one.

What it returns may lie in the window: read it before the next round.
"""


def swap(window: Window, shapes: Sequence[Sequence[Shape]], dtype: np.dtype[Any]) -> Swap:
    """Make a swap in which `source` hands an array of `shapes[source][target]` to `target`."""
    sizes = [[math.prod(shape) * dtype.itemsize for shape in row] for row in shapes]
    if max(map(sum, sizes)) <= window.slot_bytes:
        return _at_once(window, shapes, sizes, dtype)
    receive = in_chunks(window, shapes, dtype)
    incoming = [row[window.rank] for row in shapes]
    return lambda pieces: cut(receive(pieces), incoming)


def _at_once(
    window: Window,
    shapes: Sequence[Sequence[Shape]],
    sizes: Sequence[Sequence[int]],
    dtype: np.dtype[Any],
) -> Swap:
    """One round: the pieces of a rank lie in its slot one after the other."""
    rank, ranks = window.rank, range(window.size)
    begins = [starts(row) for row in sizes]

    def piece(turn: int, source: int, target: int) -> np.ndarray:
        return window.view(turn, source, shapes[source][target], dtype, begins[source][target])

    outgoing = [[piece(turn, rank, target) for target in ranks] for turn in (0, 1)]
    incoming = [[piece(turn, source, rank) for source in ranks] for turn in (0, 1)]

    def run(pieces: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        turn = window.turn
        for held, given in zip(outgoing[turn], pieces):
            np.copyto(held, given)
        window.meet()
        return incoming[turn]

    return run


def in_chunks(
    window: Window,
    shapes: Sequence[Sequence[Shape]],
    dtype: np.dtype[Any],
    *,
    same_for_all: bool = False,
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Make a swap in as many rounds as it needs; what came lies one after the other.

    With `same_for_all` a rank gives one piece, which every rank gets.
    """
    rank = window.rank
    areas = 1 if same_for_all else window.size
    step = window.slot_bytes // dtype.itemsize // areas
    area = 0 if same_for_all else rank * step
    longest = max(math.prod(shape) for row in shapes for shape in row)
    incoming = [math.prod(row[rank]) for row in shapes]
    places = list(zip(starts(incoming), incoming))
    views = window.views([(areas * step,)] * window.size, dtype)

    def run(pieces: Sequence[np.ndarray]) -> np.ndarray:
        received = np.empty(sum(incoming), dtype)
        flat = [piece.reshape(-1) for piece in pieces]
        for begin in range(0, longest, step):
            slots = views[window.turn]
            for target, piece in enumerate(flat):
                part = piece[begin : begin + step]
                np.copyto(slots[rank][target * step : target * step + part.size], part)
            window.meet()
            for slot, (start, size) in zip(slots, places):
                count = min(max(size - begin, 0), step)
                at = start + min(begin, size)
                np.copyto(received[at : at + count], slot[area : area + count])
        return received

    return run


def starts(sizes: Sequence[int]) -> list[int]:
    """Where things of these sizes begin that lie one after the other."""
    return [0, *accumulate(sizes)][:-1]


def cut(flat: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """The arrays that lie one after the other in `flat`."""
    sizes = [math.prod(shape) for shape in shapes]
    return [
        flat[start : start + size].reshape(shape)
        for start, size, shape in zip(starts(sizes), sizes, shapes)
    ]
