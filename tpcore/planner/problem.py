"""Turn a graph with its strategies into a cost graph, and the cheapest assignment into a plan.

Variables: the strategy of every node, and the placement in which every value is held (its *hub*),
so that a reshard is paid once however many nodes read the value. Several workloads of one model
(a prefill and its decode steps) are one problem: each has its own nodes and activations, and all
share the hubs of the weights and states, which are held in one way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from tpcore.planner.cost import CostModel
from tpcore.planner.elimination import CostGraph, Table
from tpcore.planner.options import Choices
from tpcore.planner.windows import minimise
from tpcore.sharding import Placement
from tpcore.strategies import StrategySpace

SHARED = -1
Variable = tuple[int, ir.Node | ir.Value]
"""Number of the workload, or SHARED, and the node or value."""
Places = tuple[Placement, ...]


@dataclass(frozen=True)
class Workload:
    """One kind of run that a plan is made for."""

    cost: CostModel
    runs: float = 1.0
    """How often it is run; only the proportions matter."""
    largest: CostModel | None = None
    """Counts the bytes of its largest run, if that is another than the one that is timed."""

    @property
    def memory(self) -> CostModel:
        """Counts the bytes that must be held."""
        return self.largest or self.cost


@dataclass
class Problem:
    """The cost graph of some workloads; memory is priced when it is solved."""

    space: StrategySpace
    workloads: Sequence[Workload]
    options: Choices
    states: Mapping[ir.Value, ir.Value]
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Placement texts that were prescribed, by value name."""
    graph: CostGraph[Variable] = field(default_factory=CostGraph)
    held: dict[Variable, Table] = field(default_factory=dict)
    """Bytes per rank of each placement of the weights and states."""

    @classmethod
    def of(
        cls,
        space: StrategySpace,
        workloads: Sequence[Workload],
        options: Choices,
        states: Mapping[ir.Value, ir.Value],
        pinned: Mapping[str, str],
    ) -> Problem:
        """Build the cost graph of all options that are left where some were `pinned`."""
        problem = cls(space, workloads, options, states, pinned)
        for number in range(len(workloads)):
            problem._add(number)
        for past, present in states.items():
            problem._tie(past, present)
        return problem

    def solve(self, price: float) -> list[Choices]:
        """The cheapest choices of every workload, a held byte costing `price` seconds.

        Raises:
            PlanError: the pins contradict each other.
        """
        priced = {v: self.graph.unary[v] + price * held for v, held in self.held.items()}
        chosen, proven = minimise(replace(self.graph, unary={**self.graph.unary, **priced}))
        found = [self._choices(number, chosen) for number in range(len(self.workloads))]
        for choices in found:
            choices.is_cheapest = proven
        return found

    def held_bytes(self, value: ir.Value, place: Placement) -> float:
        """Bytes that the fullest rank holds of a weight or state; none of an activation."""
        table = self.held.get(self.key(0, value))
        return 0.0 if table is None else float(table[self.options.hubs[value].index(place)])

    def key(self, number: int, of: ir.Node | ir.Value) -> Variable:
        """The variable of a workload's node or value."""
        shared = isinstance(of, ir.Value) and (of.const_value is not None or of in self.states)
        return (SHARED if shared else number, of)

    def _add(self, number: int) -> None:
        """Add the nodes and values of one workload."""
        for value, hubs in self.options.hubs.items():
            key = self.key(number, value)
            if key not in self.graph.unary:
                self.graph.add_variable(key, np.zeros(len(hubs)))
            if key[0] == SHARED:
                memory = self.workloads[number].memory
                held = [memory.held_bytes(value, self.space.sharding(value, h)) for h in hubs]
                self.held[key] = np.maximum(self.held.get(key, 0.0), held)
        tables = _Tables(self.space, self.workloads[number])
        for node, strategies in self.options.strategies.items():
            key = (number, node)
            self.graph.add_variable(key, tables.node(node, strategies))
            for value, hubs, places in self._operands(node):
                table = tables.reshard(value, tuple(hubs), places)
                self.graph.add_pair(self.key(number, value), key, table)
            for value, hubs, places in self._results(node):
                table = tables.reshard(value, places, tuple(hubs))
                self.graph.add_pair(key, self.key(number, value), table)

    def _operands(self, node: ir.Node) -> list[tuple[ir.Value, list[Placement], Places]]:
        strategies = self.options.strategies[node]
        return [
            (value, self.options.hubs[value], tuple(s.operands[i] for s in strategies))
            for i, value in enumerate(node.inputs)
            if value is not None
        ]

    def _results(self, node: ir.Node) -> list[tuple[ir.Value, list[Placement], Places]]:
        strategies = self.options.strategies[node]
        return [
            (value, self.options.hubs[value], tuple(s.results[i] for s in strategies))
            for i, value in enumerate(node.outputs)
        ]

    def _tie(self, past: ir.Value, present: ir.Value) -> None:
        """A state must leave a run as the next run expects it."""
        hubs = self.options.hubs
        table = [[0.0 if a == b else math.inf for b in hubs[present]] for a in hubs[past]]
        for number in range(len(self.workloads)):
            keys = self.key(number, past), self.key(number, present)
            self.graph.add_pair(*keys, np.array(table))

    def _choices(self, number: int, chosen: Mapping[Variable, int]) -> Choices:
        found = Choices(self.options.strategies, self.options.hubs)
        for node, strategies in found.strategies.items():
            found.strategy[node] = strategies[chosen[number, node]]
        for value, hubs in found.hubs.items():
            found.hub[value] = hubs[chosen[self.key(number, value)]]
        runs = self.workloads[number].runs
        found.exchange_seconds = self._exchange(number, chosen) / runs
        found.seconds = self._compute(number, chosen) / runs + found.exchange_seconds
        return found

    def _compute(self, number: int, chosen: Mapping[Variable, int]) -> float:
        unary = self.graph.unary.items()
        return sum(float(table[chosen[v]]) for v, table in unary if v[0] == number)

    def _exchange(self, number: int, chosen: Mapping[Variable, int]) -> float:
        return sum(
            float(table[chosen[a], chosen[b]])
            for (a, b), table in self.graph.pairs.items()
            if number in (a[0], b[0])
        )


