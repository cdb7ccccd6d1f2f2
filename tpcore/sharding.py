"""Placement of a value over the ranks of one mesh axis, and what each rank then holds of it.

- `Replicate`: every rank holds the value;
- `Shard(chain)`: every rank holds a part of each dim in which the chain's atoms occur;
- `Partial(sum)`: the value is the sum of what the ranks hold.

A *chain* is what one split divides: an atom (see `tpcore.atoms`), or several nested ones where
the first has fewer indices than there are ranks. Four kv heads of two query heads each on eight
ranks are the chain (4, 2): rank r works for kv head r // 2, so the kv heads overlap and the query
heads do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from graph.layout import Layout, Range
from tpcore.atoms import Atom, Item, atoms_in


@dataclass(frozen=True, eq=False)
class Chain:
    """Nested atoms that one split divides over `ranks` ranks; made once per graph."""

    atoms: tuple[Atom, ...]
    ranks: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the atoms."""
        return tuple(size for atom in self.atoms if isinstance(size := atom.size, int))

    def __str__(self) -> str:
        return "·".join(str(atom.size) for atom in self.atoms)


@cache
def nested_layouts(sizes: tuple[int, ...], ranks: int) -> tuple[Layout, ...]:
    """Ranges that every rank works on of each of the nested sizes of a chain."""
    per_rank = [_nested_ranges(sizes, ranks, rank) for rank in range(ranks)]
    return tuple(Layout(tuple((held[i],) for held in per_rank)) for i in range(len(sizes)))


def _nested_ranges(sizes: Sequence[int], ranks: int, rank: int) -> list[Range]:
    """Range of every nested size that `rank` of `ranks` works on, as evenly as possible."""
    first, rest = sizes[0], sizes[1:]
    if ranks <= first:
        return [Layout.even(first, ranks).ranges[rank][0], *((0, size) for size in rest)]
    groups = Layout.even(ranks, first).ranges
    index = next(i for i, ((start, stop),) in enumerate(groups) if start <= rank < stop)
    start, stop = groups[index][0]
    return [(index, index + 1), *_nested_ranges(rest, stop - start, rank - start)]


@dataclass(frozen=True)
class DimSplit:
    """How one dim is split: in `parts[rank]` of `whole` units."""

    dim: int
    whole: int
    units: Layout
    """Ranges of the units that each rank holds."""
    symbolic: bool = False
    """Whether a factor of symbolic size multiplies the units, so that indices are no constants."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of units that each rank holds."""
        return self.units.sizes

    @property
    def layout(self) -> Layout | None:
        """Index ranges, or None where they are no constants."""
        return None if self.symbolic else self.units


Form = tuple["int | tuple[Form, ...]", ...]
"""A dim as its split sees it: sizes, -1 - i for atom i of the chain, packed segments as forms.

Layers that repeat have atoms of their own and the same forms.
"""


def split_dim(dim: int, items: tuple[Item, ...], chain: Chain) -> DimSplit | None:
    """What `chain` does to a dim in normal form; None where the dim holds none of its atoms."""
    if not atoms_in(items) & set(chain.atoms):
        return None
    static = tuple(item for item in items if isinstance(item, tuple) or isinstance(item.size, int))
    form = _form(static, {atom: -1 - i for i, atom in enumerate(chain.atoms)})
    return _split_form(dim, form, chain.sizes, chain.ranks, len(static) < len(items))


def _form(items: Sequence[Item], places: Mapping[Atom, int]) -> Form:
    return tuple(
        tuple(_form(segment, places) for segment in item)
        if isinstance(item, tuple)
        else places.get(item, item.size)
        for item in items
    )


@cache
def _split_form(
    dim: int, form: Form, sizes: tuple[int, ...], ranks: int, symbolic: bool
) -> DimSplit:
    layouts = nested_layouts(sizes, ranks)
    per_rank = [_ranges(form, layouts, rank) for rank in range(ranks)]
    units = Layout(tuple(tuple(held) for held in per_rank))
    return DimSplit(dim, _size(form, sizes), units, symbolic)


def covers(dims: Sequence[tuple[Item, ...]], placement: Placement) -> bool:
    """Whether the ranks' parts make up the whole value.

    They do unless one atom is split twice: along two dims, or twice in the product of one, the
    ranks would hold the blocks on a diagonal. Segments of a packed dim stand side by side, so the
    same atom may occur in several of them.
    """
    if placement.chain is None:
        return True
    split = [d for i, d in enumerate(dims) if not placement.only or i in placement.only]
    return all(
        sum(_times_split(items, atom) for items in split) <= 1 for atom in placement.chain.atoms
    )


