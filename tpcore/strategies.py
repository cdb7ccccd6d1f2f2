"""Generate the ways to run one op, from its rule: placements of its operands and results.

- all replicated: always there;
- one per chain the rule lets through: operands and results that hold the chain are sharded; where
  the chain is contracted the results are partial sums, and addends (a bias) become partial too;
- where the op is linear in some operands: those partial, the others replicated, the results
  partial.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import onnx_ir as ir

from graph.weights import is_index
from tpcore.atoms import Atom, atoms_in
from tpcore.factors import FactorGraph, NodeFactors, tensors_of
from tpcore.ops import OPS
from tpcore.rule import TensorSpec
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
    covers,
    split_dim,
)

LOOKUPS = ("Gather", "GatherBlockQuantized")
"""Ops that look rows up, of which a rank must hold one range."""


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
        self._atoms: dict[ir.Value, list[set[Atom]]] = {}
        self._shardings: dict[tuple[ir.Value, Placement], Sharding] = {}
        self._forms: dict[object, int] = {}
        if splittable is None:
            weights = [v for v in graph.initializers.values() if _is_weight(v)]
            splittable = weights
        self.chains = find_chains(factors, splittable, ranks) if ranks > 1 else []
        self._chains_of: dict[Atom, list[Chain]] = {}
        self._position: dict[Atom, int] = {}
        for position, chain in enumerate(self.chains):
            for atom in chain.atoms:
                self._chains_of.setdefault(atom, []).append(chain)
                self._position.setdefault(atom, position)

    def atoms_of(self, value: ir.Value) -> list[set[Atom]]:
        """Atoms of each dim of `value`."""
        if value not in self._atoms:
            self._atoms[value] = [atoms_in(items) for items in self.factors.normal_dims(value)]
        return self._atoms[value]

    def sharding(self, value: ir.Value, placement: Placement) -> Sharding:
        """What `placement` does to the dims of `value`."""
        if placement.chain is None:
            return WHOLE if placement.kind == "R" else SUM
        key = (value, placement)
        if key not in self._shardings:
            dims = self.factors.normal_dims(value)
            found = [
                split_dim(i, items, placement.chain)
                for i, items in enumerate(dims)
                if not placement.only or i in placement.only
            ]
            splits = tuple(split for split in found if isinstance(split, DimSplit))
            self._shardings[key] = Sharding(placement, splits)
        return self._shardings[key]

    def form(self, value: ir.Value, placement: Placement) -> int:
        """A number that is the same where values are held alike, as those of repeated layers."""
        sharding = self.sharding(value, placement)
        return self._forms.setdefault((placement.kind, sharding.splits), len(self._forms))

    def strategies(self, node: ir.Node) -> list[Strategy]:
        """All ways to run `node`."""
        whole = Strategy(
            "replicated", (REPLICATE,) * len(node.inputs), (REPLICATE,) * len(node.outputs)
        )
        bound = self.factors.nodes.get(node)
        if bound is None or self.ranks == 1:
            return [whole]
        spec = OPS[node.domain, node.op_type]
        factors = {name: bound.atoms([name]) for name in bound.factors}
        chains = dict.fromkeys(
            chain
            for atoms in factors.values()
            for atom in sorted(atoms, key=self._order)
            for chain in self._chains_of.get(atom, ())
        )
        split = [s for chain in chains for s in self._split(node, spec, bound, factors, chain)]
        linear = (_partial(node, spec, operands) for operands in spec.linear)
        return [whole, *split, *(s for s in linear if s is not None)]

    def _split(
        self,
        node: ir.Node,
        spec: OpSpec,
        bound: NodeFactors,
        factors: dict[str, set[Atom]],
        chain: Chain,
    ) -> list[Strategy]:
        """Ways to run `node` split along `chain`: none where its rule does not let it through.

        Where one atom is two factors of the op (a square weight under a residual connection, whose
        rows and columns are the same atom), each of them is split by itself.
        """
        names = {name for name, atoms in factors.items() if not atoms.isdisjoint(chain.atoms)}
        tensors = tensors_of(node, bound.rule)
        diagonal = any(self._runs_along_two_dims(value, chain) for value, _ in tensors)
        groups = _grouped_by_dim(names, tensors) if diagonal else [names]
        found = (self._split_factors(node, spec, bound, chain, group) for group in groups)
        return [strategy for strategy in found if strategy is not None]

    def _runs_along_two_dims(self, value: ir.Value, chain: Chain) -> bool:
        found = [atom for atoms in self.atoms_of(value) for atom in atoms.intersection(chain.atoms)]
        return len(found) != len(set(found))

    def _order(self, atom: Atom) -> int:
        """Where the first chain of an atom stands: sets have no order, plans must have one."""
        return self._position.get(atom, -1)

    def _split_factors(
        self, node: ir.Node, spec: OpSpec, bound: NodeFactors, chain: Chain, names: set[str]
    ) -> Strategy | None:
        """Run `node` with the factors `names` split along `chain`, or None."""
        atoms, rule = set(chain.atoms), bound.rule
        if not names or atoms & bound.unmatched or names & rule.whole:
            return None
        operands = [
            self._placement(value, tensor, chain, names)
            for value, tensor in zip_longest(node.inputs, rule.operands)
        ]
        results = [
            self._placement(value, tensor, chain, names)
            for value, tensor in zip_longest(node.outputs, rule.results)
        ]
        if spec.reads_shape_only:
            results = [REPLICATE] * len(results)
        summed = names & rule.sums
        if summed:
            if bound.atoms(summed) & atoms != atoms or any(r != REPLICATE for r in results):
                return None
            results = [PARTIAL] * len(results)
            for index in spec.addends:
                if index < len(operands) and operands[index] == REPLICATE:
                    operands[index] = PARTIAL
        if all(place == REPLICATE for place in (*operands, *results)):
            return None
        places = [*zip(node.inputs, operands), *zip(node.outputs, results)]
        if not all(v is None or covers(self.factors.normal_dims(v), p) for v, p in places):
            return None
        if summed and (self._counts_twice(node, operands) or not _can_be_summed(node)):
            return None
        if not self._is_local(node, operands, results):
            return None
        return Strategy(f"split {chain}", tuple(operands), tuple(results))

    def _counts_twice(self, node: ir.Node, operands: list[Placement]) -> bool:
        """Whether ranks share indices that are summed over: a packed dim of which the chain splits
        one segment, the others being whole on every rank."""
        places = [(v, p) for v, p in zip(node.inputs, operands) if v is not None and p.chain]
        return any(self.sharding(value, place).overlaps for value, place in places)

    def _placement(
        self, value: ir.Value | None, tensor: TensorSpec | None, chain: Chain, names: set[str]
    ) -> Placement:
        """How an operand or result is held when the factors `names` are split along `chain`."""
        if value is None or tensor is None:
            return REPLICATE
        dims = [
            dim
            for dim, atoms in enumerate(self.atoms_of(value))
            if not atoms.isdisjoint(chain.atoms)
        ]
        split = [
            dim
            for dim in dims
            if dim < len(tensor) and any(name in names for part in tensor[dim] for name in part)
        ]
        if not split:
            return REPLICATE
        return Placement("S", chain, () if split == dims else tuple(split))

    def _is_local(self, node: ir.Node, operands: list[Placement], results: list[Placement]) -> bool:
        """Whether every rank can work on its part: a looked-up table needs one range per rank."""
        if node.op_type not in LOOKUPS or results[0] != PARTIAL or node.inputs[0] is None:
            return True
        layouts = self.sharding(node.inputs[0], operands[0]).layouts
        return len(layouts) == 1 and all(len(held) == 1 for held in layouts[0].ranges)


def _can_be_summed(node: ir.Node) -> bool:
    """Whether the results are numbers: of booleans and strings there are no sums."""
    no_numbers = (ir.DataType.BOOL, ir.DataType.STRING)
    return not any(value.dtype in no_numbers for value in node.outputs)


def _grouped_by_dim(
    names: set[str], tensors: list[tuple[ir.Value, TensorSpec | None]]
) -> list[set[str]]:
    """Factors that share a dim of some operand or result are split together, others apart."""
    groups = [{name} for name in sorted(names)]
    for _, tensor in tensors:
        for dim in tensor or ():
            shared = names & {name for segment in dim for name in segment}
            touched = [group for group in groups if group & shared]
            if len(touched) > 1:
                groups = [g for g in groups if g not in touched] + [set().union(*touched)]
    return groups


def _partial(node: ir.Node, spec: OpSpec, operands: tuple[int, ...]) -> Strategy | None:
    """Run a linear op on partial operands; what it adds to their product is partial as well."""
    operands = operands or tuple(range(len(node.inputs)))
    values = [node.inputs[i] for i in operands if i < len(node.inputs)]
    if len(values) != len(operands) or any(
        v is None or v.dtype is None or not v.dtype.is_floating_point() for v in values
    ):
        return None
    partial = {*operands, *spec.addends}
    places = tuple(PARTIAL if i in partial else REPLICATE for i in range(len(node.inputs)))
    result = REPLICATE if spec.reads_shape_only else PARTIAL
    return Strategy("partial", places, (result,) * len(node.outputs))


def find_chains(factors: FactorGraph, splittable: Iterable[ir.Value], ranks: int) -> list[Chain]:
    """All chains that split some dim of some value into `ranks` parts, none of them empty."""
    starts: dict[Atom, None] = {}
    followers: dict[Atom, dict[Atom, None]] = {}
    for value in splittable:
        for product in _products(factors, value):
            starts.update(dict.fromkeys(product[:1]))
    for value in list(factors.dims):
        for product in _products(factors, value):
            for major, minor in pairwise(product):
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
        and tensor.dtype != ir.DataType.STRING
        and not is_index(tensor)
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
