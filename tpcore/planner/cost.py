"""What ops and reshards cost, in seconds.

An op costs its roofline time on the largest rank's part,

    max(flops / F, bytes of weights and states / B + bytes of activations / C) + op_seconds

with the rates of the topology's device. A reshard costs what the topology says of its collective.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import onnx_ir as ir

from graph.dims import Dim, Expr, bind
from graph.shapes import Shapes
from graph.weights import bytes_of
from tpcore.factors import NodeFactors
from tpcore.planner.topology import Rates, Topology
from tpcore.planner.topology_files import DEFAULT_TOPOLOGY, load_topology
from tpcore.planner.work import (
    Measure,
    compute_type,
    computed_from_weights,
    moved_bytes,
    multiply_adds,
)
from tpcore.reshard import ReshardKind, reshard_kind
from tpcore.rule import Draws
from tpcore.sharding import Sharding

SHARED_MEMORY_CPU = load_topology(DEFAULT_TOPOLOGY)
"""Two ranks on one server, one core each."""

STATE_POSITIONS = 1024
"""Positions that a KV cache of unknown length is priced for."""
SAME_DATA = ("Reshape", "Flatten", "Cast", "Identity")
"""Ops whose result stands for their operand where weights are counted."""
MATRIX_PRICE_COLLECTIVES = 5
"""Holding the average weight matrix on every rank is priced as this many AllReduces of what goes in
or comes out, whichever is less; of each the latency or the transfer, whichever takes longer.

Tensor parallelism is asked for to hold less per rank: a plan that replicates a matrix to save one
exchange is not what the user wants, one that adds exchanges to split a bias is not either.
"""


@dataclass(frozen=True)
class CostModel:
    """Costs for one graph at given sizes of its symbolic dims."""

    topology: Topology
    shapes: Shapes
    ranks: int
    sizes: Mapping[str, int]
    """Symbolic dim -> size; those missing count as 1."""
    _bytes: dict[ir.Value, int] = field(default_factory=dict)
    _whole: dict[ir.Node, tuple[float, list[float]]] = field(default_factory=dict)
    """Per node the seconds its flops take, and those of moving each of its values."""

    @cached_property
    def rates(self) -> Rates:
        """What a rank's device does in a second while all ranks work."""
        return self.topology.rates(self.ranks)

    def value_bytes(self, value: ir.Value) -> int:
        """Bytes of the whole value."""
        if value not in self._bytes:
            dims, tensor = self.shapes.dims.get(value, ()), value.const_value
            count = math.prod(bind(size, self.sizes) for size in dims)
            self._bytes[value] = bytes_of(value.dtype, count if tensor is None else tensor.size)
        return self._bytes[value]

    def op_seconds(
        self, bound: NodeFactors | None, values: list[tuple[ir.Value, Sharding]]
    ) -> float:
        """Time of an op whose operands and results, in this order, are held as given."""
        node = values[-1][0].producer()
        if node is None:
            raise ValueError("the last value of an op is one of its results")
        if node not in self._whole:
            self._whole[node] = self._unsplit(node, bound, [value for value, _ in values])
        computing, moving = self._whole[node]
        moved = sum(seconds * s.largest_fraction for seconds, (_, s) in zip(moving, values))
        computed = computing * min(s.largest_fraction for _, s in values)
        crowding, draws = 1.0, bound.rule.draws if bound is not None else None
        if bound is not None and draws is not None:
            indices = math.prod(bind(atom.size, self.sizes) for atom in bound.factors[draws.factor])
            moved *= min(1.0, bind(draws.count, self.sizes) / indices)
            crowding = self._crowding(draws.count) if _splits(values, bound, draws) else 1.0
        return crowding * max(computed, moved) + self.rates.op_seconds

    def _unsplit(
        self, node: ir.Node, bound: NodeFactors | None, values: list[ir.Value]
    ) -> tuple[float, list[float]]:
        """Seconds the whole op computes, and seconds of moving each whole value."""
        flops = 2.0 * multiply_adds(node, bound, Measure(self.shapes, self.sizes))
        moved = moved_bytes(node, [(value, self.value_bytes(value)) for value in values])
        moving = [
            self._move_seconds(size, value.const_value is not None or _is_outside(value))
            for value, size in zip(values, moved)
        ]
        return flops / self.rates.flops(compute_type(node)), moving

    def _crowding(self, draws: Dim) -> float:
        """Draws that the fullest rank is expected to get over those of the average one.

        Of m draws over n ranks it gets about m/n + sqrt(m (n-1) ln(n)) / n.
        """
        spread = (self.ranks - 1) * math.log(self.ranks) / bind(draws, self.sizes)
        return min(1 + math.sqrt(spread), self.ranks)

    def _move_seconds(self, size: float, from_memory: bool) -> float:
        """Time to read or write `size` bytes once."""
        if from_memory or size > self.topology.device.cache_bytes:
            return size / self.rates.memory_bytes_per_second
        return size / self.rates.cache_bytes_per_second

    def reshard_seconds(
        self, size: int, have: Sharding, want: Sharding, is_weight: bool = False
    ) -> float:
        """Time of changing how a value of `size` bytes is held; infinite where nothing does it."""
        kind, local = reshard_kind(have, want), self._move_seconds(size, is_weight)
        if kind is ReshardKind.NONE:
            return 0.0
        if is_weight:
            # A weight is cut when the bundle is written; gathering it at run time would undo that.
            return local if have.is_replicated and not want.is_partial else math.inf
        if kind in (ReshardKind.SLICE, ReshardKind.KEEP_ON_ROOT):
            return 2 * local * want.largest_fraction + self.rates.op_seconds
        if kind is ReshardKind.IMPOSSIBLE:
            return math.inf
        return self.topology.collective_seconds(kind, size, self.ranks)

    def held_bytes(self, value: ir.Value, sharding: Sharding) -> float:
        """Bytes of a weight or state on the fullest rank when it is held as given."""
        held = self.value_bytes(value) * sharding.largest_fraction
        if value.const_value is None and self._is_unbound(value):
            held *= STATE_POSITIONS
        return held

    def _is_unbound(self, value: ir.Value) -> bool:
        """Whether a cache's length has no size given, so that it counts as 1.

        The first dim, or the second behind the two of a packed pair of caches, is the batch.
        """
        dims = self.shapes.dims.get(value, ())
        lengths = dims[2:] if dims[:1] == (2,) else dims[1:]
        open_dims = (size for size in lengths if isinstance(size, Expr))
        return any(not size.symbols <= self.sizes.keys() for size in open_dims)


