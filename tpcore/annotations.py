"""Read ONNX's device annotations as pins of a plan.

What a node says of an operand is how the node reads it; what it says of a result is how that is
held. A model's inputs come whole and its outputs leave whole: a node may read an input split, or
make an output in parts that are gathered then. Where a consumer says another sharding than the
producer, the value is held as the producer says, and resharded for the consumer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graph.annotation_checks import groups_of
from graph.annotations import Annotations, Bound, Place, bind
from graph.errors import PlanError
from graph.shapes import Shapes
from tpcore.planner.asked import NOTHING_ASKED, Asked, Pin
from tpcore.planner.options import find_states

ANNOTATED = "annotated"
"""The plan that follows the model's device annotations where it has any, else the cheapest."""
GONE = "it is computed otherwise, or not at all, in the canonical form of the model"


@dataclass(frozen=True)
class Annotated:
    """What a model's device annotations ask of its plan, and what comes of them."""

    configuration: str = ""
    """The one that is followed, or the names of those that are not."""
    asked: Asked = NOTHING_ASKED
    values: int = 0
    """Number of tensors whose sharding is followed."""
    without_effect: tuple[str, ...] = ()
    overridden_by: str = ""
    """The --plan that was given, if the annotations are not followed because of it."""

    def to_json(self) -> dict[str, Any]:
        """What a report tells of it."""
        return {
            "configuration": self.configuration,
            "values": self.values,
            "without_effect": list(self.without_effect),
            "overridden_by": self.overridden_by or None,
        }


NOT_ANNOTATED = Annotated()


@dataclass
class _Pins:
    """Pins while they are collected."""

    whole: set[ir.Value]
    """Outputs that leave the model whole."""
    held: dict[str, Pin] = field(default_factory=dict)
    run: dict[str, dict[int, Pin]] = field(default_factory=dict)

    def add(self, place: Place, pin: Pin) -> None:
        """Pin the value, or the operand that the node reads."""
        node, value = place.node, place.value
        if node is None or (place.is_result and value not in self.whole):
            self.held[value.name or ""] = pin
        elif not place.is_result:
            self.run.setdefault(node.name or "", {})[place.index] = pin
        elif pin.text != "R":
            self.run.setdefault(node.name or "", {})[len(node.inputs) + place.index] = pin


def follow(
    annotations: Annotations, graph: ir.Graph, shapes: Shapes, ranks: int, plan: str, file: str
) -> Annotated:
    """What the annotations of a canonical model ask of its plan over `ranks` ranks.

    Raises:
        GraphError: they are not what ONNX allows; the message lists all violations.
        PlanError: none is for so many devices, or what one asks for is nothing tpcore can do.
    """
    names = [c.name for c in annotations.configurations]
    if plan != ANNOTATED:
        used = ", ".join(f"'{name}'" for name in names)
        return Annotated(used, overridden_by=plan) if names else NOT_ANNOTATED
    bound = bind(annotations, graph, shapes, file)
    said = dict.fromkeys([b.spec.configuration for b in bound] + sorted(annotations.stages))
    if not said or ranks == 1:
        return NOT_ANNOTATED
    chosen = _choose(annotations, list(said), ranks, file)
    mine = [b for b in bound if b.spec.configuration == chosen.name]
    _refuse([text for b in mine for text in _beyond_us(b, chosen)], file)
    pins = _Pins(whole_outputs(graph))
    ignored: list[str] = []
    for b in mine:
        for place in b.places:
            pins.add(place, _pin(b, place))
        if not b.places:
            site = b.spec.site
            ignored.append(f"what {site.label} says of '{site.name}' has no effect: {GONE}")
    ignored += [text for name, text in annotations.without_effect if name == chosen.name]
    if chosen.name in annotations.stages:
        ignored.append("pipeline stages have no effect: every rank runs all nodes")
    followed = {b.spec.site.name for b in mine if b.places}
    asked = Asked(pins.held, pins.run)
    return Annotated(chosen.name, asked, len(followed), tuple(dict.fromkeys(ignored)))


def whole_outputs(graph: ir.Graph) -> set[ir.Value]:
    """Outputs that leave the model whole: all but states, which a rank keeps as it holds them."""
    return set(graph.outputs) - set(find_states(graph).values())


def _choose(
    annotations: Annotations, said: list[str], ranks: int, file: str
) -> ir.ModelConfiguration:
    """The configuration for so many devices, of those that nodes refer to."""
    used = [c for c in annotations.configurations if c.name in said]
    fitting = [c for c in used if c.num_devices == ranks]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(f"'{c.name}' for {c.num_devices} devices" for c in used)
    if fitting:
        raise PlanError(
            f"'{file}' is annotated for {ranks} devices more than once: {there}. "
            "Leave one in the model, or plan without them by --plan auto."
        )
    raise PlanError(
        f"'{file}' is annotated for other numbers of devices than --tp {ranks}: {there}. "
        "Choose one of these, or plan without them by --plan auto."
    )


def _refuse(texts: list[str], file: str) -> None:
    if texts:
        raise PlanError(
            f"'{file}' has device annotations that are right, but not possible over one mesh axis: "
            f"{'; '.join(dict.fromkeys(texts))}. "
            "Change them, or plan without them by --plan auto."
        )


def _beyond_us(bound: Bound, configuration: ir.ModelConfiguration) -> Iterator[str]:
    """What ONNX allows and tpcore cannot do, as sentences."""
    site, count = bound.spec.site, configuration.num_devices
    if len(bound.axes) > 1:
        axes = ", ".join(str(axis) for axis in bound.axes)
        yield f"{site.label} splits '{site.name}' on axes {axes} at once, it can be one axis only"
    members = [device for group in groups_of(bound.spec.says) for device in group]
    everyone = list(range(count))
    if not members:
        return
    if sorted(set(members)) != everyone:
        without = ", ".join(str(d) for d in everyone if d not in members)
        yield f"{site.label} leaves devices {without} without a part of '{site.name}'"
    elif bound.axes and any(times > 1 for times in Counter(members).values()):
        yield f"{site.label} gives one device several parts of '{site.name}'"
    elif bound.axes and members != everyone:
        yield (
            f"{site.label} gives the parts of '{site.name}' to devices {members}, "
            f"they can only go in the order {everyone}"
        )


def _pin(bound: Bound, place: Place) -> Pin:
    spec = bound.spec
    source = f"{spec.site.label}, by its annotation for '{spec.configuration}',"
    for axis, shards in bound.axes.items():
        return Pin(f"S({place.axis(axis)})", source, shards)
    return Pin("R", source)


def annotations_text(report: Mapping[str, Any]) -> list[str]:
    """The lines of a report for people."""
    if report["overridden_by"]:
        return [
            f"pins           not those of the model's device configurations "
            f"{report['configuration']}: --plan {report['overridden_by']} was given"
        ]
    lines = [
        f"pins           from the model's device configuration '{report['configuration']}': "
        f"{report['values']} values"
    ]
    return lines + [f"  ignored      {text}" for text in report["without_effect"]]
