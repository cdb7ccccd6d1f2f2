"""What ops and reshards cost, in seconds.

An op costs its roofline time on the largest rank's part: max(flops / F, bytes / B), where weights
come from memory and activations, just written by another op, mostly from cache. A reshard costs
alpha + bytes / beta of its collective, bytes being the lower bound of `graph.dialect`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graph.dims import Expr, bind, product
from graph.shapes import Shapes
from graph.weights import bytes_of
from tpcore.factors import NodeFactors
from tpcore.reshard import ReshardKind, reshard_kind
from tpcore.sharding import Sharding


@dataclass(frozen=True)
class Topology:
    """One kind of device and the link between its ranks."""

    name: str
    flops_per_second: float
    """Multiply-adds count twice."""
    memory_bytes_per_second: float
    cache_bytes_per_second: float
    alpha_seconds: Mapping[ReshardKind, float] = field(default_factory=dict)
    """Latency per collective."""
    link_bytes_per_second: float = 1e9
    """Bytes a rank sends per second."""


SHARED_MEMORY_CPU = Topology(
    name="cpu-shared-memory",
    flops_per_second=1e11,
    memory_bytes_per_second=1.2e10,
    cache_bytes_per_second=5e10,
    alpha_seconds={
        ReshardKind.ALL_REDUCE: 7e-6,
        ReshardKind.ALL_GATHER: 5e-6,
        ReshardKind.REDUCE_SCATTER: 6e-6,
        ReshardKind.ALL_TO_ALL: 6e-6,
    },
    link_bytes_per_second=5e9,
)
"""Two ranks on one server, one core each: measured there, as order of magnitude."""

STATE_POSITIONS = 1024
"""Positions that a KV cache of unknown length is priced for."""
MATRIX_PRICE_COLLECTIVES = 4
"""Holding the average weight matrix on every rank is priced as this many collectives.

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
    price_per_byte: float
    """Seconds charged per byte of weights a rank holds."""
    _bytes: dict[ir.Value, int] = field(default_factory=dict)

    def value_bytes(self, value: ir.Value) -> int:
        """Bytes of the whole value."""
        if value not in self._bytes:
            dims = self.shapes.dims.get(value, ())
            count = math.prod(bind(size, self.sizes) for size in dims)
            self._bytes[value] = bytes_of(value.dtype, count)
        return self._bytes[value]

    def op_seconds(
        self, bound: NodeFactors | None, values: list[tuple[ir.Value, Sharding]]
    ) -> float:
        """Roofline time of an op whose operands and results are held as given."""
        moved = sum(self.read_seconds(v) * s.largest_fraction for v, s in values)
        flops = 0.0
        if bound is not None and bound.rule.sums:
            sizes = (product(a.size for a in atoms) for atoms in bound.factors.values())
            flops = 2.0 * math.prod(bind(size, self.sizes) for size in sizes)
            flops *= min((s.largest_fraction for _, s in values), default=1.0)
        return max(flops / self.topology.flops_per_second, moved)

    def read_seconds(self, value: ir.Value) -> float:
        """Time to move the whole value once."""
        weight = value.const_value is not None
        speed = self.topology.memory_bytes_per_second if weight else None
        return self.value_bytes(value) / (speed or self.topology.cache_bytes_per_second)

    def reshard_seconds(self, value: ir.Value, have: Sharding, want: Sharding) -> float:
        """Time of changing how `value` is held; infinite where no collective does it."""
        kind = reshard_kind(have, want)
        size, local = self.value_bytes(value), self.read_seconds(value)
        if kind is ReshardKind.NONE:
            return 0.0
        if value.const_value is not None:
            # A weight is cut when the bundle is written; gathering it at run time would undo that.
            return local if have.is_replicated and not want.is_partial else math.inf
        if kind in (ReshardKind.SLICE, ReshardKind.KEEP_ON_ROOT):
            return 2 * local * want.largest_fraction
        if kind is ReshardKind.IMPOSSIBLE:
            return math.inf
        sent = size * kind.bytes_factor(self.ranks)
        return (
            self.topology.alpha_seconds[kind]
            + sent / self.topology.link_bytes_per_second
            + 2 * local
        )

    def holding_seconds(self, value: ir.Value, sharding: Sharding) -> float:
        """Price of holding a weight or a state as given."""
        held = self.value_bytes(value) * sharding.largest_fraction
        if value.const_value is None and self._is_unbound(value):
            held *= STATE_POSITIONS
        return self.price_per_byte * held

    def _is_unbound(self, value: ir.Value) -> bool:
        """Whether a symbolic dim of the value has no size given, so that it counts as 1."""
        dims = (size for size in self.shapes.dims.get(value, ()) if isinstance(size, Expr))
        return any(not size.symbols <= self.sizes.keys() for size in dims)


def default_price(graph: ir.Graph, topology: Topology) -> float:
    """Seconds per byte, such that the average weight matrix is worth a few collectives.

    Constants that share their data are one, and so is a quantised matrix with its scales and zero
    points, which the same nodes read.
    """
    users: dict[int, set[ir.Node]] = {}
    sizes: dict[int, int] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) >= 2:
            users.setdefault(id(tensor), set()).update(user for user, _ in value.uses())
            sizes[id(tensor)] = bytes_of(tensor.dtype, tensor.size)
    count, total = len(set(map(frozenset, users.values()))), sum(sizes.values())
    alpha = topology.alpha_seconds[ReshardKind.ALL_REDUCE]
    return MATRIX_PRICE_COLLECTIVES * alpha * count / total if total else 0.0