class _Tables:
    """Cost tables of one workload. Those of layers that repeat are equal and made once."""

    def __init__(self, space: StrategySpace, workload: Workload) -> None:
        self.space = space
        self.workload = workload
        self._made: dict[tuple[object, ...], Table] = {}

    def node(self, node: ir.Node, strategies: Sequence[object]) -> Table:
        """Seconds of the node under each strategy."""
        cost, sharding = self.workload.cost, self.space.sharding
        bound = self.space.factors.nodes.get(node)
        values = [*node.inputs, *node.outputs]
        rows = [(*s.operands, *s.results) for s in strategies]  # type: ignore[attr-defined]
        seconds = [
            cost.op_seconds(
                bound, [(v, sharding(v, p)) for v, p in zip(values, row) if v is not None]
            )
            for row in rows
        ]
        return self.workload.runs * np.array(seconds)

    def reshard(self, value: ir.Value, have: Places, want: Places) -> Table:
        """Seconds of changing how `value` is held, [have, want]."""
        cost, space = self.workload.cost, self.space
        size, is_weight = cost.value_bytes(value), value.const_value is not None
        forms = [tuple(space.form(value, p) for p in places) for places in (have, want)]

        def make() -> Table:
            held = [[space.sharding(value, p) for p in places] for places in (have, want)]
            rows = [[cost.reshard_seconds(size, a, b, is_weight) for b in held[1]] for a in held[0]]
            return self.workload.runs * np.array(rows)

        return self._once((size, is_weight, *forms), make)

    def _once(self, key: tuple[object, ...], make: Callable[[], Table]) -> Table:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