def _times_split(items: Sequence[Item], atom: Atom) -> int:
    """How often an index of a product of items is an index of `atom`."""
    return sum(
        max((_times_split(segment, atom) for segment in item), default=0)
        if isinstance(item, tuple)
        else item is atom
        for item in items
    )


def _size(form: Form, sizes: Sequence[int]) -> int:
    size = 1
    for item in form:
        if isinstance(item, tuple):
            size *= sum(_size(segment, sizes) for segment in item)
        else:
            size *= item if item >= 0 else sizes[-1 - item]
    return size


def _ranges(form: Form, layouts: Sequence[Layout], rank: int) -> list[Range]:
    """Index ranges that `rank` holds of a product of items, major first."""
    if not form:
        return [(0, 1)]
    sizes = [layout.global_size for layout in layouts]
    head, tail = form[0], form[1:]
    rest, inner = _size(tail, sizes), _ranges(tail, layouts, rank)
    outer = _item_ranges(head, layouts, rank)
    if inner == [(0, rest)]:
        return [(start * rest, stop * rest) for start, stop in outer]
    rows = (index for start, stop in outer for index in range(start, stop))
    return _joined([(row * rest + a, row * rest + b) for row in rows for a, b in inner])


def _item_ranges(item: int | tuple[Form, ...], layouts: Sequence[Layout], rank: int) -> list[Range]:
    if not isinstance(item, tuple):
        return [(0, item)] if item >= 0 else list(layouts[-1 - item].ranges[rank])
    sizes = [layout.global_size for layout in layouts]
    found, offset = [], 0
    for segment in item:
        found += [(offset + a, offset + b) for a, b in _ranges(segment, layouts, rank)]
        offset += _size(segment, sizes)
    return _joined(found)


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, stop in ranges:
        if start == stop:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


@dataclass(frozen=True)
class Placement:
    """Replicated, partial, or sharded along a chain."""

    kind: str
    """`R`, `P` or `S`."""
    chain: Chain | None = None
    only: tuple[int, ...] = ()
    """The dims that are split, where the chain runs along others of the value as well: a square
    weight whose rows and columns are one atom is split on either, never on its diagonal."""

    def __str__(self) -> str:
        return self.kind if self.chain is None else f"S({self.chain})"


REPLICATE = Placement("R")
PARTIAL = Placement("P")


@dataclass(frozen=True)
class Sharding:
    """A placement together with what it does to the dims of one value."""

    placement: Placement
    splits: tuple[DimSplit, ...] = ()

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds the value."""
        return self.placement.kind == "R"

    @property
    def is_partial(self) -> bool:
        """Whether the value is the sum of what the ranks hold."""
        return self.placement.kind == "P"

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Dims that are split."""
        return tuple(split.dim for split in self.splits)

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Index ranges of the split dims; empty where they are no constants."""
        layouts = tuple(split.layout for split in self.splits if split.layout is not None)
        return layouts if len(layouts) == len(self.splits) else ()

    def same_as(self, other: Sharding) -> bool:
        """Whether every rank holds the same; chains may differ and still give equal ranges."""
        return self.placement.kind == other.placement.kind and self.splits == other.splits

    @cached_property
    def overlaps(self) -> bool:
        """Whether some element is held by several ranks."""
        ranks = range(len(self.splits[0].parts) if self.splits else 0)
        held = sum(math.prod(split.parts[rank] for split in self.splits) for rank in ranks)
        return held > math.prod(split.whole for split in self.splits)

    def split_of(self, dim: int) -> DimSplit | None:
        """The split of one dim, or None."""
        return next((split for split in self.splits if split.dim == dim), None)

    def fraction(self, rank: int) -> float:
        """Share of the whole value that `rank` holds."""
        share = 1.0
        for split in self.splits:
            share *= split.parts[rank] / split.whole
        return share

    @cached_property
    def largest_fraction(self) -> float:
        """Share of the whole value that the fullest rank holds."""
        ranks = len(self.splits[0].parts) if self.splits else 0
        return max((self.fraction(rank) for rank in range(ranks)), default=1.0)


WHOLE = Sharding(REPLICATE)
SUM = Sharding(PARTIAL)
