"""ONNX's device annotations (IR version 11): how nodes say that their tensors are sharded.

A node's `device_configurations` speak of the tensors in the file. `take_annotations` takes them off
a model that was just read; after canonicalization `bind` finds what they speak of, and says
everything that is wrong with them in one error. No other ONNX tool checks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
import onnx_ir.passes.common as common

from graph.annotation_checks import (
    Extent,
    declared_dims,
    label_of,
    shards_per_axis,
    spec_violations,
    violations_of,
)
from graph.errors import GraphError
from graph.shapes import Shapes

SUCCESSOR = "tpcore.successor"
SHOWN_VIOLATIONS = 40
CONTROL_FLOW = "is inside the body of an If, Loop or Scan, which is not split"


@dataclass(frozen=True)
class Site:
    """An operand or result of a node, as the file has it."""

    node: ir.Node
    index: int
    is_result: bool
    value: ir.Value
    name: str
    op_type: str
    """Of the node before canonicalization, as the next three."""
    label: str
    key: str
    """Its first result that has a name, which no other node has."""
    dims: tuple[Extent, ...] | None
    """Sizes that the file declares; None where it does not."""


@dataclass(frozen=True)
class Place:
    """Where a site is found in the canonical graph: an operand or result of a node, or a value."""

    value: ir.Value
    node: ir.Node | None = None
    index: int = 0
    is_result: bool = False
    perm: tuple[int, ...] = ()
    """The axes of the site in the order that they have here, where that is another one."""

    def axis(self, axis: int) -> int:
        """The axis here of an axis of the site."""
        return self.perm.index(axis) if self.perm else axis

    def site_axis(self, axis: int) -> int:
        """The axis of the site of an axis here."""
        return self.perm[axis] if self.perm else axis


@dataclass(frozen=True)
class Spec:
    """What a node says of one of its tensors."""

    site: Site
    configuration: str
    says: ir.ShardingSpec


@dataclass
class Annotations:
    """All that a model says of devices, beside what it says wrongly."""

    configurations: tuple[ir.ModelConfiguration, ...] = ()
    specs: list[Spec] = field(default_factory=list)
    stages: set[str] = field(default_factory=set)
    """Configurations under which some node has a pipeline stage."""
    without_effect: list[tuple[str, str]] = field(default_factory=list)
    """(configuration, half a sentence) of what cannot be followed."""
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bound:
    """A spec and the places in the canonical graph that it speaks of."""

    spec: Spec
    places: list[Place]
    axes: dict[int, int]
    """Split axis, counted from the front -> number of shards."""


def succeed(old: ir.Value, new: ir.Value, perm: tuple[int, ...] = ()) -> None:
    """Note that `new`, which is `old` with its axes in the order `perm`, takes its place."""
    old.meta[SUCCESSOR] = (new, perm)


def take_annotations(model: ir.Model) -> Annotations:
    """Take the device annotations off a model that was just read; its functions are inlined."""
    nodes = [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f)]
    if not model.device_configurations and not any(n.device_configurations for n in nodes):
        return Annotations()
    found = Annotations(model.device_configurations, violations=violations_of(model))
    for site in sites_of(model):
        for entry in site.node.device_configurations:
            name = entry.configuration.name if entry.configuration is not None else ""
            specs = [spec for spec in entry.sharding_specs if spec.value is site.value]
            found.specs += [Spec(site, name, spec) for spec in specs]
    for node in model.graph.all_nodes():
        for entry in node.device_configurations:
            name = entry.configuration.name if entry.configuration is not None else ""
            if entry.pipeline_stage is not None:
                found.stages.add(name)
            if node.graph is not model.graph and any(s.sharded_dims for s in entry.sharding_specs):
                found.without_effect.append((name, f"{label_of(node)} {CONTROL_FLOW}"))
        node.device_configurations = ()
    model.device_configurations = ()
    return found


def sites_of(model: ir.Model) -> Iterator[Site]:
    """Operands and results of all nodes of the main graph; functions are inlined."""
    common.InlinePass()(model)
    for node in model.graph:
        label, key = label_of(node), next((v.name for v in node.outputs if v.name), "")
        for is_result, values in ((False, node.inputs), (True, node.outputs)):
            for index, value in enumerate(values):
                if value is not None and value.name:
                    dims = declared_dims(value)
                    yield Site(
                        node, index, is_result, value, value.name, node.op_type, label, key, dims
                    )


# --- in the canonical graph -----------------------------------------------------------------------


class Finder:
    """Finds sites in the canonical graph that was made of their model."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        made = [value for node in graph for value in node.outputs]
        values = [*graph.inputs, *graph.initializers.values(), *made]
        self._named = {value.name: value for value in values if value.name}
        self._copies: dict[str, list[ir.Value]] = {}
        for name, value in self._named.items():
            self._copies.setdefault(name.rpartition("#")[0], []).append(value)

    def places(self, site: Site) -> list[Place]:
        """Where `site` is now; nowhere if what it belongs to is gone."""
        node = site.node
        if node.graph is self.graph and node.op_type == site.op_type:
            values = node.outputs if site.is_result else node.inputs
            value = values[site.index] if site.index < len(values) else None
            return [] if value is None else [Place(value, node, site.index, site.is_result)]
        value, perm = self._follow(site)
        if value is None:
            return []
        if not site.is_result:
            return self._operand(site, value, perm)
        return [Place(value, value.producer(), value.index() or 0, is_result=True, perm=perm)]

    def _operand(self, site: Site, value: ir.Value, perm: tuple[int, ...]) -> list[Place]:
        """Nodes that take another's place are named after it: `fc/MatMul_0`."""
        copies = self._copies.get(value.name or "", [])
        found = [
            Place(copy, user, index, perm=perm)
            for copy in [value, *copies]
            for user, index in copy.uses()
            if site.node.name and (user.name or "").startswith(f"{site.node.name}/")
        ]
        is_weight = value.const_value is not None and not copies
        return found or ([Place(value, perm=perm)] if is_weight else [])

    def _follow(self, site: Site) -> tuple[ir.Value | None, tuple[int, ...]]:
        """What is in the place of a site's value: itself, a transposed weight, or its namesake."""
        value, perm = site.value, ()
        if self._named.get(value.name or "") is not value:
            value, perm = value.meta.get(SUCCESSOR, (value, ()))
        if self._named.get(value.name or "") is value:
            return value, perm
        return self._named.get(site.name), ()


