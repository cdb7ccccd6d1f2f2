"""Device annotations: every mistake has a sentence of its own, and all are told at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.annotations import Bound, bind, take_annotations
from graph.canonicalize import canonicalize
from graph.errors import GraphError
from graph.reader import read_model

SIZE = 64
Entry = onnx.NodeDeviceConfigurationProto
Spec = onnx.ShardingSpecProto
Edit = Callable[[onnx.ModelProto, onnx.NodeProto], None]


def chain(length: int) -> onnx.ModelProto:
    """x0 -> MatMul(x0, w0) -> … -> MatMul(…, w), the last two of one weight; nothing is declared
    of what is in between."""
    weights = [f"w{i}" for i in range(length - 2)] + ["w", "w"]
    nodes = [
        helper.make_node("MatMul", [f"x{i}", name], [f"x{i + 1}"], f"n{i}")
        for i, name in enumerate(weights)
    ]
    array = np.eye(SIZE, dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info(f"x{length}", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(array, name) for name in dict.fromkeys(weights)],
    )
    proto = helper.make_model(graph, ir_version=11, opset_imports=[helper.make_opsetid("", 18)])
    proto.configuration.add(name="tp2", num_devices=2)
    return proto


def entry(node: onnx.NodeProto, configuration: str = "tp2") -> Entry:
    """A node's entry for a configuration."""
    for found in node.device_configurations:
        if found.configuration_id == configuration:
            return found
    return node.device_configurations.add(configuration_id=configuration)


def split(node: onnx.NodeProto, axis: int = 1, tensor: str = "", shards: int = 2) -> Spec:
    """Split a node's weight, or `tensor`, over both devices."""
    spec = entry(node).sharding_spec.add(tensor_name=tensor or node.input[1])
    spec.device.extend([0, 1])
    spec.sharded_dim.add(axis=axis).simple_sharding.add(num_shards=shards)
    return spec


def group(spec: Spec, key: int, *members: int) -> None:
    """Put the first shard on a group of devices."""
    spec.device[0] = key
    spec.index_to_device_group_map.add(key=key, value=members)


# --- mistakes -------------------------------------------------------------------------------------


