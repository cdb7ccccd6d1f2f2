"""Write a plan into its model as ONNX's device annotations, see `tpcore.annotations`.

The annotations say which operands and results of which nodes are whole or split along an axis, and
into how many parts. They cannot say that a value is a partial sum, that one mesh axis splits it
along two of its own, or which index ranges a part has: a packed (q|k|v) dim is written as if its
parts were contiguous. Nor is said that a node cuts a weight that is held whole. What is left out
follows from the rest: read back, they make the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import onnx
import onnx_ir as ir

from graph.annotation_checks import FIRST_IR_VERSION, Extent
from graph.annotations import Finder, Place, Site, sites_of
from graph.canonicalize import canonicalize
from graph.errors import PlanError
from graph.external_data import tensors_of
from graph.reader import read_model, read_proto
from tpcore.annotations import whole_outputs
from tpcore.plan import Plan
from tpcore.planner.asked import count_parts
from tpcore.sharding import Sharding
from tpcore.strategies import StrategySpace


def annotated_model(path: Path, plan: Plan, output: Path) -> onnx.ModelProto:
    """The model at `path` with `plan` as its annotations, to be written to `output`.

    Weights stay where they are, and so do annotations for other numbers of devices.

    Raises:
        PlanError: there is nothing to annotate, or the weights cannot be found from `output`.
    """
    ranks = plan.mesh.size
    if ranks == 1:
        raise PlanError("one rank has nothing to annotate. Give --tp 2 or more with --annotate.")
    proto = read_proto(path)
    _check_place(proto, path, output)
    name = _new_configuration(proto, ranks)
    nodes = {result: node for node in proto.graph.node for result in node.output if result}
    specs: dict[tuple[str, str], onnx.ShardingSpecProto] = {}
    for site, axis, sharding in _annotated_sites(path, plan):
        if site.key in nodes:
            spec = _spec(site, axis, sharding, ranks)
            specs.setdefault((site.key, site.name), spec)
    for (key, _), spec in specs.items():
        entries = nodes[key].device_configurations
        entry = next((e for e in entries if e.configuration_id == name), None)
        (entry or entries.add(configuration_id=name)).sharding_spec.append(spec)
    proto.ir_version = max(proto.ir_version, FIRST_IR_VERSION)
    return proto


def _check_place(proto: onnx.ModelProto, path: Path, output: Path) -> None:
    if output.resolve() == path.resolve():
        raise PlanError(f"--annotate '{output}' would replace the model. Choose another name.")
    external = {
        entry.value
        for tensor in tensors_of(proto)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if external and output.resolve().parent != path.resolve().parent:
        raise PlanError(
            f"weights of '{path}' lie in '{sorted(external)[0]}' beside it, where '{output}' would "
            f"not find them. Write it to '{path.parent}'."
        )


def _new_configuration(proto: onnx.ModelProto, ranks: int) -> str:
    """Take the place of what the model says of so many devices; returns the name."""
    old = {c.name for c in proto.configuration if c.num_devices == ranks}
    kept = [c for c in proto.configuration if c.num_devices != ranks]
    del proto.configuration[:]
    proto.configuration.extend(kept)
    for node in proto.graph.node:
        entries = [e for e in node.device_configurations if e.configuration_id not in old]
        del node.device_configurations[:]
        node.device_configurations.extend(entries)
    name = f"tp{ranks}"
    while name in {c.name for c in kept}:
        name += "_"
    proto.configuration.add(name=name, num_devices=ranks)
    return name


def _annotated_sites(path: Path, plan: Plan) -> Iterator[tuple[Site, int | None, Sharding]]:
    """Sites of which the plan says something, with the axis that is split, or None."""
    model = read_model(path)
    sites = list(sites_of(model))
    canonical, _ = canonicalize(model)
    finder, held = Finder(canonical.graph), _Held(plan, whole_outputs(canonical.graph))
    for site in sites:
        for place in finder.places(site)[:1]:
            sharding = held.at(place)
            if sharding is None or sharding.is_partial or len(sharding.dims) > 1:
                continue
            axis = place.site_axis(sharding.dims[0]) if sharding.dims else None
            if axis is None or _can_say(site, axis, sharding):
                yield site, axis, sharding


def _can_say(site: Site, axis: int, sharding: Sharding) -> bool:
    """Whether the split is one of the tensor in the file, and ranks with one part are neighbours.

    Zero points are split by codes, of which the file has several to a byte.
    """
    parts = len(_groups(sharding))
    size: Extent = parts
    if site.dims is not None:
        size = site.dims[axis] if axis < len(site.dims) else 0
    return parts == count_parts(sharding) and not (isinstance(size, int) and size < parts)


class _Held:
    """How a plan holds what is at a place of its model, whose names are those of any other copy."""

    def __init__(self, plan: Plan, whole: set[ir.Value]) -> None:
        self.plan = plan
        self.whole = whole
        self.values = {name: value for value, name in plan.names.items()}
        self.strategies = {node.name: s for node, s in plan.choices.strategy.items()}
        # A plan that splits nothing may have been made without a way to.
        space = StrategySpace(plan.model.graph, plan.space.factors, plan.mesh.size)
        self.atoms = {atom for chain in space.chains for atom in chain.atoms}

    def at(self, place: Place) -> Sharding | None:
        """How a node reads or makes a value; None for a value that nothing can split."""
        value = self.values.get(place.value.name or "")
        if value is None or not any(dim & self.atoms for dim in self.plan.space.atoms_of(value)):
            return None
        hub = self.plan.choices.hub[value]
        strategy = self.strategies.get(place.node.name) if place.node is not None else None
        if strategy is not None and not place.is_result:
            read = strategy.operands[place.index]
            if read != hub and place.value.const_value is not None:
                return None  # nodes must say the same of a weight: nothing where one cuts it
            hub = read
        elif strategy is not None and place.value in self.whole:
            made = strategy.results[place.index]  # that outputs are whole goes without saying
            if made.kind != "S":
                return None
            hub = made
        return self.plan.space.sharding(value, hub)


def _groups(sharding: Sharding) -> list[list[int]]:
    """Ranks that hold the same part, in order."""
    ranges = sharding.splits[0].units.ranges
    return [list(group) for _, group in groupby(range(len(ranges)), lambda rank: ranges[rank])]


def _spec(site: Site, axis: int | None, sharding: Sharding, ranks: int) -> onnx.ShardingSpecProto:
    spec = onnx.ShardingSpecProto(tensor_name=site.name)
    groups = [list(range(ranks))] if axis is None else _groups(sharding)
    for number, group in enumerate(groups, start=1):
        if len(group) == 1:
            spec.device.append(group[0])
            continue
        spec.device.append(-number)
        spec.index_to_device_group_map.add(key=-number, value=group)
    if axis is not None:
        simple = spec.sharded_dim.add(axis=axis).simple_sharding.add(num_shards=len(groups))
        size = None if site.dims is None else site.dims[axis]
        if isinstance(size, int):
            simple.dim_value = size
        elif size is not None:
            simple.dim_param = size
    return spec
