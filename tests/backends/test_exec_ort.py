"""The onnxruntime executor against onnxruntime alone, on weights that lie in a mapped file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from backends.exec_ort import OrtExecutor
from backends.given_weights import used_as_given
from backends.lockstep import run_lockstep
from graph.reader import read_model

SIZE = 36


def moved_transpose() -> onnx.ModelProto:
    """onnxruntime moves the Transpose behind the Add, whose square constant it then transposes."""
    random = np.random.default_rng(0)
    shapes = {"w": (SIZE, SIZE), "added": (1, SIZE, SIZE), "w2": (SIZE, SIZE)}
    weights = [
        numpy_helper.from_array(random.standard_normal(shape, np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Add", ["t", "added"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Transpose", ["r"], ["s"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["s", "w2"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, SIZE, SIZE])
        for name in "xy"
    )
    graph = helper.make_graph(nodes, "moved", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_weight_that_the_optimizer_rewrites_in_place(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(moved_transpose(), path, save_as_external_data=True, size_threshold=0)
    inputs = {"x": np.random.default_rng(1).standard_normal((2, SIZE, SIZE), np.float32)}
    (want,) = onnxruntime.InferenceSession(str(path)).run(None, inputs)
    (got,) = run_lockstep([read_model(path)], [inputs], OrtExecutor())
    assert np.abs(got["y"] - want).max() <= 1e-5 * np.abs(want).max()


def test_matrices_are_used_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(moved_transpose(), path, save_as_external_data=True, size_threshold=0)
    weights = read_model(path).graph.initializers
    assert {name: used_as_given(value) for name, value in weights.items()} == {
        "w": True, "added": False, "w2": True,
    }  # fmt: skip