def no_name(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    proto.configuration.add(num_devices=2)


def same_name(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    for _ in range(2):
        proto.configuration.add(name="twice", num_devices=2)


def no_devices(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    proto.configuration.add(name="none", num_devices=0)


def three_names(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    proto.configuration.add(name="named", num_devices=2, device=["a", "b", "c"])


def no_configuration(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    entry(node, "")


def unknown_configuration(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    entry(node, "tp9")


def same_configuration(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    for _ in range(2):
        node.device_configurations.add(configuration_id="tp2")


def no_tensor(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    entry(node).sharding_spec.add()


def foreign_tensor(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, tensor="x0")


def unknown_tensor(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, tensor="nobody")


def same_tensor(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node)
    split(node)


def axis_too_large(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, axis=5)


def axis_of_a_result(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, axis=-3, tensor=node.output[0])


def axis_twice(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    spec = split(node, axis=1)
    spec.sharded_dim.add(axis=-1).simple_sharding.add(num_shards=1)


def no_number(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node).sharded_dim[0].simple_sharding.pop()


def zero_shards(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, shards=0)


def three_shards(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, shards=3)


def three_shards_on_no_devices(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    del split(node, shards=3).device[:]


def too_many_shards(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    spec = split(node, shards=2 * SIZE)
    del spec.device[:]
    spec.device.extend([0, 1] * SIZE)


def foreign_device(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node).device[1] = 2


def no_group(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node).device[1] = -4


def foreign_member(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    group(split(node), -1, 0, 7)


def empty_group(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    group(split(node), -1)


def same_group(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    spec = split(node)
    group(spec, -1, 0)
    group(spec, -1, 0)


def wrong_size(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node).sharded_dim[0].simple_sharding[0].dim_value = 32


def wrong_product(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    simple = split(node).sharded_dim[0].simple_sharding
    simple[0].dim_value = 32
    simple.add(dim_value=3, num_shards=1)


def wrong_symbol(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(node, axis=0, tensor=node.output[0]).sharded_dim[0].simple_sharding[0].dim_param = "m"


def negative_stage(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    entry(node).pipeline_stage = -1


def tied_weight(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    split(proto.graph.node[-2], axis=0)
    split(proto.graph.node[-1], axis=1)


def old_format(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    entry(node)
    proto.ir_version = 10


N = "node 'n{i}' (MatMul)"
MISTAKES: list[tuple[Edit, str]] = [
    (no_name, "device configuration number {c} has no name"),
    (same_name, "device configuration 'twice' is defined 2 times"),
    (no_devices, "device configuration 'none' has 0 devices, not 1 or more"),
    (three_names, "device configuration 'named' has 2 devices and names 3"),
    (no_configuration, f"{N} has an annotation of no device configuration"),
    (unknown_configuration, f"{N} refers to device configuration 'tp9', the model has {{has}}"),
    (same_configuration, f"{N} has 2 annotations of device configuration 'tp2'"),
    (no_tensor, f"{N} has a sharding spec of no tensor"),
    (foreign_tensor, f"{N} shards 'x0', which is none of its inputs and outputs"),
    (unknown_tensor, f"{N} shards 'nobody', which is none of its inputs and outputs"),
    (same_tensor, f"{N} has 2 sharding specs for 'w{{i}}'"),
    (axis_too_large, f"{N} splits axis 5 of 'w{{i}}', which has 2 axes"),
    (axis_of_a_result, f"{N} splits axis -3 of 'x{{o}}', which has 2 axes"),
    (axis_twice, f"{N} splits axis 1 of 'w{{i}}' 2 times"),
    (no_number, f"{N} splits axis 1 of 'w{{i}}' without a number of shards"),
    (zero_shards, f"{N} splits axis 1 of 'w{{i}}' into 0 shards, not 1 or more"),
    (three_shards, f"{N} splits 'w{{i}}' into 3 shards and lists 2 devices"),
    (
        three_shards_on_no_devices,
        f"{N} splits 'w{{i}}' into 3 shards and lists none of 2 devices",
    ),
    (too_many_shards, f"{N} splits axis 1 of 'w{{i}}' into 128 shards, it has 64 indices"),
    (foreign_device, f"{N} puts 'w{{i}}' on device 2: devices are 0 to 1"),
    (
        no_group,
        f"{N} puts 'w{{i}}' on device -4: devices are 0 to 1, and there is no group of that number",
    ),
    (foreign_member, f"{N} has device 7 in group -1 for 'w{{i}}': devices are 0 to 1"),
    (empty_group, f"{N} has an empty device group -1 for 'w{{i}}'"),
    (same_group, f"{N} defines device group -1 for 'w{{i}}' 2 times"),
    (wrong_size, f"{N} says that axis 1 of 'w{{i}}' has 32 indices, it has 64"),
    (wrong_product, f"{N} says that axis 1 of 'w{{i}}' has 32 · 3 indices, it has 64"),
    (wrong_symbol, f"{N} says that axis 0 of 'x{{o}}' has 'm' indices, it has 'n'"),
    (negative_stage, f"{N} has pipeline stage -1, stages count from 0"),
    (
        tied_weight,
        "node 'n{a}' (MatMul) and node 'n{b}' (MatMul) annotate weight 'w' differently: "
        "2 shards on axis 0 and 2 shards on axis 1",
    ),
    (
        old_format,
        "its ONNX file format (IR version) is 10, which has no device annotations: 11 is the first "
        "that does",
    ),
]


def bound(proto: onnx.ModelProto, path: Path) -> list[Bound]:
    """The annotations of a model, read from its file."""
    path.write_bytes(proto.SerializeToString())
    model = read_model(path)
    annotations = take_annotations(model)
    canonical, shapes = canonicalize(model)
    return bind(annotations, canonical.graph, shapes, path.name)


def sentences(proto: onnx.ModelProto, path: Path) -> list[str]:
    """What is said of a model with bad annotations."""
    with pytest.raises(GraphError) as caught:
        bound(proto, path)
    before, after = f"'{path.name}' has bad device annotations: ", ". Correct them, or plan without"
    text = str(caught.value)
    assert text.startswith(before) and after in text
    return text.removeprefix(before).split(after)[0].split("; ")


def expected(text: str, number: int, proto: onnx.ModelProto) -> str:
    names = [c.name for c in proto.configuration]
    last = len(proto.graph.node) - 1
    has = ", ".join(f"'{name}'" for name in dict.fromkeys(names))
    unnamed = names.index("") if "" in names else 0
    return text.format(i=number, o=number + 1, c=unnamed, has=has, a=last - 1, b=last)


@pytest.mark.parametrize(("make", "text"), MISTAKES, ids=[edit.__name__ for edit, _ in MISTAKES])
def test_each_mistake_alone_has_one_sentence(make: Edit, text: str, tmp_path: Path) -> None:
    proto = chain(5)
    make(proto, proto.graph.node[1])
    assert sentences(proto, tmp_path / "m.onnx") == [expected(text, 1, proto)]


def test_all_mistakes_in_one_model_are_told_at_once(tmp_path: Path) -> None:
    proto = chain(len(MISTAKES) + 2)
    for (make, _), node in zip(MISTAKES, proto.graph.node):
        make(proto, node)
    found = sentences(proto, tmp_path / "m.onnx")
    assert sorted(found) == sorted(expected(t, i, proto) for i, (_, t) in enumerate(MISTAKES))


def test_very_many_mistakes_are_counted(tmp_path: Path) -> None:
    proto = chain(50)
    for node in proto.graph.node:
        entry(node, "tp9")
    found = sentences(proto, tmp_path / "m.onnx")
    assert len(found) == 41 and found[-1] == "and 10 more"


def test_annotations_of_functions_and_bodies_are_checked(tmp_path: Path) -> None:
    proto = chain(5)
    body = helper.make_node("Relu", ["a"], ["b"], "inside")
    split(body, tensor="a", axis=0, shards=0)
    imports = [helper.make_opsetid("", 18)]
    proto.functions.append(helper.make_function("local", "Own", ["a"], ["b"], [body], imports))
    proto.opset_import.add(domain="local", version=1)
    proto.graph.node[1].CopyFrom(helper.make_node("Own", ["x1"], ["x2"], "call", domain="local"))
    found = sentences(proto, tmp_path / "m.onnx")
    assert found == ["node 'inside' (Relu) splits axis 0 of 'a' into 0 shards, not 1 or more"]


def test_right_annotations_are_found_in_the_canonical_graph(tmp_path: Path) -> None:
    proto = chain(5)
    split(proto.graph.node[0], axis=-1)
    split(proto.graph.node[1], axis=0).sharded_dim[0].simple_sharding[0].dim_value = SIZE
    group(split(proto.graph.node[2]), -1, 0)
    whole = entry(proto.graph.node[1]).sharding_spec.add(tensor_name="x2")
    whole.device.append(-5)
    whole.index_to_device_group_map.add(key=-5, value=[0, 1])
    found = {b.spec.site.name: b for b in bound(proto, tmp_path / "m.onnx")}
    assert {name: b.axes for name, b in found.items()} == {
        "w0": {1: 2},
        "w1": {0: 2},
        "x2": {},
        "w2": {1: 2},
    }
    assert [place.value.name for b in found.values() for place in b.places] == list(found)


def test_a_model_without_annotations_has_none(tmp_path: Path) -> None:
    proto = chain(5)
    del proto.configuration[:]
    proto.ir_version = 10
    assert bound(proto, tmp_path / "m.onnx") == []
