"""Turn a graph with its strategies into a cost graph, and the cheapest assignment into a plan.

Variables: the strategy of every node, and the placement in which every value is held (its *hub*),
so that a reshard is paid once however many nodes read the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graph.errors import PlanError
from tpcore.ops import OPS
from tpcore.planner.cost import CostModel
from tpcore.planner.elimination import CostGraph, minimise
from tpcore.sharding import REPLICATE, Placement, Sharding
from tpcore.strategies import Strategy, StrategySpace

Variable = ir.Node | ir.Value


@dataclass
class Choices:
    """Options of every node and value, and what was chosen."""

    strategies: dict[ir.Node, list[Strategy]] = field(default_factory=dict)
    hubs: dict[ir.Value, list[Placement]] = field(default_factory=dict)
    strategy: dict[ir.Node, Strategy] = field(default_factory=dict)
    hub: dict[ir.Value, Placement] = field(default_factory=dict)
    seconds: float = math.nan
    """Cost of the chosen plan, the price of memory included."""


def find_states(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Graph input -> graph output pairs that carry a state from one run to the next."""
    states: dict[ir.Value, ir.Value] = {}
    for node in graph:
        spec = OPS.get((node.domain, node.op_type))
        for operand, result in spec.states if spec else ():
            if operand < len(node.inputs) and result < len(node.outputs):
                past, present = node.inputs[operand], node.outputs[result]
                if past is not None and past.is_graph_input() and present.is_graph_output():
                    states[past] = present
    return states


def captured(graph: ir.Graph) -> set[ir.Value]:
    """Values that the body of an If, Loop or Scan reads: held whole, as bodies are not split."""
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    return {value for value in values if any(user.graph is not graph for user, _ in value.uses())}


def choose(space: StrategySpace, cost: CostModel, pins: Mapping[str, str] | None = None) -> Choices:
    """Find the cheapest strategies and placements; `pins` maps value names to placement texts.

    Raises:
        PlanError: a pin names no value or no placement of it, or the pins contradict each other.
    """
    states = find_states(space.graph)
    choices = _options(space, states, pins or {})
    problem: CostGraph[Variable] = CostGraph()
    for value, hubs in choices.hubs.items():
        problem.add_variable(
            value, np.array([_hub_cost(space, cost, states, value, h) for h in hubs])
        )
    known: dict[tuple[ir.Value, Placement, Placement], float] = {}
    for node, strategies in choices.strategies.items():
        problem.add_variable(
            node, np.array([_strategy_seconds(space, cost, node, s) for s in strategies])
        )
        _add_edges(problem, space, cost, choices, node, known)
    for past, present in states.items():
        _tie(problem, choices, past, present)
    chosen = minimise(problem)
    for variable, index in chosen.items():
        if isinstance(variable, ir.Node):
            choices.strategy[variable] = choices.strategies[variable][index]
        else:
            choices.hub[variable] = choices.hubs[variable][index]
    choices.seconds = problem.cost(chosen)
    return choices


def _options(
    space: StrategySpace, states: Mapping[ir.Value, ir.Value], pins: Mapping[str, str]
) -> Choices:
    choices = Choices()
    hubs: dict[ir.Value, dict[Placement, None]] = {}
    fixed = set(space.graph.inputs) - states.keys()
    fixed |= set(space.graph.outputs) - set(states.values())
    fixed |= captured(space.graph)
    for value in [*space.graph.inputs, *space.graph.initializers.values()]:
        hubs[value] = {REPLICATE: None}
    for node in space.graph:
        choices.strategies[node] = space.strategies(node)
        for value in node.outputs:
            hubs[value] = {REPLICATE: None}
        for strategy in choices.strategies[node]:
            places = [*zip(node.inputs, strategy.operands), *zip(node.outputs, strategy.results)]
            for operand, place in places:
                if operand is not None and operand not in fixed:
                    hubs[operand][place] = None
    choices.hubs = {value: list(places) for value, places in hubs.items()}
    for name, text in pins.items():
        _pin(space, choices, name, text)
    return choices


def _pin(space: StrategySpace, choices: Choices, name: str, text: str) -> None:
    value = next((v for v in choices.hubs if v.name == name), None)
    if value is None:
        raise PlanError(
            f"the plan pins value '{name}', which graph '{space.graph.name}' lacks. "
            "Plan this model again."
        )
    options = {placement_text(space.sharding(value, p)): p for p in choices.hubs[value]}
    if text not in options:
        raise PlanError(
            f"the plan pins value '{name}' to {text}, which is none of its placements. "
            f"Choose one of: {'; '.join(options)}."
        )
    choices.hubs[value] = [options[text]]


def placement_text(sharding: Sharding) -> str:
    """A sharding in words a plan file can hold: `R`, `P(sum)`, `S(1) 0:4 4:8`."""
    if not sharding.splits:
        return "P(sum)" if sharding.is_partial else "R"
    dims = ",".join(str(dim) for dim in sharding.dims)
    parts = [
        str(s.layout) if s.layout else " ".join(f"{p}/{s.whole}" for p in s.parts)
        for s in sharding.splits
    ]
    return f"S({dims}) " + " | ".join(parts)


def _hub_cost(
    space: StrategySpace,
    cost: CostModel,
    states: Mapping[ir.Value, ir.Value],
    value: ir.Value,
    place: Placement,
) -> float:
    held = value.const_value is not None or value in states
    return cost.holding_seconds(value, space.sharding(value, place)) if held else 0.0


def _strategy_seconds(
    space: StrategySpace, cost: CostModel, node: ir.Node, strategy: Strategy
) -> float:
    places = [*zip(node.inputs, strategy.operands), *zip(node.outputs, strategy.results)]
    values = [(v, space.sharding(v, place)) for v, place in places if v is not None]
    return cost.op_seconds(space.factors.nodes.get(node), values)


def _add_edges(
    problem: CostGraph[Variable],
    space: StrategySpace,
    cost: CostModel,
    choices: Choices,
    node: ir.Node,
    known: dict[tuple[ir.Value, Placement, Placement], float],
) -> None:
    """Add what it costs to read the node's operands from their hubs and to write its results.

    `known` keeps the reshard costs found so far.
    """

    def seconds(value: ir.Value, have: Placement, want: Placement) -> float:
        key = (value, have, want)
        if key not in known:
            known[key] = cost.reshard_seconds(
                value, space.sharding(value, have), space.sharding(value, want)
            )
        return known[key]

    strategies = choices.strategies[node]
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        table = [
            [seconds(value, hub, s.operands[index]) for s in strategies]
            for hub in choices.hubs[value]
        ]
        problem.add_pair(value, node, np.array(table))
    for index, value in enumerate(node.outputs):
        table = [
            [seconds(value, s.results[index], hub) for hub in choices.hubs[value]]
            for s in strategies
        ]
        problem.add_pair(node, value, np.array(table))


def _tie(problem: CostGraph[Variable], choices: Choices, past: ir.Value, present: ir.Value) -> None:
    """A state must leave a run as the next run expects it."""
    table = [
        [0.0 if have == want else math.inf for want in choices.hubs[present]]
        for have in choices.hubs[past]
    ]
    problem.add_pair(past, present, np.array(table))
