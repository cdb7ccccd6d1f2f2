"""Fused ops in their parts, and nodes that do nothing gone: the same is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from tests.graph.small import Array, greatest_difference, run_whole, small_model, weight
from tpcore.partition import Options
from tpcore.shard import split_model
from tpcore.verify import verify_ranks

TOLERANCE = 1e-5
IDS = np.array([[3, 1, 4, 1], [5, 8, 2, 6]], np.int32)
TABLES = {
    "words": weight(9, 6),
    "places": weight(5, 6),
    "segments": weight(2, 6),
    "gamma": weight(6),
    "beta": weight(6, seed=1),
}
GIVEN = {
    "ids": IDS,
    "kinds": IDS % 2,
    "mask": np.array([[1, 1, 0, 2], [1, 0, 0, 0]], np.int32),
    "at": np.array([[4, 0, 2, 2]], np.int32),
}
IDS_TYPE = "int32[batch, seq] ids"
OP = "com.microsoft.EmbedLayerNormalization"
EMBEDDINGS = {
    "all tables and results": (
        f"""({IDS_TYPE}, int32[batch, seq] kinds, int32[batch, seq] mask)
            => (float[batch, seq, 6] y, int32[batch] count, float[batch, seq, 6] total) {{
            y, count, total = {OP}(ids, kinds, words, places, segments, gamma, beta, mask) }}""",
        ["Gather", "Gather", "Add", "Gather", "Add", "LayerNormalization", "ReduceSum"],
    ),
    "given positions and an epsilon": (
        f"""({IDS_TYPE}, int32[1, seq] at) => (float[batch, seq, 6] y) {{
            y, count = {OP}<epsilon=0.1>(ids, , words, places, , gamma, beta, , at) }}""",
        ["Gather", "Gather", "Add", "LayerNormalization"],
    ),
    "a count without a mask": (
        f"""({IDS_TYPE}) => (float[batch, seq, 6] y, int32[batch] count) {{
            y, count = {OP}(ids, , words, places, , gamma, beta) }}""",
        ["Gather", "Gather", "Add", "LayerNormalization", "ReduceSum"],
    ),
}
ARITHMETIC = {"Shape", "Range", "Sub", "Equal", "Cast", "CastLike"}


def ops_of(text: str, weights: dict[str, Array], inputs: dict[str, Array]) -> list[str]:
    """Ops of the canonical form, after it was found to compute the same."""
    model, _ = canonicalize(small_model(text, **weights))
    got, want = run_whole(model, inputs), run_whole(small_model(text, **weights), inputs)
    assert list(got) == list(want)
    assert greatest_difference(got, want) <= TOLERANCE
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_an_embedding_in_its_parts(form: str) -> None:
    text, want = EMBEDDINGS[form]
    found = ops_of(text, TABLES, GIVEN)
    if "Shape" in found:
        found.remove("Gather")  # of the length from it
    assert [op for op in found if op not in ARITHMETIC] == want


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_tables_of_an_embedding_are_split(ranks: int, tmp_path: Path) -> None:
    text, _ = EMBEDDINGS["all tables and results"]
    ir.save(small_model(text, **TABLES), tmp_path / "model.onnx")
    split = split_model(tmp_path / "model.onnx", Options(ranks))
    inputs = {name: GIVEN[name] for name in ("ids", "kinds", "mask")}
    assert verify_ranks(split.ranks, split.shardings, tmp_path / "model.onnx", inputs).equal
    whole = {entry["name"] for entry in split.report["unsplit"]}
    assert not whole & {"words", "places"}


@pytest.mark.parametrize(
    ("attributes", "operands", "want"),
    [
        ("pads = [1, 1, 1, 1]", "x, w", ["Conv"]),
        ('activation = "Relu"', "x, w, b", ["Conv", "Relu"]),
        ('activation = "Relu", strides = [1, 1]', "x, w, b, z", ["Conv", "Add", "Relu"]),
        ('activation = "LeakyRelu", activation_params = [0.5]', "x, w", ["Conv", "LeakyRelu"]),
        ('activation = "Clip", activation_params = [-0.5, 1.5]', "x, w, b", ["Conv", "Clip"]),
        (
            'activation = "HardSigmoid", activation_params = [0.3, 0.4]',
            "x, w",
            ["Conv", "HardSigmoid"],
        ),
    ],
)
def test_a_convolution_with_its_activation(attributes: str, operands: str, want: list[str]) -> None:
    weights = {"w": weight(6, 3, 2, 2), "b": weight(6), "z": weight(2, 6, 3, 3)}
    text = f"""(float[2, 3, 4, 4] x) => (float[2, 6, ?, ?] y) {{
        y = com.microsoft.FusedConv <{attributes}> ({operands}) }}"""
    found = ops_of(text, weights, {"x": weight(2, 3, 4, 4)})
    assert [op for op in found if op not in ARITHMETIC] == want


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("h = Dropout(x) y = Relu(h)", ["Relu"]),
        ("h, mask = Dropout(x, ratio) y = Relu(h)", ["Relu"]),
        ("h, mask = Dropout(x, ratio, no) y = Relu(h)", ["Relu"]),
        ("h = Relu(x) y = Dropout(h)", ["Relu"]),
        ("y = Dropout(x)", ["Dropout"]),
        ("h, mask = Dropout(x) n = Not(mask) y = Where(n, zero, h)", ["Dropout", "Not", "Where"]),
        ("h, mask = Dropout(x, zero, yes) y = Relu(h)", ["Dropout", "Relu"]),
    ],
)
def test_a_dropout_outside_of_training(nodes: str, want: list[str]) -> None:
    weights = {"ratio": np.array(0.5, np.float32), "zero": np.array(0.0, np.float32)}
    weights |= {"yes": np.array(True), "no": np.array(False)}
    text = f"(float[3, 4] x) => (float[3, 4] y) {{ {nodes} }}"
    assert ops_of(text, weights, {"x": weight(3, 4)}) == want


def test_a_layer_norm_of_an_opset_that_has_none() -> None:
    """ONNX Runtime's optimizer writes it into models of any opset."""
    model = small_model("(float[3, 4] x) => (float[3, 4] y) { y = LayerNormalization(x, g) }",
                        g=weight(4))  # fmt: skip
    model.graph.opset_imports[""] = 14
    _, shapes = canonicalize(model)
    assert shapes.dims[model.graph.outputs[0]] == (3, 4)
