"""Weight files hold every rank's parts, are read by both kinds of tool, and cost little memory."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.numpy

from graph.layout import Box
from graph.reader import read_model
from graph.weights import ShardTensor
from graph.writer import write_models

EXTERNAL = onnx.TensorProto.EXTERNAL
NUMBERS = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
DTYPES = [
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.INT64,
    ir.DataType.INT8,
    ir.DataType.UINT16,
    ir.DataType.BOOL,
    ir.DataType.INT4,
    ir.DataType.UINT4,
]


def model_of(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A graph with these initializers and nothing to do."""
    values = {name: ir.val(name, const_value=tensor) for name, tensor in tensors.items()}
    x = ir.val("x", ir.DataType.FLOAT, [None, None])
    opsets, consts = {"": 21}, list(values.values())
    graph = ir.Graph([x], [x], nodes=[], initializers=consts, opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=14)


def offset(value: ir.Value) -> int:
    assert isinstance(value.const_value, ir.ExternalTensor)
    return value.const_value.offset or 0


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_in_uneven_packed_and_zero_parts(tmp_path: Path, dtype: ir.DataType) -> None:
    numbers = (NUMBERS * 3).clip(-7, 7) if dtype != ir.DataType.UINT4 else NUMBERS.clip(0, 7)
    source = ir.Tensor(numbers.astype(dtype.numpy()), dtype=dtype, name="s")
    boxes: dict[str, Box] = {
        "rows": (((3, 20),), None),
        "columns": (None, ((1, 48),)),
        "packed": (((0, 9), (30, 37)), ((5, 50),)),
        "whole": (None, None),
        "none": (((4, 4),), None),
    }
    shards: dict[str, ir.TensorProtocol] = {n: ShardTensor(source, b) for n, b in boxes.items()}
    shards["zero"] = ShardTensor(source, (None, None), zero=True)
    shards["tied"] = ShardTensor(source, boxes["columns"])
    shards["small"] = ShardTensor(source, (((0, 1),), ((0, 2),)))
    want = {name: tensor.numpy() for name, tensor in shards.items()}
    write_models([tmp_path], [{"model.onnx": model_of(shards)}])
    loaded = read_model(tmp_path / "model.onnx").graph.initializers
    assert set(loaded) == set(want)
    for name, array in want.items():
        tensor = loaded[name].const_value
        assert tensor is not None and tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert offset(loaded["tied"]) == offset(loaded["columns"])
    onnx.load(tmp_path / "model.onnx")
    if dtype.bitwidth > 8:
        stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(stored["packed"], want["packed"])
        assert "tied" not in stored


def test_weights_are_aligned_and_onnxruntime_reads_them(tmp_path: Path) -> None:
    big = np.random.default_rng(1).standard_normal((512, 513)).astype(np.float32)
    tensors: dict[str, ir.TensorProtocol] = {
        "odd": ir.tensor(np.ones(77, np.float32)),
        "big": ir.tensor(big),
    }
    model = model_of(tensors)
    product = ir.node("MatMul", [model.graph.inputs[0], model.graph.initializers["big"]])
    product.outputs[0].name, product.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(product)
    model.graph.outputs[0] = product.outputs[0]
    write_models([tmp_path], [{"model.onnx": model}])
    loaded = read_model(tmp_path / "model.onnx").graph.initializers
    assert offset(loaded["odd"]) % 64 == offset(loaded["big"]) % 4096 == 0
    x = np.ones((2, 512), np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ big, rtol=1e-4, atol=1e-4)


def test_weights_of_subgraphs_and_attributes_travel_along(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "w.bin").write_bytes(NUMBERS.tobytes())
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (bool keep, float[40, 50] x) => (float[40, 50] y) {
      y = If (keep) <then_branch = t () => (float[40, 50] t1) { t1 = Add (w, x) },
                     else_branch = f () => (float[40, 50] f1) { f1 = Identity (x) }>
    }
    """
    proto = onnx.parser.parse_model(text)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[40, 50], data_location=EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    branch = proto.graph.node[0].attribute[0].g
    branch.initializer.append(tensor)
    constant = onnx.helper.make_node("Constant", [], ["c"])
    attribute = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(tensor)
    proto.graph.node.insert(0, constant)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    write_models([tmp_path], [{"model.onnx": read_model(folder / "m.onnx")}])
    shutil.rmtree(folder)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    got = session.run(None, {"keep": np.array(True), "x": NUMBERS})[0]
    np.testing.assert_array_equal(got, NUMBERS * 2)


def test_each_source_is_read_once_and_one_is_held(tmp_path: Path) -> None:
    reads: list[str] = []
    ranks: list[dict[str, ir.TensorProtocol]] = [{} for _ in range(4)]
    for name in ("a", "b", "c", "d"):

        def read(name: str = name) -> ir.Tensor[Any]:
            reads.append(name)
            return ir.Tensor(np.full((1024, 1024), ord(name), np.float32), name=name)

        source = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([1024, 1024]), name=name)
        for rank in range(4):
            box: Box = (None, ((rank * 256, rank * 256 + 256),))
            ranks[rank][name] = ShardTensor(source, box)
    done: list[tuple[int, int]] = []
    folders = [tmp_path / str(rank) for rank in range(4)]
    for folder in folders:
        folder.mkdir()
    tracemalloc.start()
    models = [{"model.onnx": model_of(tensors)} for tensors in ranks]
    write_models(folders, models, lambda now, total: done.append((now, total)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reads == ["a", "b", "c", "d"]
    assert done == [((i + 1) << 22, 4 << 22) for i in range(4)]
    assert peak < 10 << 20  # of 16 MB in all: one source of 4, one block of at most 4


def test_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    write_models(
        [tmp_path], [{"model.onnx": model_of({"w": ir.tensor(bits.view(ml_dtypes.bfloat16))})}]
    )
    tensor = read_model(tmp_path / "model.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy().view(np.uint16), bits)
