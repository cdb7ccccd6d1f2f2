"""Which indices of one tensor dimension each rank holds.

Invariants:
- a layout lists, per rank, ordered half-open index ranges; a rank's part is their concatenation;
- even, uneven, packed (q|k|v) and overlapping (replicated kv heads) differ only in the ranges;
- together the ranks cover every index of the dim.

Text form, used in rank graphs, dumps and manifests: ranks separated by spaces, ranges by `+`:
`0:4 4:8` is even, `0:2+8:10 2:4+10:12` is packed, `0:1 0:1 1:2 1:2` is overlapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Range = tuple[int, int]
Box = tuple["tuple[Range, ...] | None", ...]
"""Per dim the ranges held, or None for the whole dim."""


@dataclass(frozen=True)
class Layout:
    """Index ranges of one dim, per rank."""

    ranges: tuple[tuple[Range, ...], ...]
    """ranges[rank] = the (start, stop) pairs that rank holds, in order."""

    @classmethod
    def even(cls, size: int, ranks: int) -> Layout:
        """Split `size` indices as evenly as possible, earlier ranks taking the remainder.

        >>> str(Layout.even(8, 3))
        '0:3 3:6 6:8'
        """
        base, extra = divmod(size, ranks)
        stops = [base * (r + 1) + min(r + 1, extra) for r in range(ranks)]
        return cls(tuple(((start, stop),) for start, stop in zip([0, *stops], stops)))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read the text form. Raises ValueError if it is malformed."""
        ranks = []
        for part in text.split(" "):
            pairs = [piece.split(":") for piece in part.split("+")] if part != "-" else []
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError(f"malformed layout '{text}'")
            held = tuple((int(start), int(stop)) for start, stop in pairs)
            if any(not 0 <= start <= stop for start, stop in held):
                raise ValueError(f"malformed layout '{text}': a range runs backwards")
            ranks.append(held)
        return cls(tuple(ranks))

    def __str__(self) -> str:
        return " ".join(
            "+".join(f"{start}:{stop}" for start, stop in held) or "-" for held in self.ranges
        )

    @property
    def ranks(self) -> int:
        """Number of ranks the dim is split over."""
        return len(self.ranges)

    @cached_property
    def global_size(self) -> int:
        """Size of the whole dim."""
        return max((stop for held in self.ranges for _, stop in held), default=0)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Local size of the dim on every rank."""
        return tuple(sum(stop - start for start, stop in held) for held in self.ranges)

    @cached_property
    def disjoint(self) -> bool:
        """Whether no index is held twice."""
        return sum(self.sizes) == self.global_size

    def indices(self, rank: int) -> np.ndarray:
        """Global indices that `rank` holds, in local order, as int64[local]."""
        parts = [np.arange(start, stop) for start, stop in self.ranges[rank]]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def box_of(dims: Sequence[int], layouts: Sequence[Layout], rank: int, ndim: int) -> Box:
    """The box that `rank` holds of a tensor of `ndim` dims split on `dims` by `layouts`."""
    held = {dim: layout.ranges[rank] for dim, layout in zip(dims, layouts)}
    return tuple(held.get(dim) for dim in range(ndim))


def take_box(array: np.ndarray, box: Box) -> np.ndarray:
    """Copy or view the part of `array` inside `box` (a view where one range per dim suffices)."""
    for dim, held in enumerate(box):
        if held is None:
            continue
        parts = [array[(slice(None),) * dim + (slice(start, stop),)] for start, stop in held]
        if not parts:
            array = array[(slice(None),) * dim + (slice(0, 0),)]
        else:
            array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=dim)
    return array


def put_box(whole: Any, box: Box, part: Any) -> None:
    """Write a rank's `part` into its place in `whole`: the inverse of `take_box`."""
    for held, piece in box_views(whole, box, part):
        held[...] = piece


def box_views(whole: Any, box: Box, part: Any) -> Iterator[tuple[Any, Any]]:
    """Views of `whole` inside `box`, each with the view of `part` that belongs there.

    Arrays may be of any library that slices as numpy does.
    """
    split = [dim for dim, held in enumerate(box) if held is not None]
    return _views(whole, box, part, split)


def _views(whole: Any, box: Box, part: Any, split: list[int]) -> Iterator[tuple[Any, Any]]:
    if not split:
        yield whole, part
        return
    dim, rest = split[0], split[1:]
    offset = 0
    for start, stop in box[dim] or ():
        before = (slice(None),) * dim
        piece = part[before + (slice(offset, offset + stop - start),)]
        yield from _views(whole[before + (slice(start, stop),)], box, piece, rest)
        offset += stop - start
