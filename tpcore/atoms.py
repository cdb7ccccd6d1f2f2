"""Atoms: the indivisible pieces of dims, and the equations between products of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from graph.dims import Dim, divide, product


class Atom:
    """An indivisible piece of a dim; after `unify`, one of several names for the same thing."""

    __slots__ = ("parent", "parts", "segments", "size")

    def __init__(self, size: Dim) -> None:
        self.size = size
        self.parent: Atom | None = None
        self.parts: list[Atom] | None = None
        """Product of smaller atoms, where refined."""
        self.segments: list[list[Atom]] | None = None
        """Direct sum of products, where packed."""

    def root(self) -> Atom:
        """The atom this one stands for."""
        atom = self
        while atom.parent is not None:
            if atom.parent.parent is not None:
                atom.parent = atom.parent.parent
            atom = atom.parent
        return atom

    def __repr__(self) -> str:
        return str(self.size)


Atoms = list[Atom]


def resolve(atoms: Iterable[Atom]) -> Atoms:
    """Roots, with refined atoms replaced by their parts and atoms of size one left out."""
    found: Atoms = []
    for atom in atoms:
        root = atom.root()
        if root.parts is not None:
            found.extend(resolve(root.parts))
        elif root.size != 1:
            found.append(root)
    return found


def unify(left: Sequence[Atom], right: Sequence[Atom]) -> None:
    """Make two products of atoms the same as far as their sizes allow, from the major end."""
    a, b = resolve(left), resolve(right)
    while a and b:
        x, y = a.pop(0), b.pop(0)
        if x is y:
            continue
        if x.size == y.size:
            _merge(x, y)
        elif (rest := divide(x.size, y.size)) is not None and x.segments is None:
            a.insert(0, _refine(x, y, rest))
        elif (rest := divide(y.size, x.size)) is not None and y.segments is None:
            b.insert(0, _refine(y, x, rest))
        elif (shared := _common([x, *a], [y, *b])) is not None:
            a.insert(0, _refine(x, shared, divide(x.size, shared.size) or 1))
            b.insert(0, _refine(y, shared, divide(y.size, shared.size) or 1))
        else:
            return
        a, b = resolve(a), resolve(b)


def _common(left: Atoms, right: Atoms) -> Atom | None:
    """A factor of the first atoms of equal products, neither of which divides the other.

    28 heads of 96 and 21 blocks of 128 are 7 groups of 4 heads or 3 blocks.
    """
    x, y = left[0], right[0]
    if not (isinstance(x.size, int) and isinstance(y.size, int)) or x.segments or y.segments:
        return None
    shared = math.gcd(x.size, y.size)
    alike = product(atom.size for atom in left) == product(atom.size for atom in right)
    return Atom(shared) if alike and shared > 1 else None


def _refine(big: Atom, major: Atom, rest: Dim) -> Atom:
    minor = Atom(rest)
    big.parts = [major, minor]
    return minor


def _merge(x: Atom, y: Atom) -> None:
    if y.segments is not None:
        x, y = y, x
    y.parent = x
    if x.segments is not None and y.segments is not None:
        segments, y.segments = y.segments, None
        unify_segments([x], segments)


def unify_segments(packed: Sequence[Atom], segments: Sequence[Sequence[Atom]]) -> None:
    """Equate a dim with the direct sum of `segments`; sizes must be ints."""
    atoms = resolve(packed)
    if len(segments) > 1:
        segments = [segment for segment in segments if extent([segment])]
    if len(segments) <= 1:
        return unify(atoms, segments[0]) if segments else None
    if len(atoms) != 1:
        return None
    atom = atoms[0]
    if atom.segments is None:
        atom.segments = [list(segment) for segment in segments]
        return None
    have, want = _flat(atom.segments), _flat(segments)
    borders = {*_borders(have), *_borders(want)}
    for x, y in zip(_cut(have, borders), _cut(want, borders), strict=False):
        unify(x, y)
    return None


def _flat(segments: Sequence[Sequence[Atom]]) -> list[Atoms]:
    """Segments with those that are packed themselves replaced by their own."""
    flat: list[Atoms] = []
    for segment in segments:
        atoms = resolve(segment)
        inner = atoms[0].segments if len(atoms) == 1 else None
        flat += [list(segment)] if inner is None else _flat(inner)
    return flat


def _borders(segments: Sequence[Sequence[Atom]]) -> list[int]:
    """Where segments end."""
    return list(accumulate(extent([segment]) for segment in segments))


def _cut(segments: Sequence[Atoms], borders: set[int]) -> list[Atoms]:
    """Segments of which the single atoms that lie across borders are packed in turn.

    A product lying across a border cannot be cut: it ends the list.
    """
    pieces: list[Atoms] = []
    start = 0
    for segment in segments:
        stop = start + extent([segment])
        inner = sorted(border for border in borders if start < border < stop)
        atoms = resolve(segment)
        if not inner:
            pieces.append(list(segment))
        elif len(atoms) == 1:
            atoms[0].segments = [[Atom(b - a)] for a, b in pairwise([start, *inner, stop])]
            pieces += [list(piece) for piece in atoms[0].segments]
        else:
            return pieces
        start = stop
    return pieces


def extent(segments: Sequence[Sequence[Atom]]) -> int:
    sizes = [product(atom.size for atom in segment) for segment in segments]
    return sum(size for size in sizes if isinstance(size, int))


Item = Any
"""Part of a dim in normal form: an atom, or a tuple of segments (each a tuple of items)."""


def normal(atoms: Iterable[Atom]) -> tuple[Item, ...]:
    """A dim in a form that is equal where the dims are the same."""
    return tuple(
        atom if atom.segments is None else tuple(flat_segments(atom)) for atom in resolve(atoms)
    )


def flat_segments(atom: Atom) -> list[tuple[Item, ...]]:
    flat: list[tuple[Item, ...]] = []
    for segment in atom.segments or []:
        if not extent([segment]):
            continue
        items = resolve(segment)
        if len(items) == 1 and items[0].segments is not None:
            flat.extend(flat_segments(items[0]))
        else:
            flat.append(normal(items))
    return flat


def atoms_in(items: Iterable[Item]) -> set[Atom]:
    """All atoms of a dim in normal form."""
    found: set[Atom] = set()
    for item in items:
        found |= (
            atoms_in(i for segment in item for i in segment) if isinstance(item, tuple) else {item}
        )
    return found