def _is_outside(value: ir.Value) -> bool:
    """Whether a value comes from or goes to the caller, as a state does."""
    return value.is_graph_input() or value.is_graph_output()


def _splits(values: list[tuple[ir.Value, Sharding]], bound: NodeFactors, draws: Draws) -> bool:
    """Whether what is drawn is split over the ranks."""
    chains = (s.placement.chain for _, s in values)
    split = {atom for chain in chains if chain is not None for atom in chain.atoms}
    return not split.isdisjoint(bound.atoms([draws.factor]))


def default_price(graph: ir.Graph, model: CostModel) -> float:
    """Seconds per byte held, such that the average weight matrix is worth a few collectives.

    Weights that the same activations are multiplied by count as one matrix, packed or separate, and
    so does a quantised one with its scales and zero points.
    """
    users: dict[int, set[ir.Value]] = {}
    sizes: dict[int, int] = {}
    passed: dict[int, int] = {}
    derived = computed_from_weights(graph)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) >= 2:
            readers = list(_readers(value, derived))
            operands = (v for user in readers for v in user.inputs if v is not None)
            activations = {
                _source(v) for v in operands if v.const_value is None and v not in derived
            }
            users.setdefault(id(tensor), set()).update(activations)
            sizes[id(tensor)] = bytes_of(tensor.dtype, tensor.size)
            ways = [activations, *({*user.outputs[:1]} for user in readers)]
            passed[id(tensor)] = min(sum(map(model.value_bytes, way)) for way in ways)
    matrices: dict[frozenset[ir.Value], int] = {}
    for key, activations in users.items():
        together = frozenset(activations)
        matrices[together] = max(passed[key], matrices.get(together, 0))
    total = sum(sizes.values())
    exchange = partial(model.topology.collective_seconds, ReshardKind.ALL_REDUCE, ranks=2)
    latency = exchange(0)
    seconds = sum(max(latency, exchange(size) - latency) for size in matrices.values())
    return MATRIX_PRICE_COLLECTIVES * seconds / total if total else 0.0


def _readers(weight: ir.Value, derived: set[ir.Value]) -> Iterator[ir.Node]:
    """Nodes that bring a weight together with activations, behind what dequantises it."""
    for user, _ in weight.uses():
        if all(made in derived for made in user.outputs):
            for made in user.outputs:
                yield from _readers(made, derived)
        else:
            yield user


def _source(value: ir.Value) -> ir.Value:
    """The value that `value` is another shape or type of."""
    node = value.producer()
    while node is not None and node.op_type in SAME_DATA and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value
