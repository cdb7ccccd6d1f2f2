"""The reader refuses, with one sentence, everything that is not a usable ONNX model."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import GraphError
from graph.reader import external_files, read_model

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
Edit = Callable[[onnx.ModelProto], None]


def external_tensor(name: str, location: str, **numbers: object) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **numbers}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def matmul_proto(weight: onnx.TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "mm"),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def write(
    folder: Path,
    location: str = "w.bin",
    edit: Edit | None = None,
    numbers: dict[str, object] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w.bin").write_bytes(bytes(16) + WEIGHT.tobytes())
    proto = matmul_proto(
        external_tensor("w", location, **({"offset": 16, "length": 48} | (numbers or {})))
    )
    if edit is not None:
        edit(proto)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(GraphError) as caught:
        read_model(path)
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def test_reads_external_weights_lazily(tmp_path: Path) -> None:
    model = read_model(write(tmp_path))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.raw is None
    assert os.path.isabs(tensor.path)
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    assert external_files(tmp_path / "m.onnx") == {"w.bin": 64}


def test_reads_embedded_weights(tmp_path: Path) -> None:
    onnx.save(matmul_proto(numpy_helper.from_array(WEIGHT, "w")), tmp_path / "m.onnx")
    tensor = read_model(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


def test_refuses_what_is_no_onnx_file(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.onnx", tmp_path / "text.onnx"
    empty.write_bytes(b"")
    text.write_text("hello, this is no model at all")
    refused(tmp_path / "absent.onnx", "there is no file", "absent.onnx")
    refused(tmp_path, "is a directory")
    refused(empty, "is empty (0 bytes)")
    refused(text, "is not an ONNX file")
    (tmp_path / "link.onnx").symlink_to("nowhere")
    refused(tmp_path / "link.onnx", "there is no file")
    refused(tmp_path / "a\0b", "cannot be read")


def test_refuses_random_and_cut_files(tmp_path: Path) -> None:
    whole = write(tmp_path).read_bytes()
    rng = np.random.default_rng(0)
    cut = tmp_path / "cut.onnx"
    for contents in [whole[: len(whole) // 2], whole[:40], rng.bytes(4000), bytes(100)]:
        cut.write_bytes(contents)
        refused(cut)


def test_refuses_a_pipe_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    os.mkfifo(tmp_path / "pipe.bin")
    refused(tmp_path / "pipe.onnx", "not a regular file")
    refused(write(tmp_path, "pipe.bin"), "'pipe.bin' is not a regular file")
    refused(Path("/dev/zero"), "not a regular file")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"offset": 17}, ("bytes 17 to 65", "which has 64", "truncated")),
        ({"offset": 10**30}, ("not both numbers",)),
        ({"offset": -4}, ("not both numbers",)),
        ({"offset": "0x10"}, ("not both numbers",)),
        ({"length": 44}, ("needs 48 bytes", "states 44")),
        ({"length": 10**12}, ("needs 48 bytes", "states 1000000000000")),
    ],
)
def test_refuses_wrong_extents(
    tmp_path: Path, numbers: dict[str, object], words: tuple[str, ...]
) -> None:
    refused(write(tmp_path, numbers=numbers), "tensor 'w' FLOAT[3, 4]", *words)


@pytest.mark.parametrize(
    "location", ["../w.bin", "a/../../w.bin", "a/../w.bin", "/etc/passwd", "w\0.bin", ""]
)
def test_refuses_locations_outside(tmp_path: Path, location: str) -> None:
    refused(write(tmp_path / "model", location), "is not a plain path inside")


def test_refuses_missing_data_and_links_that_leave(tmp_path: Path) -> None:
    outside = tmp_path / "secret.bin"
    outside.write_bytes(bytes(64))
    path = write(tmp_path / "model", "link.bin")
    refused(path, "'link.bin' cannot be opened", "no such file")
    (path.parent / "link.bin").symlink_to(outside)
    refused(path, "outside the model's folder")
    (path.parent / "folder").symlink_to(tmp_path)
    refused(write(tmp_path / "model", "folder/secret.bin"), "outside the model's folder")


def test_accepts_links_that_stay_and_hard_links(tmp_path: Path) -> None:
    path = write(tmp_path, "link.bin")
    (tmp_path / "link.bin").symlink_to("w.bin")
    os.link(tmp_path / "w.bin", tmp_path / "other.bin")
    tensor = read_model(path).graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


def test_reads_the_hugging_face_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "onnx"
    snapshot.mkdir(parents=True)
    path = write(blobs)
    path.rename(blobs / "1111")
    (blobs / "w.bin").rename(blobs / "2222")
    (snapshot / "m.onnx").symlink_to("../../../blobs/1111")
    (snapshot / "w.bin").symlink_to("../../../blobs/2222")
    tensor = read_model(snapshot / "m.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    (snapshot / "w.bin").unlink()
    (tmp_path / "elsewhere").write_bytes(bytes(64))
    (snapshot / "w.bin").symlink_to(tmp_path / "elsewhere")
    refused(snapshot / "m.onnx", "outside the model's folder")


def test_reports_all_tensors_at_once(tmp_path: Path) -> None:
    def add_tensors(proto: onnx.ModelProto) -> None:
        for i in range(30):
            tensor = external_tensor(f"v{i}", "w.bin", offset=100 + i, length=48)
            proto.graph.initializer.append(tensor)

    text = refused(write(tmp_path, edit=add_tensors), "'v0'", "'v9'", "and 20 more")
    assert "'v10'" not in text


def test_refuses_embedded_weights_of_the_wrong_size(tmp_path: Path) -> None:
    def shorten(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHT, "w"))
        proto.graph.initializer[0].raw_data = bytes(40)
        typed = TensorProto(name="t", data_type=TensorProto.INT64, dims=[3], int64_data=[1, 2])
        proto.graph.initializer.append(typed)
        proto.graph.initializer.append(TensorProto(name="u", data_type=99, dims=[3]))
        proto.graph.initializer.append(TensorProto(name="n", data_type=1, dims=[-3]))

    refused(
        write(tmp_path, edit=shorten),
        "'w' FLOAT[3, 4] needs 48 bytes, the file holds 40",
        "'t' INT64[3] needs 3 elements, the file holds 2",
        "'u' has dtype number 99",
        "'n' has dtype number 1 and shape [-3]",
    )


def _newer_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 27


def _newer_ir(proto: onnx.ModelProto) -> None:
    proto.ir_version = 99


def _undefined(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "nothing"


def _twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Neg", ["x"], ["y"]))


def _no_output(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def _uncomputed_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "z"


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "y"


def _subgraph_undefined(proto: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Neg", ["ghost"], ["b"])], "b", [], [])
    node = helper.make_node("If", ["x"], ["i"], "if", then_branch=branch, else_branch=branch)
    proto.graph.node.append(node)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_newer_opset, ("opset 27", "up to 26")),
        (_newer_ir, ("(IR version) is 99", "up to 14")),
        (_undefined, ("node 'mm' (MatMul)", "'nothing'")),
        (_twice, ("value 'y' is defined 2 times",)),
        (_no_output, ("no outputs",)),
        (_uncomputed_output, ("output 'z' is computed by no node",)),
        (_cycle, ("form a cycle",)),
        (_subgraph_undefined, ("'ghost'", "subgraph 'then_branch' of node 'if'")),
    ],
)
def test_refuses_malformed_graphs(tmp_path: Path, edit: Edit, words: tuple[str, ...]) -> None:
    refused(write(tmp_path, edit=edit), *words)


def test_sorts_nodes_and_allows_other_domains(tmp_path: Path) -> None:
    def shuffle(proto: onnx.ModelProto) -> None:
        first = onnx.NodeProto()
        first.CopyFrom(proto.graph.node[0])
        del proto.graph.node[0]
        proto.graph.node.append(first)
        proto.opset_import[0].domain = "ai.onnx"
        proto.opset_import.add(domain="com.microsoft", version=1)

    model = read_model(write(tmp_path, edit=shuffle))
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu"]
    assert model.graph.opset_imports == {"": 18, "com.microsoft": 1}


def test_is_fast_for_many_nodes(tmp_path: Path) -> None:
    def lengthen(proto: onnx.ModelProto) -> None:
        names = ["x", *(f"v{i}" for i in range(2000))]
        for a, b in itertools.pairwise(names):
            proto.graph.node.append(helper.make_node("Neg", [a], [b]))

    path = write(tmp_path, edit=lengthen)
    start = time.perf_counter()
    read_model(path)
    assert time.perf_counter() - start < 2
