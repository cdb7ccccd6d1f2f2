"""Generate the ways to run one op, from its rule: placements of its operands and results.

- all replicated: always there;
- one per chain the rule lets through: operands and results that hold the chain are sharded; where the
  chain is contracted the results are partial sums, and addends (a bias) become partial too;
- where the op is linear in some operands: those partial, the others replicated, the results partial.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from tpcore.atoms import Atom, atoms_in
from tpcore.factors import FactorGraph, NodeFactors
from tpcore.ops import OPS
from tpcore.rules.spec import OpSpec
from tpcore.sharding import (
    PARTIAL,
    REPLICATE,
    SUM,
    WHOLE,
    Chain,
    DimSplit,
    Placement,
    Sharding,
    split_dim,
)


@dataclass(frozen=True)
class Strategy:
    """Placements of the operands and results of one node."""

    name: str
    operands: tuple[Placement, ...]
    results: tuple[Placement, ...]


class StrategySpace:
    """Chains, shardings of values and strategies of nodes for one graph on `ranks` ranks."""

    def __init__(
        self,
        graph: ir.Graph,
        factors: FactorGraph,
        ranks: int,
        splittable: Iterable[ir.Value] | None = None,
    ) -> None:
        """Chains are those that split one of `splittable`, which are the weights if not given."""
        self.graph = graph
        self.factors = factors
        self.ranks = ranks
        self._atoms: dict[ir.Value, set[Atom]] = {}
        self._shardings: dict[tuple[ir.Value, Placement], Sharding] = {}
        if splittable is None:
            splittable = [v for v in graph.initializers.values() if _is_weight(v)]
        self.chains = find_chains(factors, splittable, ranks) if ranks > 1 else []

    def atoms_of(self, value: ir.Value | None) -> set[Atom]:
        """All atoms of the dims of `value`."""
        if value is None:
            return set()
        if value not in self._atoms:
            dims = self.factors.normal_dims(value)
            self._atoms[value] = atoms_in(item for items in dims for item in items)
        return self._atoms[value]

    def sharding(self, value: ir.Value, placement: Placement) -> Sharding:
        """What `placement` does to the dims of `value`."""
        if placement.chain is None:
            return WHOLE if placement.kind == "R" else SUM
        key = (value, placement)
        if key not in self._shardings:
            dims = self.factors.normal_dims(value)
            found = [split_dim(i, items, placement.chain) for i, items in enumerate(dims)]
            splits = tuple(split for split in found if isinstance(split, DimSplit))
            self._shardings[key] = Sharding(placement, splits)
        return self._shardings[key]

    def is_diagonal(self, value: ir.Value | None, chain: Chain) -> bool:
        """Whether one atom of `chain` runs along two dims of `value`: the ranks' parts would be the
        blocks on a diagonal, which do not cover it."""
        if value is None:
            return False
        found: list[Atom] = []
        for items in self.factors.normal_dims(value):
            found += atoms_in(items) & set(chain.atoms)
        return len(found) != len(set(found))

    def strategies(self, node: ir.Node) -> list[Strategy]:
        """All ways to run `node`."""
        whole = Strategy(
            "replicated", (REPLICATE,) * len(node.inputs), (REPLICATE,) * len(node.outputs)
        )
        bound = self.factors.nodes.get(node)
        if bound is None or self.ranks == 1:
            return [whole]
        spec = OPS[node.domain, node.op_type]
        split = (self._split(node, spec, bound, chain) for chain in self.chains)
        linear = (_partial(node, operands) for operands in spec.linear)
        return [whole, *(s for s in (*split, *linear) if s is not None)]

    def _split(
        self, node: ir.Node, spec: OpSpec, bound: NodeFactors, chain: Chain
    ) -> Strategy | None:
        """Run `node` split along `chain`, or None where its rule does not let the chain through."""
        atoms = set(chain.atoms)
        shard = Placement("S", chain)
        held = [not atoms.isdisjoint(self.atoms_of(v)) for v in node.inputs]
        made = [not atoms.isdisjoint(self.atoms_of(v)) for v in node.outputs]
        if not (any(held) or any(made)):
            return None
        if any(self.is_diagonal(v, chain) for v in (*node.inputs, *node.outputs)):
            return None
        if atoms & bound.unmatched or atoms & bound.atoms(bound.rule.whole & bound.factors.keys()):
            return None
        results = [shard if has else REPLICATE for has in made]
        operands = [shard if has else REPLICATE for has in held]
        if spec.reads_shape_only:
            return Strategy(f"split {chain}", tuple(operands), (REPLICATE,) * len(made))
        contracted = atoms & bound.atoms(bound.rule.sums & bound.factors.keys())
        if contracted:
            if contracted != atoms or any(made):
                return None
            results = [PARTIAL] * len(made)
            for index in spec.addends:
                if index < len(operands):
                    operands[index] = PARTIAL
        if not self._is_local(node, operands, results):
            return None
        return Strategy(f"split {chain}", tuple(operands), tuple(results))

    def _is_local(
        self, node: ir.Node, operands: list[Placement], results: list[Placement]
    ) -> bool:
        """Whether every rank can work on what it holds: a looked-up table needs one range per rank."""
        if node.op_type != "Gather" or results[0] != PARTIAL or node.inputs[0] is None:
            return True
        layouts = self.sharding(node.inputs[0], operands[0]).layouts
        return len(layouts) == 1 and all(len(held) == 1 for held in layouts[0].ranges)


def _partial(node: ir.Node, operands: tuple[int, ...]) -> Strategy | None:
    """Run a linear op on partial operands."""
    values = [node.inputs[i] for i in operands if i < len(node.inputs)]
    if len(values) != len(operands) or any(
        v is None or v.dtype is None or not v.dtype.is_floating_point() for v in values
    ):
        return None
    if node.op_type == "Sum" and len(operands) != len(node.inputs):
        return None
    places = tuple(PARTIAL if i in operands else REPLICATE for i in range(len(node.inputs)))
    return Strategy("partial", places, (PARTIAL,) * len(node.outputs))


def find_chains(factors: FactorGraph, splittable: Iterable[ir.Value], ranks: int) -> list[Chain]:
    """All chains that split some dim of some value into `ranks` parts, none of them empty."""
    starts: dict[Atom, None] = {}
    followers: dict[Atom, dict[Atom, None]] = {}
    for value in splittable:
        for product in _products(factors, value):
            starts.update(dict.fromkeys(product[:1]))
    for value in list(factors.dims):
        for product in _products(factors, value):
            for major, minor in zip(product, product[1:], strict=False):
                followers.setdefault(major, {})[minor] = None
    found: list[Chain] = []
    for atom in starts:
        found += _extend((atom,), followers, ranks)
    return found


def _extend(
    atoms: tuple[Atom, ...], followers: dict[Atom, dict[Atom, None]], ranks: int
) -> list[Chain]:
    size = 1
    for atom in atoms:
        if not isinstance(atom.size, int):
            return []
        size *= atom.size
    if size >= ranks:
        return [Chain(atoms, ranks)]
    found: list[Chain] = []
    for minor in followers.get(atoms[-1], {}):
        if minor not in atoms:
            found += _extend((*atoms, minor), followers, ranks)
    return found


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and not tensor.dtype.is_integer()
        and sum(size > 1 for size in tensor.shape.numpy()) >= 2
    )


def _products(factors: FactorGraph, value: ir.Value) -> Iterable[list[Atom]]:
    """Every product of atoms in the dims of `value`, those inside packed segments included."""
    pending = list(factors.normal_dims(value))
    while pending:
        items = pending.pop()
        yield [item for item in items if not isinstance(item, tuple)]
        for item in items:
            if isinstance(item, tuple):
                pending.extend(item)