def bind(annotations: Annotations, graph: ir.Graph, shapes: Shapes, name: str) -> list[Bound]:
    """Find what all specs speak of, in the canonical form of their model; `name` is its file's.

    Raises:
        GraphError: the annotations are not what ONNX allows; the message lists all violations.
    """
    finder, found = Finder(graph), []
    violations = list(annotations.violations)
    devices = {c.name: c.num_devices for c in annotations.configurations}
    for spec in annotations.specs:
        places, dims = finder.places(spec.site), spec.site.dims
        if dims is None and places and places[0].value in shapes.dims:
            dims = tuple(s if isinstance(s, int) else str(s) for s in shapes.dims[places[0].value])
            violations += _found_late(spec, dims, devices.get(spec.configuration))
        axes = shards_per_axis(spec.says, None if dims is None else len(dims))
        found.append(Bound(spec, places, axes))
    violations = list(dict.fromkeys(violations)) + _conflicts(found)
    if violations:
        shown = violations[:SHOWN_VIOLATIONS]
        if len(violations) > len(shown):
            shown.append(f"and {len(violations) - len(shown)} more")
        raise GraphError(
            f"'{name}' has bad device annotations: {'; '.join(shown)}. "
            "Correct them, or plan without them by --plan auto."
        )
    return found


def _found_late(spec: Spec, dims: tuple[Extent, ...], devices: int | None) -> list[str]:
    """What is wrong only where the sizes are known, which the file does not declare."""
    label = spec.site.label
    before = spec_violations(label, spec.says, None, devices)
    return [v for v in spec_violations(label, spec.says, dims, devices) if v not in before]


def _conflicts(found: list[Bound]) -> list[str]:
    """A weight is stored in one way: nodes that read it must say the same of it."""
    said: dict[tuple[str, ir.Value], tuple[str, dict[int, int]]] = {}
    violations = []
    for bound in found:
        site = bound.spec.site
        for place in bound.places:
            if place.value.const_value is None:
                continue
            axes = {place.axis(axis): shards for axis, shards in bound.axes.items()}
            key = (bound.spec.configuration, place.value)
            other, before = said.setdefault(key, (site.label, axes))
            if before != axes:
                violations.append(
                    f"{other} and {site.label} annotate weight '{site.name}' differently: "
                    f"{_axes_text(before)} and {_axes_text(axes)}"
                )
    return list(dict.fromkeys(violations))


def _axes_text(axes: dict[int, int]) -> str:
    return ", ".join(f"{n} shards on axis {axis}" for axis, n in sorted(axes.items())) or "whole"
