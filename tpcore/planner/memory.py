"""What a rank must hold, and the plan that fits into a budget.

A rank holds its weights, its states (a KV cache), and at the worst moment of a run the activations
that are alive then. Weights and states are priced per byte: a higher price makes the planner split
more and exchange more, and the least price at which everything fits is found by bisection
(a Lagrange multiplier: the plan is the fastest one among those that hold no more than it does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tpcore.planner.cost import CostModel
from tpcore.planner.options import Choices
from tpcore.planner.problem import Problem
from tpcore.planner.work import computed_from_weights
from tpcore.strategies import StrategySpace

BISECTIONS = 12
LEAST_PRICE, ANY_PRICE = 1e-16, 1.0
"""Seconds per byte: one that decides nothing, and one that decides everything."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the fullest rank."""

    weights: float
    states: float
    """Caches, for the sizes planned for."""
    activations: float
    """The most that is alive at once during a run, inputs and outputs included."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.states + self.activations

    def to_json(self) -> dict[str, int]:
        """Whole bytes."""
        fields = {name: round(getattr(self, name)) for name in ("weights", "states", "activations")}
        return {**fields, "total": round(self.total)}


NOTHING_HELD = MemoryUse(0, 0, 0)


@dataclass(frozen=True)
class Fitted:
    """Choices of every workload, and what they take."""

    choices: list[Choices]
    memory: MemoryUse


def memory_use(problem: Problem, choices: list[Choices]) -> MemoryUse:
    """Bytes on the fullest rank; of several workloads the one with the most activations counts."""
    weights = states = 0.0
    for value in problem.options.hubs:
        held = problem.held_bytes(value, choices[0].hub[value])
        if value.const_value is not None:
            weights += held
        else:
            states += held
    peaks = [
        peak_activations(problem.space, found, workload.memory, problem.states)
        for found, workload in zip(choices, problem.workloads, strict=True)
    ]
    return MemoryUse(weights, states, max(peaks))


def peak_activations(
    space: StrategySpace,
    choices: Choices,
    cost: CostModel,
    states: Mapping[ir.Value, ir.Value],
) -> float:
    """Most bytes of activations alive at once on the fullest rank, in the graph's order.

    What is computed from weights alone (a dequantised matrix) is there while it is read: executors
    compute it beside its reader.
    """
    graph = space.graph
    derived = computed_from_weights(graph)
    last = {value: node for node in graph for value in node.inputs if value is not None}

    def size(value: ir.Value) -> float:
        sharding = space.sharding(value, choices.hub[value])
        return cost.value_bytes(value) * sharding.largest_fraction

    alive = sum(size(value) for value in graph.inputs if value not in states)
    peak = alive
    for node in graph:
        around = {v for v in (*node.inputs, *node.outputs) if v is not None}
        made = around & derived
        alive += sum(size(value) for value in node.outputs if value not in derived)
        peak = max(peak, alive + sum(map(size, made)))
        for value in around - made:
            if last.get(value, node) is node and not _stays(value):
                alive -= size(value)
    return peak


def _stays(value: ir.Value) -> bool:
    """Whether a value is no activation, or is there to the end of the run."""
    return value.const_value is not None or value.is_graph_input() or value.is_graph_output()


def fit(problem: Problem, price: float, budget: float | None) -> Fitted:
    """The cheapest choices that hold no more than `budget` bytes per rank.

    Where nothing fits, the choices that hold the least: the caller compares.

    Raises:
        PlanError: no choices satisfy the pins.
    """
    best = _solve(problem, price)
    if budget is None or best.memory.total <= budget:
        return best
    best = _solve(problem, ANY_PRICE)
    if best.memory.total > budget:
        return best
    low, high = max(price, LEAST_PRICE), ANY_PRICE
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        found = _solve(problem, middle)
        if found.memory.total <= budget:
            best, high = found, middle
        else:
            low = middle
    return best


def _solve(problem: Problem, price: float) -> Fitted:
    choices = problem.solve(price)
    return Fitted(choices, memory_use(problem, choices))
