"""What ONNX requires of device annotations: one sentence for each violation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx_ir as ir

FIRST_IR_VERSION = 11
"""The file format that introduced device annotations."""
Extent = int | str | None
"""A size: a number, the name of a symbol, or unknown."""


def label_of(node: ir.Node) -> str:
    """`node 'up' (MatMul)`; a node without a name is known by its first result."""
    if node.name:
        return f"node '{node.name}' ({node.op_type})"
    return f"the node of '{node.outputs[0].name if node.outputs else ''}' ({node.op_type})"


def declared_dims(value: ir.Value) -> tuple[Extent, ...] | None:
    """Sizes of a value as its file declares them."""
    shape = value.shape if value.const_value is None else value.const_value.shape
    if shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in shape)


def shards_per_axis(spec: ir.ShardingSpec, rank: int | None) -> dict[int, int]:
    """Split axis -> number of shards; axes are counted from the front where the rank is known."""
    found = {}
    for split in spec.sharded_dims:
        shards = math.prod(simple.num_shards for simple in split.simple_shardings)
        if shards != 1:
            found[_from_front(split.axis, rank)] = shards
    return found


def groups_of(spec: ir.ShardingSpec) -> list[tuple[int, ...]]:
    """The devices that hold each shard, in order; empty where the spec does not say."""
    groups = {entry.key: tuple(entry.value) for entry in spec.index_to_device_group_map}
    return [groups.get(index, (index,)) for index in spec.device]


def violations_of(model: ir.Model) -> list[str]:
    """All that is wrong with a model's device annotations, functions and bodies included."""
    found = list(_configuration_violations(model))
    nodes = [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f)]
    for node in nodes:
        found += _node_violations(node, model.device_configurations)
    return list(dict.fromkeys(found))


def _configuration_violations(model: ir.Model) -> Iterator[str]:
    if model.ir_version < FIRST_IR_VERSION:
        yield (
            f"its ONNX file format (IR version) is {model.ir_version}, which has no device "
            f"annotations: {FIRST_IR_VERSION} is the first that does"
        )
    configurations = model.device_configurations
    for number, configuration in enumerate(configurations):
        if not configuration.name:
            yield f"device configuration number {number} has no name"
        count, names = configuration.num_devices, configuration.device_names
        if count < 1:
            yield f"device configuration '{configuration.name}' has {count} devices, not 1 or more"
        if names and len(names) != count:
            yield (
                f"device configuration '{configuration.name}' has {count} devices and names "
                f"{len(names)}"
            )
    for name, times in Counter(c.name for c in configurations if c.name).items():
        if times > 1:
            yield f"device configuration '{name}' is defined {times} times"


def _node_violations(
    node: ir.Node, configurations: Sequence[ir.ModelConfiguration]
) -> Iterator[str]:
    label, known = label_of(node), {c.name: c.num_devices for c in configurations}
    names = [
        entry.configuration.name if entry.configuration is not None else ""
        for entry in node.device_configurations
    ]
    for name, times in Counter(names).items():
        if not name:
            yield f"{label} has an annotation of no device configuration"
        elif name not in known:
            has = ", ".join(f"'{other}'" for other in known) or "none"
            yield f"{label} refers to device configuration '{name}', the model has {has}"
        elif times > 1:
            yield f"{label} has {times} annotations of device configuration '{name}'"
    for name, entry in zip(names, node.device_configurations, strict=True):
        if entry.pipeline_stage is not None and entry.pipeline_stage < 0:
            yield f"{label} has pipeline stage {entry.pipeline_stage}, stages count from 0"
        yield from _tensor_violations(node, label, entry.sharding_specs)
        for spec in entry.sharding_specs:
            dims = None if spec.value is None else declared_dims(spec.value)
            yield from spec_violations(label, spec, dims, known.get(name))


def _tensor_violations(
    node: ir.Node, label: str, specs: Sequence[ir.ShardingSpec]
) -> Iterator[str]:
    tensors = {value for value in (*node.inputs, *node.outputs) if value is not None}
    for value, times in Counter(spec.value for spec in specs).items():
        if value is None:
            yield f"{label} has a sharding spec of no tensor"
        elif value not in tensors:
            yield f"{label} shards '{value.name}', which is none of its inputs and outputs"
        elif times > 1:
            yield f"{label} has {times} sharding specs for '{value.name}'"


