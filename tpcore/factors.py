"""Solve the factor equations of all ops at once: which dims of which values are split together.

Every dim of every value is a list of *atoms*, major first. A rule equates dims; equating `[128]` with
`[8, 16]` refines the atom 128 into the product 8 · 16 everywhere it occurs, a packed dim refines its
atom into segments. In the end two dims that must be split alike share an atom, across the whole
graph, so a head count met in a Reshape reaches the weight of the projection by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graph.dims import Dim, divide, product
from graph.shapes import Context, Shapes
from tpcore.ops import OPS
from tpcore.rule import DimSpec, Rule, TensorSpec


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
        else:
            return
        a, b = resolve(a), resolve(b)


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
    if len(segments) == 1:
        return unify(atoms, segments[0])
    if len(atoms) != 1:
        return None
    atom = atoms[0]
    if atom.segments is None:
        atom.segments = [list(segment) for segment in segments]
        return None
    have = [list(segment) for segment in atom.segments]
    want = [list(segment) for segment in segments]
    while have and want:
        _match_first(have, want)
    return None


def _match_first(have: list[Atoms], want: list[Atoms]) -> None:
    """Take equal stretches off both lists and equate them; the longer side must be one atom."""
    stretch_a, stretch_b = [have.pop(0)], [want.pop(0)]
    while (a := _extent(stretch_a)) != (b := _extent(stretch_b)):
        if a < b and have:
            stretch_a.append(have.pop(0))
        elif b < a and want:
            stretch_b.append(want.pop(0))
        else:
            have.clear()
            return
    if len(stretch_a) == 1:
        unify_segments(stretch_a[0], stretch_b)
    elif len(stretch_b) == 1:
        unify_segments(stretch_b[0], stretch_a)


def _extent(segments: Sequence[Sequence[Atom]]) -> int:
    sizes = [product(atom.size for atom in segment) for segment in segments]
    return sum(size for size in sizes if isinstance(size, int))


Item = Any
"""Part of a dim in normal form: an atom, or a tuple of segments (each a tuple of items)."""


def normal(atoms: Iterable[Atom]) -> tuple[Item, ...]:
    """A dim in a form that is equal where the dims are the same."""
    return tuple(
        atom if atom.segments is None else tuple(_flat_segments(atom)) for atom in resolve(atoms)
    )


def _flat_segments(atom: Atom) -> list[tuple[Item, ...]]:
    flat: list[tuple[Item, ...]] = []
    for segment in atom.segments or []:
        items = resolve(segment)
        if len(items) == 1 and items[0].segments is not None:
            flat.extend(_flat_segments(items[0]))
        else:
            flat.append(normal(items))
    return flat


def atoms_in(items: Iterable[Item]) -> set[Atom]:
    """All atoms of a dim in normal form."""
    found: set[Atom] = set()
    for item in items:
        found |= atoms_in(i for segment in item for i in segment) if isinstance(item, tuple) else {
            item
        }
    return found


@dataclass
class NodeFactors:
    """The rule of one node, bound to atoms."""

    rule: Rule
    factors: dict[str, Atoms]
    unmatched: set[Atom] = field(default_factory=set)
    """Atoms of its operands and results that the rule does not cover: they must stay whole here."""

    def atoms(self, names: Iterable[str]) -> set[Atom]:
        """All atoms of the named factors."""
        return set().union(*(atoms_in(normal(self.factors[name])) for name in names))


@dataclass
class FactorGraph:
    """Atoms of every value and node of a graph."""

    shapes: Shapes
    dims: dict[ir.Value, list[Atoms]] = field(default_factory=dict)
    nodes: dict[ir.Node, NodeFactors] = field(default_factory=dict)

    def dims_of(self, value: ir.Value) -> list[Atoms]:
        """Atoms of each dim of `value`; none for a value of unknown shape."""
        if value not in self.dims:
            sizes = self.shapes.dims.get(value, ())
            self.dims[value] = [[Atom(size)] for size in sizes]
        return self.dims[value]

    def normal_dims(self, value: ir.Value) -> list[tuple[Item, ...]]:
        """Each dim of `value` in normal form."""
        return [normal(atoms) for atoms in self.dims_of(value)]


def solve_factors(graph: ir.Graph, shapes: Shapes) -> FactorGraph:
    """Bind the rules of all nodes and solve the equations."""
    solved = FactorGraph(shapes)
    for node in graph:
        spec = OPS.get((node.domain, node.op_type))
        rule = spec.rule_of(Context(node, shapes)) if spec is not None else None
        if rule is not None:
            solved.nodes[node] = _bind(solved, node, rule)
    for node, bound in solved.nodes.items():
        for value, tensor in tensors_of(node, bound.rule):
            bound.unmatched |= _unmatched(solved, value, tensor, bound)
    return solved


def tensors_of(node: ir.Node, rule: Rule) -> list[tuple[ir.Value, TensorSpec | None]]:
    """Operands and results of a node with their place in the rule."""
    values = [*zip(node.inputs, rule.operands), *zip(node.outputs, rule.results)]
    return [(value, tensor) for value, tensor in values if value is not None]


def _bind(solved: FactorGraph, node: ir.Node, rule: Rule) -> NodeFactors:
    factors: dict[str, Atoms] = {name: [Atom(size)] for name, size in rule.sizes.items()}
    bound = NodeFactors(rule, factors)
    for value, tensor in tensors_of(node, rule):
        dims = solved.dims_of(value)
        if tensor is not None and len(tensor) == len(dims):
            for atoms, spec in zip(dims, tensor, strict=True):
                _bind_dim(atoms, spec, factors)
    return bound


def _bind_dim(atoms: Atoms, spec: DimSpec, factors: dict[str, Atoms]) -> None:
    if len(spec) == 1 and len(spec[0]) == 1 and spec[0][0] not in factors:
        factors[spec[0][0]] = list(atoms)
        return
    unify_segments(atoms, [[a for name in segment for a in factors[name]] for segment in spec])


def _unmatched(
    solved: FactorGraph, value: ir.Value, tensor: TensorSpec | None, bound: NodeFactors
) -> set[Atom]:
    dims = solved.dims_of(value)
    if tensor is None or len(tensor) != len(dims):
        return atoms_in(item for atoms in dims for item in normal(atoms))
    lost: set[Atom] = set()
    for atoms, spec in zip(dims, tensor, strict=True):
        have = normal(atoms)
        segments = [[a for name in segment for a in bound.factors[name]] for segment in spec]
        want = normal(segments[0]) if len(spec) == 1 else (_normal_segments(segments),)
        lost |= _outside_common_ends(have, want)
    return lost


def _normal_segments(segments: list[Atoms]) -> tuple[Item, ...]:
    packed = Atom(_extent(segments))
    packed.segments = segments
    return tuple(_flat_segments(packed))


def _outside_common_ends(have: tuple[Item, ...], want: tuple[Item, ...]) -> set[Atom]:
    if have == want:
        return set()
    head = 0
    while head < min(len(have), len(want)) and have[head] == want[head]:
        head += 1
    tail = 0
    while tail < min(len(have), len(want)) - head and have[-1 - tail] == want[-1 - tail]:
        tail += 1
    return atoms_in(have[head : len(have) - tail]) | atoms_in(want[head : len(want) - tail])
