"""What is computed from weights alone is a weight, and nothing is computed before it is read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from graph.interpret import interpret
from graph.weights import read_whole
from tests.graph.small import Array, greatest_difference, run_whole, small_model, weight


def folded(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """The canonical model and the ops that are left in it."""
    made, _ = canonicalize(model.clone())
    return made, [node.op_type for node in made.graph]


def ints(*entries: int) -> Array:
    return np.array(entries, np.int64)


REORDERED = """(float[2, 4] x) => (float[2, 6] y) {
    a = Slice(w, zero, three, zero)
    b = Slice(w, three, six, zero)
    c = Concat <axis = 0> (b, a)
    t = Transpose <perm = [1, 0]> (c)
    y = MatMul(x, t)
}"""
BOUNDS = {"zero": ints(0), "three": ints(3), "six": ints(6)}


def test_reordered_weights_are_a_weight() -> None:
    model = small_model(REORDERED, w=weight(6, 4), **BOUNDS)
    made, ops = folded(model)
    assert ops == ["MatMul"]
    assert list(made.graph.initializers) == ["w.folded"]
    inputs = {"x": weight(2, 4)}
    assert greatest_difference(run_whole(made, inputs), run_whole(model, inputs)) == 0


def test_a_normalised_weight_is_a_weight() -> None:
    """As torch writes weight_norm: a direction over its length, times a length."""
    text = """(float[2, 4] x) => (float[2, 6] y) {
        length = ReduceL2 <keepdims = 1> (v, axes)
        factor = Div(g, length)
        w = Mul(v, factor)
        y = MatMul(x, w)
    }"""
    model = small_model(text, v=weight(4, 6), g=weight(1, 6), axes=ints(0))
    made, ops = folded(model)
    assert ops == ["MatMul"]
    inputs = {"x": weight(2, 4)}
    assert greatest_difference(run_whole(made, inputs), run_whole(model, inputs)) < 1e-6


def test_every_result_of_a_split_is_a_weight() -> None:
    text = """(float[2, 4] x) => (float[2, 3] y, float[2, 5] z) {
        a, b = Split <axis = 1> (w, sizes)
        y = MatMul(x, a)
        z = MatMul(x, b)
    }"""
    model = small_model(text, w=weight(4, 8), sizes=ints(3, 5))
    made, ops = folded(model)
    assert ops == ["MatMul", "MatMul"]
    inputs = {"x": weight(2, 4)}
    assert greatest_difference(run_whole(made, inputs), run_whole(model, inputs)) == 0


def test_nothing_is_computed_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0

    def counted(*args: object, **options: object) -> object:
        nonlocal runs
        runs += 1
        return interpret(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("graph.interpret.interpret", counted)
    source = ir.LazyTensor(
        lambda: pytest.fail("the weight was read"), ir.DataType.FLOAT, ir.Shape([6, 4]), name="w"
    )
    model = small_model(REORDERED, w=weight(6, 4), **BOUNDS)
    model.graph.initializers["w"].const_value = source
    folded(model)
    assert runs == 0
    made, _ = folded(small_model(REORDERED, w=weight(6, 4), **BOUNDS))
    (value,) = (v for v in made.graph.initializers.values() if v.const_value is not None)
    assert value.const_value is not None and runs == 0
    np.testing.assert_array_equal(read_whole(value.const_value), np.roll(weight(6, 4), 3, axis=0).T)
    assert runs == 1


CODES = np.arange(16, dtype=np.int8).reshape(4, 4)
STAYING: dict[str, tuple[str, list[str], dict[str, Array]]] = {
    "a constant that would become large": (
        "w = Expand(row, wide)  y = Add(x, w)",
        ["Expand", "Add"],
        {"row": weight(1, 4), "wide": ints(64, 4)},
    ),
    "a weight that would be held twice": (
        "t = Transpose <perm = [1, 0]> (e)  h = MatMul(x, t)  y = MatMul(h, e)",
        ["Transpose", "MatMul", "MatMul"],
        {"e": weight(64, 4)},
    ),
    "floats in place of bytes": (
        "w = DequantizeLinear(codes, scale)  y = MatMul(x, w)",
        ["DequantizeLinear", "MatMul"],
        {"codes": CODES, "scale": np.array(0.5, np.float32)},
    ),
    "floats cast from bytes": (
        "w = Cast <to = 1> (codes)  y = MatMul(x, w)",
        ["Cast", "MatMul"],
        {"codes": CODES},
    ),
    "other numbers in each run": (
        "w = Dropout(v, ratio, on)  y = MatMul(x, w)",
        ["Dropout", "MatMul"],
        {"v": weight(4, 4), "ratio": np.array(0.5, np.float32), "on": np.array(True)},
    ),
}


@pytest.mark.parametrize("what", STAYING)
def test_what_is_not_folded(what: str) -> None:
    text, ops, weights = STAYING[what]
    lines = text.replace(")  ", ")\n")
    model = small_model(f"(float[64, 4] x) => (float[64, 4] y) {{ {lines} }}", **weights)
    assert folded(model)[1] == ops


def test_a_weight_that_is_an_output_stays_one() -> None:
    text = """(float[2, 4] x) => (float[2, 6] y, float[4, 6] t) {
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul(x, t)
    }"""
    _, ops = folded(small_model(text, w=weight(6, 4)))
    assert ops == ["Transpose", "MatMul"]