def spec_violations(
    label: str, spec: ir.ShardingSpec, dims: Sequence[Extent] | None, devices: int | None
) -> list[str]:
    """What is wrong with one spec; `dims` and `devices` are None where they are not known."""
    where = f"'{spec.value.name}'" if spec.value is not None else "a tensor"
    found = list(_axis_violations(label, where, spec, dims))
    for split in spec.sharded_dims:
        found += _shard_violations(label, where, split, dims)
    found += _group_violations(label, where, spec)
    if devices is not None and devices > 0:
        found += _device_violations(label, where, spec, devices)
    return found


def _axis_violations(
    label: str, where: str, spec: ir.ShardingSpec, dims: Sequence[Extent] | None
) -> Iterator[str]:
    rank = None if dims is None else len(dims)
    for split in spec.sharded_dims:
        if rank is not None and not -rank <= split.axis < rank:
            yield f"{label} splits axis {split.axis} of {where}, which has {rank} axes"
    axes = Counter(_from_front(split.axis, rank) for split in spec.sharded_dims)
    for axis, times in axes.items():
        if times > 1:
            yield f"{label} splits axis {axis} of {where} {times} times"


def _shard_violations(
    label: str, where: str, split: ir.ShardedDim, dims: Sequence[Extent] | None
) -> Iterator[str]:
    place = f"axis {split.axis} of {where}"
    if not split.simple_shardings:
        yield f"{label} splits {place} without a number of shards"
    counts = [simple.num_shards for simple in split.simple_shardings]
    for count in counts:
        if count < 1:
            yield f"{label} splits {place} into {count} shards, not 1 or more"
    if dims is None or not -len(dims) <= split.axis < len(dims):
        return
    size, shards = dims[split.axis], math.prod(counts)
    if isinstance(size, int) and shards > size:
        yield f"{label} splits {place} into {shards} shards, it has {size} indices"
    said = [simple.dim for simple in split.simple_shardings]
    numbers = [dim for dim in said if isinstance(dim, int)]
    if said and len(numbers) == len(said):
        if isinstance(size, int) and math.prod(numbers) != size:
            product = " · ".join(map(str, numbers))
            yield f"{label} says that {place} has {product} indices, it has {size}"
    elif len(said) == 1 and not isinstance(said[0], int):
        symbol = said[0].value
        if isinstance(symbol, str) and isinstance(size, str) and symbol != size:
            yield f"{label} says that {place} has '{symbol}' indices, it has '{size}'"


def _group_violations(label: str, where: str, spec: ir.ShardingSpec) -> Iterator[str]:
    for entry in spec.index_to_device_group_map:
        if not entry.value:
            yield f"{label} has an empty device group {entry.key} for {where}"
    keys = Counter(entry.key for entry in spec.index_to_device_group_map)
    for key, times in keys.items():
        if times > 1:
            yield f"{label} defines device group {key} for {where} {times} times"


def _device_violations(
    label: str, where: str, spec: ir.ShardingSpec, devices: int
) -> Iterator[str]:
    legal = f"devices are 0 to {devices - 1}"
    groups = {entry.key for entry in spec.index_to_device_group_map}
    for index in spec.device:
        if index not in groups and not 0 <= index < devices:
            kind = "" if index >= 0 else ", and there is no group of that number"
            yield f"{label} puts {where} on device {index}: {legal}{kind}"
    for entry in spec.index_to_device_group_map:
        for member in entry.value:
            if not 0 <= member < devices:
                yield f"{label} has device {member} in group {entry.key} for {where}: {legal}"
    shards = math.prod(shards_per_axis(spec, None).values())
    if shards < 1:
        return
    if spec.device and shards not in (1, len(spec.device)):
        yield f"{label} splits {where} into {shards} shards and lists {len(spec.device)} devices"
    elif not spec.device and shards not in (1, devices):
        yield f"{label} splits {where} into {shards} shards and lists none of {devices} devices"


def _from_front(axis: int, rank: int | None) -> int:
    return axis + rank if rank is not None and -rank <= axis < 0 else axis
