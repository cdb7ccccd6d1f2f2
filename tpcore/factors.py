"""Solve the factor equations of all ops at once: which dims of which values are split together.

Every dim of every value is a list of *atoms*, major first. A rule equates dims; equating `[128]`
with `[8, 16]` refines the atom 128 into the product 8 · 16 everywhere it occurs, a packed dim
refines its atom into segments. In the end two dims that must be split alike share an atom, across
the whole graph, so a head count met in a Reshape reaches the weight of the projection by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from graph.shapes import Context, Shapes
from tpcore.atoms import (
    Atom,
    Atoms,
    Item,
    atoms_in,
    extent,
    flat_segments,
    normal,
    unify_segments,
)
from tpcore.ops import OPS
from tpcore.rule import DimSpec, Rule, TensorSpec


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
    _normal: dict[ir.Value, list[tuple[Item, ...]]] = field(default_factory=dict)

    def dims_of(self, value: ir.Value) -> list[Atoms]:
        """Atoms of each dim of `value`; none for a value of unknown shape."""
        if value not in self.dims:
            sizes = self.shapes.dims.get(value, ())
            self.dims[value] = [[Atom(size)] for size in sizes]
        return self.dims[value]

    def normal_dims(self, value: ir.Value) -> list[tuple[Item, ...]]:
        """Each dim of `value` in normal form, once the equations are solved."""
        if value not in self._normal:
            self._normal[value] = [normal(atoms) for atoms in self.dims_of(value)]
        return self._normal[value]


def solve_factors(graph: ir.Graph, shapes: Shapes) -> FactorGraph:
    """Bind the rules of all nodes and solve the equations."""
    solved = FactorGraph(shapes)
    for node in graph:
        spec = OPS.get((node.domain, node.op_type))
        rule = spec.rule_of(Context(node, shapes)) if spec is not None else None
        if rule is not None and _fits(node, rule, shapes):
            solved.nodes[node] = _bind(solved, node, rule)
    for node, bound in solved.nodes.items():
        for value, tensor in tensors_of(node, bound.rule):
            bound.unmatched |= _unmatched(solved, value, tensor, bound)
    return solved


def tensors_of(node: ir.Node, rule: Rule) -> list[tuple[ir.Value, TensorSpec | None]]:
    """Operands and results of a node with their place in the rule."""
    values = [*zip(node.inputs, rule.operands), *zip(node.outputs, rule.results)]
    return [(value, tensor) for value, tensor in values if value is not None]


def _fits(node: ir.Node, rule: Rule, shapes: Shapes) -> bool:
    """Whether all values that matter have the rank the rule gives them.

    Splitting an operand without knowing what becomes of a result would be wrong.
    """
    return all(
        tensor is None or len(shapes.dims.get(value, ())) == len(tensor)
        for value, tensor in tensors_of(node, rule)
        if value.producer() is not node or value.uses() or value.is_graph_output()
    )


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
    packed = Atom(extent(segments))
    packed.segments = segments
    return tuple(flat_segments(packed))


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
