"""What single nodes are asked to do, and by whom: pins that name a node's operands and results.

A pin of a value says how it is held; one of an operand says how a node reads it, wherever it is
held. ONNX's device annotations are of both kinds, see `tpcore.annotations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import onnx_ir as ir

from graph.errors import PlanError
from tpcore.planner.elimination import Contradiction
from tpcore.planner.options import Choices, placement_text
from tpcore.sharding import Placement, Sharding
from tpcore.strategies import Strategy, StrategySpace

SHOWN_WAYS = 4


@dataclass(frozen=True)
class Pin:
    """A placement that somebody asks for."""

    text: str
    """`R`, or the dim that is split, `S(1)`: any layout along it will do."""
    source: str
    """Who asks, as the subject of a sentence."""
    shards: int = 1
    """Number of different parts; a placement with as many goes before others."""


@dataclass(frozen=True)
class Asked:
    """Pins of values, and of operands and results of nodes."""

    held: Mapping[str, Pin] = field(default_factory=dict)
    """Value name -> how it is held."""
    run: Mapping[str, Mapping[int, Pin]] = field(default_factory=dict)
    """Node name -> place among its operands and results -> how it reads or makes it."""

    def first(self, count: int) -> Asked:
        """The first nodes' pins, then the first values'."""
        run = dict(islice(self.run.items(), count))
        return Asked(dict(islice(self.held.items(), max(count - len(self.run), 0))), run)

    def source(self, number: int) -> str:
        """Who asks for the pins at this place of all."""
        pins = [next(iter(pins.values())) for pins in self.run.values()]
        return [*pins, *self.held.values()][number].source

    def __len__(self) -> int:
        return len(self.run) + len(self.held)


NOTHING_ASKED = Asked()


def ask(space: StrategySpace, options: Choices, asked: Asked) -> None:
    """Leave of all options those that do as they are asked.

    Raises:
        PlanError: something asked for cannot be; the message lists all such things.
    """
    problems: list[str] = []
    for node, strategies in options.strategies.items():
        if (pins := asked.run.get(node.name or "")) is not None:
            kept = _as_asked(space, node, strategies, pins)
            if not kept:
                problems.append(_no_way(space, node, strategies, pins))
            options.strategies[node] = kept
    for value, places in options.hubs.items():
        if (pin := asked.held.get(value.name or "")) is not None:
            options.hubs[value] = _fitting(space, value, places, pin)
            if not options.hubs[value]:
                texts = (placement_text(space.sharding(value, place)) for place in places)
                problems.append(
                    f"{pin.source} pins value '{value.name}' to {pin.text}, which is none of its "
                    f"placements. Choose one of: {'; '.join(texts)}."
                )
    if problems:
        raise PlanError(" ".join(problems))


def _fitting(
    space: StrategySpace, value: ir.Value, places: list[Placement], pin: Pin
) -> list[Placement]:
    """Those with as many parts as asked for where there are some, else all along the same dim."""
    shardings = {place: space.sharding(value, place) for place in places}
    found = [p for p, s in shardings.items() if placement_text(s).split(" ")[0] == pin.text]
    exact = [p for p in found if count_parts(shardings[p]) == pin.shards]
    return exact or found


def count_parts(sharding: Sharding) -> int:
    """Number of different parts that the ranks hold; ranks that share kv heads hold the same."""
    return len(set(zip(*(split.units.ranges for split in sharding.splits)))) or 1


def _as_asked(
    space: StrategySpace, node: ir.Node, strategies: list[Strategy], pins: Mapping[int, Pin]
) -> list[Strategy]:
    values = [*node.inputs, *node.outputs]
    for index, pin in pins.items():
        value = values[index]
        if value is None:
            continue
        places = list(dict.fromkeys(_places(s)[index] for s in strategies))
        fitting = _fitting(space, value, places, pin)
        strategies = [s for s in strategies if _places(s)[index] in fitting]
    return strategies


def _places(strategy: Strategy) -> tuple[Placement, ...]:
    return (*strategy.operands, *strategy.results)


def _no_way(
    space: StrategySpace, node: ir.Node, strategies: list[Strategy], pins: Mapping[int, Pin]
) -> str:
    """The sentence for a node that cannot run as asked."""
    values = [*node.inputs, *node.outputs]

    def named(index: int, text: str) -> str:
        value = values[index]
        return f"{value.name if value is not None else ''} {text}"

    wanted = ", ".join(named(index, pin.text) for index, pin in pins.items())
    ways = {
        ", ".join(
            named(i, placement_text(space.sharding(v, _places(s)[i])).split(" ")[0])
            for i in pins
            if (v := values[i]) is not None
        ): None
        for s in strategies
    }
    can_be_said = [way for way in ways if "P(sum)" not in way]
    shown = [f"({way})" for way in can_be_said[:SHOWN_WAYS]]
    more = ", …" if len(can_be_said) > len(shown) else ""
    return (
        f"{next(iter(pins.values())).source} asks for ({wanted}), which {node.op_type} cannot do "
        f"over {space.ranks} ranks. Choose one of: {', '.join(shown)}{more}."
    )


def explain_contradiction(asked: Asked, solve: Callable[[Asked], object]) -> PlanError:
    """The error that names one of the pins that contradict each other.

    With the pins before it there is a plan, with it there is none; found by bisection.
    """
    low, high = 0, len(asked)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            solve(asked.first(middle))
            low = middle
        except Contradiction:
            high = middle
    return PlanError(
        f"{asked.source(high - 1)} contradicts what is asked for elsewhere: no plan does both. "
        "Change it, or plan without annotations by --plan auto."
    )
