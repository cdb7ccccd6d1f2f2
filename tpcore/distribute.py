"""Cut global arrays into what each rank holds, and put the ranks' parts together again.

A manifest describes shardings by the texts of `tpcore.planner.options.placement_text`; `Held` is
one of them, read back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from graph.dialect import AllGather, reduce_in_rank_order
from graph.layout import Layout, box_of, take_box

ROOT = 0
"""The rank that holds all of a partial value; the others hold zeros."""


@dataclass(frozen=True)
class Held:
    """How a value is held by the ranks."""

    dims: tuple[int, ...] = ()
    layouts: tuple[Layout, ...] = ()
    partial: bool = False

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds the value."""
        return not self.dims and not self.partial

    def cut(self, whole: np.ndarray, rank: int) -> np.ndarray:
        """What `rank` holds of `whole`."""
        if self.is_replicated:
            return whole
        if self.partial:
            return whole if rank == ROOT else np.zeros_like(whole)
        box = box_of(self.dims, self.layouts, rank, whole.ndim)
        return np.asarray(take_box(whole, box), order="C")

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The whole value from what the ranks hold."""
        if self.partial:
            return reduce_in_rank_order(parts, "sum")
        return self.gather.assemble(parts) if self.dims else parts[0]

    @cached_property
    def gather(self) -> AllGather:
        """The collective that makes the value whole on every rank."""
        return AllGather("tp", self.dims, self.layouts)


@cache
def read_held(text: str) -> Held:
    """Read `R`, `P(sum)` or `S(1) 0:4 4:8`. Raises ValueError where it is none of these."""
    if text == "R":
        return Held()
    if text == "P(sum)":
        return Held(partial=True)
    match = re.fullmatch(r"S\(([\d,]+)\) (.*)", text)
    if match is None:
        raise ValueError(f"'{text}' is no sharding")
    dims = tuple(int(dim) for dim in match.group(1).split(","))
    return Held(dims, tuple(Layout.parse(part) for part in match.group(2).split(" | ")))


def cut_inputs(
    inputs: Mapping[str, np.ndarray], shardings: Mapping[str, str], rank: int
) -> dict[str, np.ndarray]:
    """What `rank` needs of every graph input."""
    return {
        name: read_held(shardings.get(name, "R")).cut(array, rank) for name, array in inputs.items()
    }
