"""Plans nobody would choose: any strategy for any node, any placement between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tpcore.partition import Options, plan_model
from tpcore.plan import Plan
from tpcore.planner.options import find_states, options_of
from tpcore.reshard import ReshardKind, reshard_kind
from tpcore.sharding import Placement
from tpcore.strategies import StrategySpace


def randomised(plan: Plan, seed: int, *, whole: bool = True) -> Plan:
    """Any strategy for every node, and for every value any placement that can be reached.

    Without `whole` a node is replicated only where its rule knows no other strategy.
    """
    random = np.random.default_rng(seed)
    choices = plan.choices
    for node, strategies in choices.strategies.items():
        options = strategies if whole else strategies[1:] or strategies
        choices.strategy[node] = options[random.integers(len(options))]
    for value, hubs in choices.hubs.items():
        possible = [hub for hub in hubs if is_reachable(plan, value, hub)]
        choices.hub[value] = possible[random.integers(len(possible))]
    return plan


def is_reachable(plan: Plan, value: ir.Value, hub: Placement) -> bool:
    """Whether the value can get into the hub and out of it."""
    sharding, strategy = plan.space.sharding, plan.choices.strategy
    held = sharding(value, hub)
    readers = [(u, i) for u, i in value.uses() if u in strategy]  # no body of an If, Loop or Scan
    ends = [(held, sharding(value, strategy[u].operands[i])) for u, i in readers]
    producer = value.producer()
    if producer is not None:
        ends.append((sharding(value, strategy[producer].results[value.index() or 0]), held))
    return all(reshard_kind(a, b) is not ReshardKind.IMPOSSIBLE for a, b in ends)


def split_plan_of(path: Path, ranks: int, seed: int) -> Plan:
    """A random plan of a file that splits every node that can be, activations included.

    The planner starts splits at weights alone; here they start at any value.
    """
    plan = plan_model(path, Options(ranks))
    graph = plan.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    space = StrategySpace(graph, plan.space.factors, ranks, values)
    choices = options_of(space, find_states(graph))
    names = {value: value.name or "" for value in choices.hubs}
    return randomised(replace(plan, space=space, choices=choices, names=names), seed, whole=False)
