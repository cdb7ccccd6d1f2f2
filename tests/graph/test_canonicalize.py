"""The canonical form computes the same, and each of its rules by a model of a few nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import SMALL_BYTES, canonicalize
from graph.reader import read_model
from graph.text import graph_text
from graph.weights import read_whole
from tests.graph.small import Array, greatest_difference, run_whole, small_model, weight
from tests.models import MODELS, model_cases, model_inputs, model_path

TOLERANCE = 1e-5


@pytest.mark.parametrize("model_id", MODELS)
def test_whole_models(model_id: str) -> None:
    source = read_model(model_path(model_id))
    canonical, shapes = canonicalize(read_model(model_path(model_id)))
    for case in model_cases(model_id):
        inputs = model_inputs(model_id, case)
        got, want = run_whole(canonical, inputs), run_whole(source, inputs)
        assert list(got) == list(want)
        assert greatest_difference(got, want) <= TOLERANCE
    nodes = list(canonical.graph)
    values = [*canonical.graph.inputs, *canonical.graph.initializers.values()]
    values += [out for node in nodes for out in node.outputs if out.uses() or out.is_graph_output()]
    assert not canonical.functions
    assert not {node.op_type for node in nodes} & {"Gemm", "Constant", "Identity"}
    assert len({node.name for node in nodes}) == len(nodes)
    assert len({value.name for value in values}) == len(values)
    assert all(value in shapes.dims for value in values)
    for value in canonical.graph.initializers.values():
        assert value.uses() or value.is_graph_output(), f"'{value.name}' is of no use"


def canonical(text: str, **given: Array) -> ir.Model:
    """The canonical form of a small model, after it was found to compute the same for x."""
    weights = {name: array for name, array in given.items() if name != "x"}
    model, _ = canonicalize(small_model(text, **weights))
    inputs = {"x": weight(3, 4)} | given
    got, want = run_whole(model, inputs), run_whole(small_model(text, **weights), inputs)
    assert list(got) == list(want), "outputs keep their names and their order"
    assert greatest_difference(got, want) <= TOLERANCE
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def weights_of(model: ir.Model) -> dict[str, list[int]]:
    """Shapes of all initializers."""
    found = model.graph.initializers.values()
    return {str(v.name): list(v.const_value.shape.numpy()) for v in found if v.const_value}


# --- Gemm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [None, (2,), (1, 2), (1, 1), ()], ids=str)
@pytest.mark.parametrize("scalars", ["", "alpha=0.5", "beta=3.0", "alpha=-2.0, beta=0.25"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_b: int, scalars: str, c: tuple[int, ...] | None) -> None:
    attributes = ", ".join(filter(None, [f"transB={trans_b}", scalars]))
    operands = "x, w" if c is None else "x, w, c"
    given = {"w": weight(2, 4) if trans_b else weight(4, 2)}
    if c is not None:
        given["c"] = weight(*c)
    model = canonical(
        f"(float[n, 4] x) => (float[n, 2] y) {{ y = Gemm <{attributes}> ({operands}) }}", **given
    )
    expected = ["MatMul"]
    if "alpha" in scalars:
        expected.append("Mul")
    if c is not None:
        stays = "beta" in scalars and math.prod(c) == 1  # a longer one is a weight that is scaled
        expected += ["Mul", "Add"] if stays else ["Add"]
    assert ops(model) == expected
    assert weights_of(model)["w.T" if trans_b else "w"] == [4, 2]


def test_gemm_with_a_transposed_activation() -> None:
    model = canonical(
        """(float[4, n] x) => (float[n, 2] y, float[n, 2] z) {
            y = Gemm <transA=1> (x, w)
            z = Relu(y)
        }""",
        x=weight(4, 3),
        w=weight(4, 2),
    )
    assert ops(model) == ["Transpose", "MatMul", "Relu"]


def test_gemm_of_two_activations() -> None:
    text = (
        "(float[n, 4] x) => (float[n, n] y) { h = Relu(x) y = Gemm <transB=1, alpha=0.5> (x, h) }"
    )
    assert ops(canonical(text)) == ["Relu", "Transpose", "MatMul", "Mul"]


def test_gemm_scalars_have_the_type_of_its_operands() -> None:
    text = "(double[n, 4] x) => (double[n, 2] y) { h = Neg(x) y = Gemm <alpha=0.5> (h, w) }"
    model = canonical(text, x=weight(3, 4).astype(np.float64), w=weight(4, 2).astype(np.float64))
    assert ops(model) == ["Neg", "MatMul", "Mul"]


def test_gemm_without_a_name() -> None:
    text = """(float[n, 4] x) => (float[n, 4] y) {
        h = Gemm <alpha=0.5> (x, w)
        y = Gemm <alpha=0.25> (h, v)
    }"""
    model = canonical(text, w=weight(4, 4), v=weight(4, 4, seed=1))
    assert ops(model) == ["MatMul", "Mul"] * 2


# --- GatherND -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.array([[1]]), ["Slice"]),
        (np.array([[-1]]), ["Slice"]),
        (np.array([[2], [0], [-1]]), ["Squeeze", "Gather"]),
        (np.array([[[2]], [[0]]]), ["Squeeze", "Gather"]),
        (np.array([[2, 1]]), ["GatherND"]),
        (np.array([2]), ["Squeeze", "Gather"]),
    ],
)
def test_gather_nd_along_one_dim(index: Array, expected: list[str]) -> None:
    model = canonical("(float[3, 4] x) => (y) { y = GatherND(x, i) }", i=index.astype(np.int64))
    assert ops(model) == expected


def test_gather_nd_with_an_index_of_run_time_and_with_batches() -> None:
    text = "(int64[n, 1] x) => (y) { y = GatherND(w, x) }"
    model = canonical(text, x=np.array([[2], [-3]]), w=weight(5, 4))
    assert ops(model) == ["Squeeze", "Gather"]
    text = "(float[3, 4] x) => (y) { y = GatherND <batch_dims=1> (x, i) }"
    assert ops(canonical(text, i=np.array([[1], [0], [3]]))) == ["GatherND"]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([1, 2], "Slice"),
        ([-1], "Slice"),
        ([-2, 3], "Slice"),
        ([0, 1, 2, 3], "Slice"),
        ([3, 0], "Gather"),
        ([0, 2], "Gather"),
        (2, "Gather"),
    ],
)
def test_a_gather_of_a_constant_range(index: list[int] | int, expected: str) -> None:
    text = "(float[n, 4] x) => (y) { y = Gather <axis = -1> (x, i) }"
    assert ops(canonical(text, i=np.array(index, np.int64))) == [expected]
    assert ops(canonical("(int64[2] x) => (y) { y = Gather(w, x) }",
                         x=np.array([2, 3]), w=weight(5, 4))) == ["Gather"]  # fmt: skip


def test_a_range_reads_scalars() -> None:
    """ONNX Runtime refuses a vector whose shape it sees, and sees more once sizes are constants."""
    text = "(int64[1] limit, int64 step) => (y) { y = Range(zero, limit, step) }"
    model = small_model(text, zero=np.array(0))
    model.graph.inputs[0].shape = None
    canonical, _ = canonicalize(model)
    assert ops(canonical) == ["Reshape", "Range"]
    given = {"limit": np.array([5]), "step": np.array(2)}
    assert run_whole(canonical, given)["y"].tolist() == [0, 2, 4]


# --- functions, constants, names ------------------------------------------------------------------


def test_functions_are_inlined() -> None:
    text = """(float[n, 4] x) => (float[n, 4] y) { h = local.twice(x) y = local.twice(h) }
    <domain: "local", opset_import: ["": 18, "local": 1]> twice (a) => (c) {
        b = local.grow(a)
        c = Add(b, a)
    }
    <domain: "local", opset_import: ["": 18]> grow (a) => (b) {
        two = Constant <value_float = 2.0> ()
        t = Mul(a, two)
        b = Tanh(t)
    }"""
    model = canonical(text)
    assert ops(model) == ["Mul", "Tanh", "Add"] * 2
    assert not model.functions


@pytest.mark.parametrize(
    "constant",
    [
        "value = float[2, 2] {1, 2, 3, 4}",
        "value_floats = [1.0, 2.0]",
        "value_float = 1.5",
    ],
)
def test_constants_are_initializers(constant: str) -> None:
    text = f"(float[n, 2] x) => (float[n, 2] y) {{ c = Constant <{constant}> () y = Mul(x, c) }}"
    model = canonical(text, x=weight(2, 2))
    assert ops(model) == ["Mul"]
    assert list(weights_of(model)) == ["c"]


def test_weights_that_are_inputs_too_are_weights() -> None:
    model = canonical(
        "(float[n, 4] x, float[4, 2] w) => (float[n, 2] y) { y = MatMul(x, w) }", w=weight(4, 2)
    )
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert weights_of(model) == {"w": [4, 2]}


def test_dead_nodes_and_weights_are_gone() -> None:
    model = canonical(
        "(float[n, 4] x) => (float[n, 4] y) { d = Add(x, w) e = Relu(d) y = Neg(x) }", w=weight(4)
    )
    assert ops(model) == ["Neg"]
    assert weights_of(model) == {}


def test_nodes_get_unique_names() -> None:
    text = "{ [same] a = Neg(x) [same] b = Relu(a) y = Neg(b) }"
    model, _ = canonicalize(small_model(f"(float[n, 4] x) => (float[n, 4] y) {text}"))
    names = [node.name for node in model.graph]
    assert len(set(names)) == 3 and all(names)


# --- constants used more than once ----------------------------------------------------------------

TWICE = "(float[n, 4] x) => (float[n, 4] y) { h = {op}(x, w) y = {op}(h, w) }"


def test_small_constants_have_a_copy_per_use() -> None:
    model = canonical(TWICE.replace("{op}", "Add"), w=weight(4))
    assert weights_of(model) == {"w": [4], "w#1": [4]}
    first, second = (value.const_value for value in model.graph.initializers.values())
    assert first is second, "copies share their data"


def test_a_constant_used_twice_by_one_node_has_two_copies() -> None:
    model = canonical(
        "(float[n, 4] x) => (float[n, 4] y) { b = Less(x, x) y = Where(b, w, w) }", w=weight(4)
    )
    assert weights_of(model) == {"w": [4], "w#1": [4]}


@pytest.mark.parametrize(("size", "copies"), [(32, 2), (40, 1)])
def test_large_weights_have_no_copies(size: int, copies: int) -> None:
    assert (size * size * 4 <= SMALL_BYTES) == (copies == 2)
    text = TWICE.replace("{op}", "MatMul").replace("4]", f"{size}]")
    w = weight(size, size) / size
    assert len(weights_of(canonical(text, x=weight(3, size), w=w))) == copies


def test_a_long_vector_counts_as_small() -> None:
    text = TWICE.replace("{op}", "Add").replace("4]", "5000]")
    assert len(weights_of(canonical(text, x=weight(3, 5000), w=weight(5000)))) == 2


# --- transposed weights ---------------------------------------------------------------------------


def test_a_transposed_weight_is_read_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(tensor: ir.TensorProtocol) -> Array:
        reads.append(str(tensor.name))
        return read_whole(tensor)

    monkeypatch.setattr("graph.weights.read_whole", counted)
    text = "(float[n, 4] x) => (float[n, 2] y) { t = Transpose(w) y = MatMul(x, t) }"
    model, _ = canonicalize(small_model(text, w=weight(2, 4)))
    assert ops(model) == ["MatMul"] and weights_of(model) == {"w.T": [4, 2]}
    assert reads == [], "nothing is read before its contents are asked for"
    tensor = model.graph.initializers["w.T"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == weight(2, 4).T.tolist()
    assert reads == ["w"]


def test_a_transposed_weight_of_three_dims() -> None:
    text = "{ t = Transpose <perm=[1, 2, 0]> (w) y = MatMul(x, t) }"
    model = canonical(f"(float[n, 4] x) => (float[2, n, 3] y) {text}", w=weight(3, 2, 4))
    assert weights_of(model) == {"w.T": [2, 4, 3]}


def test_a_weight_that_is_used_otherwise_too_stays() -> None:
    text = "{ h = MatMul(x, w) t = Transpose(w) y = MatMul(h, t) }"
    model = canonical(
        f"(float[n, 40] x) => (float[n, 40] y) {text}", x=weight(3, 40), w=weight(40, 40) / 40
    )
    assert ops(model) == ["MatMul", "Transpose", "MatMul"]
    assert weights_of(model) == {"w": [40, 40]}


# --- shape arithmetic -----------------------------------------------------------------------------

FLATTEN = """(float[{sizes}] x) => (float[n, m] y) {{
    s = Shape(x)
    b = Gather(s, zero)
    t = Concat <axis=0> (b, rest)
    y = Reshape(x, t)
}}"""
PARTS: dict[str, Any] = {"zero": np.array([0], np.int64), "rest": np.array([-1], np.int64)}


def test_known_shape_arithmetic_is_a_constant() -> None:
    model = canonical(FLATTEN.format(sizes="3, 2, 4"), x=weight(3, 2, 4), **PARTS)
    assert ops(model) == ["Reshape"]
    tensor = model.graph.initializers["t.value"].const_value
    assert tensor is not None and tensor.numpy().tolist() == [3, -1]


def test_symbolic_shape_arithmetic_stays() -> None:
    model = canonical(FLATTEN.format(sizes="n, 2, 4"), x=weight(3, 2, 4), **PARTS)
    assert ops(model) == ["Shape", "Gather", "Concat", "Reshape"]


def test_a_constant_size_beside_symbolic_ones_is_a_constant() -> None:
    text = """(float[n, 4] x) => (float[4, n] y) {
        s = Shape <start=1> (x)
        t = Concat <axis=0> (s, r)
        y = Reshape(x, t)
    }"""
    assert ops(canonical(text, r=PARTS["rest"])) == ["Reshape"]


def test_folded_contents_keep_their_type_and_rank() -> None:
    text = """(float[3, 4] x) => (float[4] y) {
        n = Size(x)
        i = Cast <to=6> (n)
        f = Cast <to=1> (i)
        y = Mul(f, w)
    }"""
    model = canonical(text, w=weight(4))
    assert ops(model) == ["Cast", "Mul"]
    tensor = model.graph.initializers["i.value"].const_value
    assert tensor is not None
    assert tensor.dtype is ir.DataType.INT32 and tensor.shape.numpy() == ()


def test_a_bound_that_only_some_sizes_reach_is_no_constant() -> None:
    """x[:2] has two rows only where x has: its shape must not become a constant."""
    text = """(float[n, 4] x) => (float[m, 4] y) {
        part = Slice(x, zero, two)
        s = Shape(part)
        y = Expand(w, s)
    }"""
    given = {"zero": PARTS["zero"], "two": np.array([2], np.int64), "w": weight(1, 4)}
    assert "Shape" in ops(canonical(text, x=weight(1, 4), **given))


# --- graph outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=> (float[n, 4] y) { h = Relu(x) y = Identity(h) }", ["Relu"]),
        ("=> (float[n, 4] y) { y = Identity(x) }", ["Identity"]),
        ("=> (float[n, 4] x) { }", []),
        ("=> (float[n, 4] x, float[n, 4] y) { y = Relu(x) }", ["Relu"]),
        ("=> (float[4] w) { }", []),
        ("=> (float[4] w, float[n, 4] y) { y = Add(x, w) }", ["Add"]),
        ("=> (float[4] o, float[n, 4] y) { o = Identity(w) y = Add(x, w) }", ["Identity", "Add"]),
        ("=> (float[n, 4] y, float[n, 4] z) { y = Relu(x) z = Identity(y) }", ["Relu", "Identity"]),
        ("=> (float[n, 4] z, float[n, 4] y) { y = Relu(x) z = Identity(y) }", ["Relu", "Identity"]),
        (
            "=> (float[n, 4] y, float[n, 4] z) { h = Relu(x) y = Identity(h) z = Identity(h) }",
            ["Relu", "Identity"],
        ),
        (
            "=> (float[n, 4] y) { a = Identity(x) b = Identity(a) c = Relu(b) y = Identity(c) }",
            ["Relu"],
        ),
        ("=> (float[3] y) { y = Constant <value_floats=[1.0, 2.0, 3.0]> () }", ["Constant"]),
        ("=> (float[4, n] y) { y = Transpose(x) }", ["Transpose"]),
        ("=> (float[4, 2] t, float[n, 2] y) { t = Transpose(u) y = MatMul(x, t) }", None),
        ("=> (int64[2] y) { y = Shape(x) }", ["Shape"]),
        ("=> (float[n, 2] y, float[n, 2] z) { y = Gemm <transB=1> (x, u) z = Relu(y) }", None),
    ],
)
def test_outputs_keep_their_names(text: str, expected: list[str] | None) -> None:
    given = {name: array for name, array in (("w", weight(4)), ("u", weight(2, 4))) if name in text}
    model = canonical(f"(float[n, 4] x) {text}", **given)
    assert expected is None or ops(model) == expected


def test_a_folded_shape_that_is_an_output_stays_computed() -> None:
    text = "(float[3, 4] x) => (int64[2] s, float[3, 4] y) { s = Shape(x) y = Reshape(x, s) }"
    assert ops(canonical(text)) == ["Shape", "Reshape"]


def test_canonical_form_is_stable() -> None:
    model, _ = canonicalize(read_model(model_path("llama-opset18-dynamic")))
    before = graph_text(model)
    model, _ = canonicalize(model)
    assert graph_text(model) == before
