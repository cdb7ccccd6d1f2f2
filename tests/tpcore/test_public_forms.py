"""Forms that public files are written in, beyond what exporters of today write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import GraphError
from graph.names import fix_names
from graph.reader import read_model
from tests.graph.small import small_model, weight
from tests.tpcore.test_hard_forms import proven
from tpcore.compare import compare
from tpcore.partition import Options
from tpcore.run import read_npz, write_npz
from tpcore.shard import split_model
from tpcore.verify import run_ranks, verify_ranks

DENSE = np.zeros((8, 8), np.float32)
DENSE[[1, 5], [2, 7]] = 3, -4


def model_of(
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    opset: int = 18,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A model of `float[3, 8] x`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


def tensor(name: str, *sizes: int | str | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, sizes)


def sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([3, -4], np.float32), "w")
    places = numpy_helper.from_array(np.array([[1, 2], [5, 7]]), "places")
    return helper.make_sparse_tensor(values, places, [8, 8])


def sparse_weight() -> onnx.ModelProto:
    proto = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("y", 3, 8)])
    proto.graph.sparse_initializer.append(sparse())
    return proto


def sparse_constant() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse())
    return model_of([constant, helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("y", 3, 8)])


def classifier() -> onnx.ModelProto:
    """Logistic regression as sklearn exports it: an output is a list of maps."""
    of_int = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    maps = helper.make_value_info("p", helper.make_sequence_type_proto(of_int))
    names = ["rare", "common"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ZipMap", ["h"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        helper.make_node("ArgMax", ["h"], ["i"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "i"], ["label"]),
    ]
    label = tensor("label", 3, kind=TensorProto.STRING)
    return model_of(nodes, [maps, label], w=weight(8, 2), names=np.array(names, object))


def sequence() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("SequenceConstruct", ["h", "x"], ["s"]),
    ]
    return model_of(nodes, [helper.make_tensor_sequence_value_info("s", 1, None)], w=weight(8, 8))


def optional_nothing() -> onnx.ModelProto:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    nothing = helper.make_node("Optional", [], ["o"], type=kind)
    nodes = [nothing, helper.make_node("MatMul", ["x", "w"], ["y"])]
    optional = helper.make_value_info("o", helper.make_optional_type_proto(kind))
    return model_of(nodes, [tensor("y", 3, 8), optional], w=weight(8, 8))


def negative_size() -> onnx.ModelProto:
    proto = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("y", None, 8)], w=weight(8, 8)
    )
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    return proto


def no_import() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["y"], domain="com.microsoft"),
    ]
    return model_of(nodes, [tensor("y", 3, 8)], opset=11, w=weight(8, 8))


def early_layer_norm() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "g", "b"], ["n"]),
        helper.make_node("MatMul", ["n", "v"], ["y"]),
    ]
    weights = {"w": weight(8, 8), "g": weight(8), "b": weight(8), "v": weight(8, 8, seed=1)}
    return model_of(nodes, [tensor("y", 3, 8)], opset=13, **weights)


def late_group_norm() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Unsqueeze", ["h", "last"], ["u"]),
        helper.make_node("GroupNormalization", ["u", "g", "b"], ["y"], num_groups=2),
    ]
    weights = {"w": weight(8, 8), "g": weight(2), "b": weight(2), "last": np.array([2])}
    return model_of(nodes, [tensor("y", 3, 8, 1)], opset=18, **weights)


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a sparse weight": sparse_weight,
    "a sparse constant": sparse_constant,
    "strings and maps": classifier,
    "a sequence of tensors": sequence,
    "an optional that holds nothing": optional_nothing,
    "a size below zero": negative_size,
    "a domain without an import": no_import,
    "an op of a newer opset": early_layer_norm,
    "an op taken away": late_group_norm,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_public_files(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(FORMS[form](), path)
    split = split_model(path, Options(2))
    result = verify_ranks(split.ranks, split.shardings, path)
    assert result.equal and result.outputs, result.to_json()


def test_a_sparse_weight_holds_what_the_file_says(tmp_path: Path) -> None:
    onnx.save(sparse_weight(), tmp_path / "model.onnx")
    value = read_model(tmp_path / "model.onnx").graph.initializers["w"]
    assert value.const_value is not None and np.array_equal(value.const_value.numpy(), DENSE)


def test_strings_and_maps_come_out_as_they_are(tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "model.onnx")
    split = split_model(tmp_path / "model.onnx", Options(2))
    got = run_ranks(split.ranks, split.shardings, {"x": weight(3, 8)})
    scores = weight(3, 8) @ weight(8, 2)
    assert [sorted(entry) for entry in got["p"]] == [[0, 1]] * 3
    assert got["label"].tolist() == [["rare", "common"][i] for i in scores.argmax(1)]
    write_npz(tmp_path / "y.npz", {"label": got["label"]})
    assert read_npz(tmp_path / "y.npz")["label"].tolist() == got["label"].tolist()


def test_a_result_left_out_stays_left_out(tmp_path: Path) -> None:
    """An executor that is asked for the mean of a half-precision norm refuses the graph."""
    text = """(float16[2, 3, 8] x) => (float16[2, 3, 8] y) {
        h = MatMul(x, w)
        n, , , s = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(h, x, g)
        y = Add(n, s) }"""
    weights = {"w": weight(8, 8).astype(np.float16), "g": weight(8).astype(np.float16)}
    assert proven(tmp_path / "model.onnx", text, weights, 2).equal


def test_random_numbers_are_those_of_the_unsplit_model(tmp_path: Path) -> None:
    text = """(float[3, 8] x, bool c) => (float[3, 8] y) {
        h = MatMul(x, w) n = RandomNormalLike(h)
        m = If (c) <
            then_branch = a () => (float[3, 8] p) { p = RandomUniformLike(h) },
            else_branch = b () => (float[3, 8] q) { q = Neg(h) }>
        s = Add(n, m) y = Add(h, s) }"""
    assert proven(tmp_path / "model.onnx", text, {"w": weight(8, 8)}, 3).equal


BODIES = """(bool c, float[4] x) => (float[4] y, float[4] z) {
    h = Neg(x)
    y = If (c) <
        then_branch = a () => (float[4] r) { t = Abs(x) r = Add(t, h) },
        else_branch = b () => (float[4] r) { t = Neg(x) r = Exp(t) }>
    z = Relu(h)
}"""


def test_inputs_and_outputs_of_bodies_keep_their_names() -> None:
    model = small_model(BODIES)
    node = next(node for node in model.graph if node.op_type == "If")
    for value in model.graph.all_nodes():
        value.name = "same"
    model.graph[0].outputs[0].name = "t"  # as a value of both bodies
    fix_names(model)
    bodies = [a.as_graph() for a in node.attributes.values()]
    assert [body.outputs[0].name for body in bodies] == ["r", "r"]
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == list("cxyz")
    inner = {value.name for body in bodies for n in body for value in n.outputs}
    assert model.graph[0].outputs[0].name not in inner
    assert len({node.name for node in model.graph}) == len(model.graph)


def test_weights_of_a_body_are_counted(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["r"])],
        "body",
        [],
        [tensor("r", 3, 8)],
        [numpy_helper.from_array(weight(8, 8), "w")],
    )
    flag = np.array(True)
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    onnx.save(model_of([node], [tensor("y", 3, 8)], c=flag), tmp_path / "model.onnx")
    report = split_model(tmp_path / "model.onnx", Options(2)).report
    assert report["weight_bytes_total"] >= 2 * 256 and report["split_fraction"] == 0
    assert report["weight_bytes_per_rank"] == [report["weight_bytes_total"]] * 2
    assert [entry["bytes"] for entry in report["unsplit"]][:2] == [256, 256]
    assert "bodies are not split" in report["unsplit"][0]["reason"]


def test_small_values_do_not_make_all_others_outliers() -> None:
    want = np.geomspace(1e-8, 1, 200, dtype=np.float32)
    assert compare("y", want + np.float32(1e-6), want).equal
    assert not compare("y", want + np.float32(1e-3), want).equal


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        (np.array(["a", "b"], object), np.array(["a", "b"]), True),
        (np.array(["a", "c"]), np.array(["a", "b"]), False),
        ([{1: 0.5}], [{1: 0.5}], True),
        ([{1: 0.5}], [{2: 0.5}], False),
        ([np.ones(2, np.float32)], [np.ones(2, np.float32), np.ones(2, np.float32)], False),
        ([np.ones(2, np.float32)], [np.ones(2, np.float32) + np.float32(0.1)], False),
        (None, None, True),
        ([], [], True),
    ],
)
def test_other_values_than_numbers_are_compared(got: Any, want: Any, equal: bool) -> None:
    assert compare("y", got, want).equal is equal


def test_broken_sparse_weights_are_refused(tmp_path: Path) -> None:
    for edit, word in ((lambda s: s.dims.append(9), "cannot be read"), (_outside, "cannot be")):
        proto = sparse_weight()
        edit(proto.graph.sparse_initializer[0])
        onnx.save(proto, tmp_path / "model.onnx")
        with pytest.raises(GraphError, match=f"sparse tensor 'w' {word}"):
            read_model(tmp_path / "model.onnx")


def _outside(sparse: onnx.SparseTensorProto) -> None:
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([[1, 2], [50, 7]]), "places"))
