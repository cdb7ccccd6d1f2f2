"""Forms in which a split once went wrong, or a model was refused: small, and compared whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.small import Array, small_model
from tests.graph.small import weight as matrix
from tpcore.partition import Options
from tpcore.shard import split_model
from tpcore.verify import Verification, verify_ranks

INDEX = np.int64

HARD = {
    "the rows and columns of a reshaped weight are one atom": (
        """(float[3, 8] x) => (float[3, 8] y) {
            w2 = Reshape(w, s) h = MatMul(x, w2) r = Add(h, x) y = MatMul(r, v) }""",
        {"w": matrix(64), "s": np.array([8, 8]), "v": matrix(8, 8)},
    ),
    "an outer product of features with themselves, flattened": (
        """(float[3, 8] x) => (float[?, ?] y) {
            h = MatMul(x, w) a = Unsqueeze(h, one) b = Unsqueeze(h, two)
            s = Mul(a, b) f = Reshape(s, flat) y = MatMul(f, v) }""",
        {
            "w": matrix(8, 16),
            "one": np.array([1]),
            "two": np.array([2]),
            "flat": np.array([3, 256]),
            "v": matrix(256, 8),
        },
    ),
    "one bound of a Slice depends on the input": (
        """(float[1, n, 8] x) => (float[?, ?, ?] y) {
            h = MatMul(x, w) length = Shape<start=1, end=2>(x)
            stops = Concat<axis=0>(length, stop) k = Slice(h, starts, stops, axes)
            y = MatMul(k, v) }""",
        {
            "w": matrix(8, 32),
            "stop": np.array([24]),
            "starts": np.array([0, 8]),
            "axes": np.array([1, 2]),
            "v": matrix(16, 8),
        },
    ),
    "a packed dim with an empty segment": (
        """(float[3, 8] x) => (float[3, 8] y) {
            h = MatMul(x, w) c = Concat<axis=1>(nothing, h) z = Add(c, h) y = MatMul(z, v) }""",
        {"w": matrix(8, 8), "v": matrix(8, 8), "nothing": np.zeros((3, 0), np.float32)},
    ),
    "a Reshape that copies the size of another dim": (
        """(float[4, 2, 6] x) => (float[?, ?, ?] y) {
            h = MatMul(x, w) r = Reshape(h, s) y = MatMul(r, v) }""",
        {"w": matrix(6, 6), "v": matrix(3, 5), "s": np.array([8, 0, 3])},
    ),
    "shape arithmetic in a type that wraps around": (
        """(float[3, 8] x) => (float[3, 8] y, int64[1] u) {
            c = Cast<to=2>(minus) d = Cast<to=7>(c) u = Add(d, one) y = MatMul(x, w) }""",
        {"w": matrix(8, 8), "minus": np.array([-1]), "one": np.array([1])},
    ),
    "a Split into sizes that nobody knows before it runs": (
        """(float[3, 8] x, int64[2] sizes) => (float[3, 4] y) {
            h = MatMul(x, w) a, b = Split<axis=1>(h, sizes) c = Concat<axis=1>(b, a)
            y = MatMul(c, v) }""",
        {"w": matrix(8, 2), "v": matrix(2, 4)},
    ),
    "a weight with one row": (
        "(float[3, 1] x) => (float[?, ?] y) { y = MatMul(x, w) }",
        {"w": matrix(1, 8)},
    ),
    "a Gemm of computed doubles": (
        """(double[3, 8] x) => (double[?, ?] y) {
            h = Relu(x) s = Sigmoid(w) g = Gemm<alpha=0.5>(h, s) y = Relu(g) }""",
        {"w": matrix(8, 16).astype(np.float64)},
    ),
}


def proven(path: Path, text: str, weights: dict[str, Array], ranks: int) -> Verification:
    """Split a model given as text, and compare it with the unsplit one."""
    ir.save(small_model(text, **weights), path)
    split = split_model(path, Options(ranks))
    return verify_ranks(split.ranks, split.shardings, path)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("form", HARD)
def test_a_hard_form(form: str, ranks: int, tmp_path: Path) -> None:
    text, weights = HARD[form]
    given = {n: a.astype(INDEX) if a.dtype.kind == "i" else a for n, a in weights.items()}
    result = proven(tmp_path / "model.onnx", text, given, ranks)
    assert result.equal, result.to_json()


def test_weights_that_are_inputs_too(tmp_path: Path) -> None:
    model = small_model("(float[3, 8] x) => (float[3, 8] y) { y = MatMul(x, w) }", w=matrix(8, 8))
    model.graph.inputs.append(model.graph.initializers["w"])
    ir.save(model, tmp_path / "model.onnx")
    split = split_model(tmp_path / "model.onnx", Options(2))
    assert verify_ranks(split.ranks, split.shardings, tmp_path / "model.onnx").equal


def test_random_numbers_are_the_same_on_every_rank(tmp_path: Path) -> None:
    text = """(float[3, 8] x) => (float[3, 8] y) {
        h = MatMul(x, w) n = RandomNormalLike(h) s = Add(h, n) y = MatMul(s, v) }"""
    ir.save(small_model(text, w=matrix(8, 8), v=matrix(8, 8)), tmp_path / "model.onnx")
    split = split_model(tmp_path / "model.onnx", Options(2))
    seeds = {
        node.attributes["seed"].as_float()
        for model in split.ranks
        for node in model.graph
        if node.op_type == "RandomNormalLike"
    }
    assert len(seeds) == 1
