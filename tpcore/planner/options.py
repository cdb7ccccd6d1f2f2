"""Ways to hold every value and to run every node: what a plan chooses from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graph.errors import PlanError
from tpcore.ops import OPS
from tpcore.sharding import REPLICATE, Placement, Sharding
from tpcore.strategies import Strategy, StrategySpace


@dataclass
class Choices:
    """Options of every node and value, and what was chosen."""

    strategies: dict[ir.Node, list[Strategy]] = field(default_factory=dict)
    hubs: dict[ir.Value, list[Placement]] = field(default_factory=dict)
    strategy: dict[ir.Node, Strategy] = field(default_factory=dict)
    hub: dict[ir.Value, Placement] = field(default_factory=dict)
    seconds: float = float("nan")
    """Predicted time of one run."""
    is_cheapest: bool = True
    """Whether it is proven that no plan costs less, memory at its price."""
    exchange_seconds: float = float("nan")
    """The part of it that goes into changing how values are held: collectives and local cuts."""


def find_states(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Graph input -> graph output pairs that carry a state from one run to the next.

    What an op carries from its operand to its result is one; so are an input and an output that are
    named as exporters name caches and look alike.
    """
    states: dict[ir.Value, ir.Value] = {}
    for node in graph:
        spec = OPS.get((node.domain, node.op_type))
        for operand, result in spec.states if spec and spec.carries(node) else ():
            if operand < len(node.inputs) and result < len(node.outputs):
                past, present = node.inputs[operand], node.outputs[result]
                if past is not None and past.is_graph_input() and present.is_graph_output():
                    states[past] = present
    outputs = {v.name: v for v in graph.outputs if v not in states.values()}
    for past in graph.inputs:
        names = [] if past in states else _present_names(past.name or "")
        alike = [outputs[name] for name in names if name in outputs]
        if alike and _look_alike(past, alike[0]):
            states[past] = alike[0]
    return states


def _present_names(past: str) -> list[str]:
    """How exporters name the output that belongs to the input `past`, the likeliest first."""
    words = [("past_key_values", "present"), ("past_key_values", "present_key_values")]
    return [past.replace(*pair, 1) for pair in [*words, ("past", "present")] if pair[0] in past]


def _look_alike(past: ir.Value, present: ir.Value) -> bool:
    """Whether two values have one type, and equal sizes wherever both are constant."""
    if past.dtype != present.dtype or past.shape is None or present.shape is None:
        return False
    pairs = list(zip(past.shape, present.shape))
    sizes_agree = all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return len(past.shape) == len(present.shape) and sizes_agree


def captured(graph: ir.Graph) -> set[ir.Value]:
    """Values that the body of an If, Loop or Scan reads: held whole, as bodies are not split."""
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    return {value for value in values if is_captured(graph, value)}


def is_captured(graph: ir.Graph, value: ir.Value) -> bool:
    """Whether the body of a node of `graph` reads `value`."""
    return any(user.graph is not graph for user, _ in value.uses())


def options_of(
    space: StrategySpace,
    states: Mapping[ir.Value, ir.Value],
    split_outputs: Collection[str] = (),
) -> Choices:
    """All strategies of every node and all placements of every value; nothing is chosen yet.

    Inputs come whole and outputs leave whole, but for states and the last dim of `split_outputs`.
    """
    choices = Choices()
    hubs: dict[ir.Value, dict[Placement, None]] = {}
    fixed = set(space.graph.inputs) - states.keys()
    fixed |= set(space.graph.outputs) - set(states.values())
    fixed |= captured(space.graph)
    parted = {value for value in space.graph.outputs if value.name in split_outputs}
    fixed -= parted - captured(space.graph)
    for value in [*space.graph.inputs, *space.graph.initializers.values()]:
        hubs[value] = {REPLICATE: None}
    for node in space.graph:
        choices.strategies[node] = space.strategies(node)
        for value in node.outputs:
            hubs[value] = {REPLICATE: None}
        for strategy in choices.strategies[node]:
            places = [*zip(node.inputs, strategy.operands), *zip(node.outputs, strategy.results)]
            for operand, place in places:
                if operand is None or operand in fixed:
                    continue
                if operand not in parted or _splits_last(space.sharding(operand, place), operand):
                    hubs[operand][place] = None
    choices.hubs = {value: list(places) for value, places in hubs.items()}
    return choices


def _splits_last(sharding: Sharding, value: ir.Value) -> bool:
    """Whether every rank holds a part of its own of the last dim, and nothing else is split."""
    is_last = value.shape is not None and sharding.dims == (len(value.shape) - 1,)
    return is_last and bool(sharding.layouts) and not sharding.overlaps


def pin(space: StrategySpace, choices: Choices, pins: Mapping[str, str]) -> None:
    """Leave of the placements of named values those prescribed.

    Raises:
        PlanError: a name is no value's, or a text names none of its placements.
    """
    named = {value.name: value for value in choices.hubs}
    for name, text in pins.items():
        if name not in named:
            raise PlanError(
                f"the plan pins value '{name}', which graph '{space.graph.name}' lacks. "
                "Plan this model again."
            )
        _pin(space, choices, named[name], text)


def _pin(space: StrategySpace, choices: Choices, value: ir.Value, text: str) -> None:
    """Leave of the value's placements those that `text` names, or whose dims it does: `S(1)`."""
    options = {p: placement_text(space.sharding(value, p)) for p in choices.hubs[value]}
    chosen = [p for p, full in options.items() if text in (full, full.split(" ")[0])]
    if not chosen:
        raise PlanError(
            f"the plan pins value '{value.name}' to {text}, which is none of its placements. "
            f"Choose one of: {'; '.join(options.values())}."
        )
    choices.hubs[value] = chosen


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
