"""Inferred shapes and contents agree with what onnxruntime computes: whole models, then rules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from graph.dims import Dim, Expr, from_text
from graph.errors import GraphError
from graph.infer import infer_shapes
from graph.reader import read_model
from graph.shape_rules import broadcast
from graph.shapes import Shapes
from tests.graph.small import Array, Arrays, run_whole, small_model
from tests.models import MODELS, model_cases, model_inputs, model_path

FORMS = ("read", "canonical")


# --- whole models ---------------------------------------------------------------------------------


class Comparison:
    """Sizes that inference found beside those of a run; opaque symbols must only be consistent."""

    def __init__(self, model: ir.Model, shapes: Shapes, inputs: Arrays) -> None:
        self.bound: dict[str, int] = {}
        self.wrong: list[str] = []
        self.kinds: Counter[str] = Counter()
        for value in model.graph.inputs:
            for size, real in zip(shapes.dims[value], inputs[str(value.name)].shape, strict=True):
                if isinstance(size, Expr) and size.symbols == {str(size)}:
                    self.bound.setdefault(str(size), real)
                self.size(size, real, str(value.name))

    def size(self, found: Dim, real: int, where: str) -> None:
        """Compare one size, or bind the symbol it is."""
        if isinstance(found, Expr):
            unbound = found.symbols - self.bound.keys()
            if unbound and found.symbols != {str(found)}:
                self.kinds["unbound"] += 1
                return
            self.kinds["opaque" if unbound else "symbolic"] += 1
            found = found.substitute(self.bound | dict.fromkeys(unbound, real))
            self.bound.update(dict.fromkeys(unbound, real))
        else:
            self.kinds["constant"] += 1
        if found != real:
            self.wrong.append(f"{where}: {found} is really {real}")

    def value(self, value: ir.Value, shapes: Shapes, real: Array) -> None:
        """Compare shape, dtype and contents of one value."""
        where = f"{value.producer()} {value.name}"
        if value not in shapes.dims or len(shapes.dims[value]) != real.ndim:
            self.wrong.append(f"{where}: {shapes.dims.get(value)} is really {real.shape}")
            return
        if value.dtype is None or value.dtype.numpy() != real.dtype:
            self.wrong.append(f"{where}: {value.dtype} is really {real.dtype}")
        for size, extent in zip(shapes.dims[value], real.shape, strict=True):
            self.size(size, extent, where)
        contents = shapes.contents.get(value)
        if contents is not None:
            assert contents.shape == real.shape, where
            for entry, number in zip(contents.flat, real.flat, strict=True):
                self.size(entry, int(number), where)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_id", MODELS)
def test_whole_models(model_id: str, form: str) -> None:
    model = read_model(model_path(model_id))
    if form == "canonical":
        model, shapes = canonicalize(model)
    else:
        shapes = infer_shapes(model)
    for case in model_cases(model_id):
        inputs = model_inputs(model_id, case)
        comparison = Comparison(model, shapes, inputs)
        real = run_whole(model, inputs, every_value=True)
        seen = [v for node in model.graph for v in node.outputs if v.name in real]
        for value in seen:
            comparison.value(value, shapes, real[str(value.name)])
        assert len(seen) >= 5 and not comparison.wrong
        kinds = comparison.kinds
        assert kinds["unbound"] == 0 and kinds["opaque"] <= 1, "inference lost track of sizes"
        is_static = not model_id.endswith(("dynamic", "genai"))
        assert not (is_static and kinds["symbolic"]), "a static model has constant sizes only"


# --- one rule each --------------------------------------------------------------------------------


def facts(text: str, **weights: Array) -> dict[str, str]:
    """`(sizes)` of every value of a model, followed by `= [contents]` where they are known."""
    model = small_model(text, **weights)
    shapes = infer_shapes(model)
    found = {}
    for value, dims in shapes.dims.items():
        text = f"({', '.join(map(str, dims))})"
        if value in shapes.contents:
            text += f" = {shapes.contents[value].tolist()}"
        found[str(value.name)] = text
    return found


def result_of(node: str, *inputs: str, **weights: Array) -> str:
    """What is found of `y`, the result of one node."""
    return facts(f"({', '.join(inputs)}) => (y) {{ y = {node} }}", **weights)["y"]


def ints(*entries: int) -> Array:
    return np.array(entries, np.int64)


ABC = "float[a, b, 12] x"


@pytest.mark.parametrize(
    ("want", "sizes"),
    [
        (ints(0, 0, 3, 4), "(a, b, 3, 4)"),
        (ints(0, 0, 3, -1), "(a, b, 3, 4)"),
        (ints(0, -1), "(a, 12*b)"),
        (ints(-1), "(12*a*b)"),
        (ints(-1, 6), "(2*a*b, 6)"),
        (ints(0, -1, 24), "(a, unk1, 24)"),  # b/2 is a size only where b is even
    ],
    ids=str,
)
def test_reshape(want: Array, sizes: str) -> None:
    assert result_of("Reshape(x, s)", ABC, s=want) == sizes


def test_reshape_by_a_computed_shape() -> None:
    found = facts(
        """(float[a, b, 12] x) => (y) {
            s = Shape <start=0, end=2> (x)
            t = Concat <axis=0> (s, heads)
            y = Reshape(x, t)
        }""",
        heads=ints(3, -1),
    )
    assert found["t"] == "(4) = [a, b, 3, -1]"
    assert found["y"] == "(a, b, 3, 4)"


def test_reshape_takes_zeros_literally_where_told() -> None:
    found = result_of("Reshape <allowzero=1> (x, s)", "float[0, 4] x", s=ints(3, 0))
    assert found == "(3, 0)"


@pytest.mark.parametrize(
    ("node", "sizes"),
    [
        ("Expand(x, s)", "(5, a, b, 12)"),
        ("Add(x, s12)", "(a, b, 12)"),
        ("Mul(x, row)", "(a, b, 12)"),
        ("Sub(scalar, x)", "(a, b, 12)"),
        ("Pow(x, scalar)", "(a, b, 12)"),
        ("MatMul(x, w)", "(a, b, 7)"),
        ("MatMul(x, stack)", "(a, b, 7)"),
        ("MatMul(x, s12)", "(a, b)"),
        ("MatMul(s12, w)", "(7)"),
        ("Concat <axis=1> (x, x, one)", "(a, 2*b + 4, 12)"),
        ("Concat <axis=-1> (x, x)", "(a, b, 24)"),
        ("Transpose <perm=[2, 0, 1]> (x)", "(12, a, b)"),
        ("Gather <axis=1> (x, index)", "(a, 2, 3, 12)"),
        ("Softmax(x)", "(a, b, 12)"),
        ("Unsqueeze(x, axis)", "(a, 1, b, 12)"),
    ],
)
def test_sizes(node: str, sizes: str) -> None:
    weights = {
        "s": ints(5, 1, 1, 1),
        "s12": np.zeros(12, np.float32),
        "row": np.zeros((1, 12), np.float32),
        "scalar": np.zeros((), np.float32),
        "w": np.zeros((12, 7), np.float32),
        "stack": np.zeros((1, 12, 7), np.float32),
        "one": np.zeros((1, 4, 12), np.float32),
        "index": np.zeros((2, 3), np.int64),
        "axis": ints(1),
    }
    assert result_of(node, ABC, **weights) == sizes.replace("2*b + 4", "4 + 2*b")


FAR = 2**63 - 1


@pytest.mark.parametrize(
    ("start", "stop", "step", "sizes"),
    [
        (2, 8, 1, "(a, 6)"),
        (2, 8, 4, "(a, 2)"),
        (0, FAR, 1, "(a, 12)"),
        (-4, FAR, 1, "(a, 4)"),
        (-100, -1, 1, "(a, 11)"),
        (8, 2, 1, "(a, 0)"),
        (100, 200, 1, "(a, 0)"),
        (FAR, -FAR, -1, "(a, 12)"),
        (-1, -FAR, -5, "(a, 3)"),
    ],
)
def test_slice_of_a_constant_size(start: int, stop: int, step: int, sizes: str) -> None:
    node = "Slice(x, start, stop, axis, step)"
    bounds = {"start": ints(start), "stop": ints(stop), "axis": ints(-1), "step": ints(step)}
    assert result_of(node, "float[a, 12] x", **bounds) == sizes


@pytest.mark.parametrize(
    ("start", "stop", "sizes"),
    [
        (0, FAR, "(a, 12)"),
        (0, 2**31 - 1, "(a, 12)"),
        (-FAR, FAR, "(a, 12)"),
        (0, -1, "(-1 + a, 12)"),
        (-1, FAR, "(1, 12)"),
        # How much there is depends on how large a is at run time.
        (0, 8, "(unk1, 12)"),
        (2, FAR, "(unk1, 12)"),
        (-3, FAR, "(unk1, 12)"),
    ],
)
def test_slice_of_a_symbolic_size(start: int, stop: int, sizes: str) -> None:
    bounds = {"start": ints(start), "stop": ints(stop), "axis": ints(0)}
    assert result_of("Slice(x, start, stop, axis)", "float[a, 12] x", **bounds) == sizes


def test_slice_up_to_a_size() -> None:
    found = facts(
        """(float[a, 12] x, float[a, 12] z) => (y) {
            s = Shape <end=1> (z)
            y = Slice(x, zero, s)
        }""",
        zero=ints(0),
    )
    assert found["y"] == "(a, 12)"


@pytest.mark.parametrize(
    ("start", "limit", "delta", "sizes"),
    [
        ("zero", "n", "one", "(a)"),
        ("two", "n", "one", "(-2 + a)"),
        ("two", "seven", "one", "(5)"),
        ("seven", "two", "one", "(0)"),
        ("two", "seven", "two", "(3)"),
        ("zero", "n", "two", "(unk1)"),
    ],
)
def test_range(start: str, limit: str, delta: str, sizes: str) -> None:
    numbers = {"zero": 0, "one": 1, "two": 2, "seven": 7}
    found = facts(
        f"""(float[a] x) => (y) {{
            s = Shape(x)
            n = Squeeze(s)
            y = Range({start}, {limit}, {delta})
        }}""",
        **{name: np.array(number, np.int64) for name, number in numbers.items()},
    )
    assert found["y"] == sizes


def test_constant_of_shape_has_the_type_of_its_value() -> None:
    text = "(float[a, 4] x) => (y, z) { s = Shape(x) y = ConstantOfShape(s) z = ConstantOfShape "
    model = small_model(text + "<value = int64[1] {1}> (s) }")
    shapes = infer_shapes(model)
    y, z = model.graph.outputs
    assert [str(size) for size in shapes.dims[y]] == ["a", "4"]
    assert (y.dtype, z.dtype) == (ir.DataType.FLOAT, ir.DataType.INT64)


# --- contents -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "contents"),
    [
        ("Shape(x)", "(3) = [a, b, 12]"),
        ("Shape <start=-2> (x)", "(2) = [b, 12]"),
        ("Shape <start=1, end=-1> (x)", "(1) = [b]"),
        ("Size(x)", "() = 12*a*b"),
        ("Gather(s, minus)", "(1) = [12]"),
        ("Gather(s, scalar)", "() = b"),
        ("Slice(s, scalars, twos)", "(1) = [b]"),
        ("Concat <axis=0> (s, minus)", "(4) = [a, b, 12, -1]"),
        ("Concat <axis=1> (table, table)", "(2, 4) = [[1, 2, 1, 2], [3, 4, 3, 4]]"),
        ("Unsqueeze(scalar, minus)", "(1) = [1]"),
        ("Squeeze(twos)", "() = 2"),
        ("Squeeze(thin, minus)", "(1) = [5]"),
        ("Reshape(s, column)", "(3, 1) = [[a], [b], [12]]"),
        ("Identity(s)", "(3) = [a, b, 12]"),
        ("Cast <to=6> (s)", "(3) = [a, b, 12]"),
        ("Add(s, twos)", "(3) = [2 + a, 2 + b, 14]"),
        ("Sub(s, scalar)", "(3) = [-1 + a, -1 + b, 11]"),
        ("Mul(s, s)", "(3) = [a*a, b*b, 144]"),
        ("Div(s, twos)", "(3) = [(a)//(2), (b)//(2), 6]"),
        ("Div(s, s)", "(3) = [1, 1, 1]"),
        ("Div(sevens, twos)", "(2) = [3, -3]"),
        ("Div(large, scalars)", f"(1) = [{FAR}]"),
        ("Max(sevens, scalars, tens)", "(2) = [10, 10]"),
        ("Max(s, s)", "(3) = [a, b, 12]"),
        ("Equal(s, minus)", "(3) = [False, False, False]"),
        ("Equal(sevens, seven)", "(2) = [True, False]"),
        ("ConstantOfShape <value = int64[1] {3}> (twos)", "(2) = [3, 3]"),
        # Not known, and not guessed.
        ("Equal(s, twos)", "(3)"),
        ("ConstantOfShape(twos)", "(2)"),
        ("Max(s, scalar)", "(3)"),
        ("Cast <to=1> (s)", "(3)"),
        ("Div(s, zero)", "(3)"),
        ("Abs(sevens)", "(2)"),
    ],
)
def test_contents(node: str, contents: str) -> None:
    weights = {
        "minus": ints(-1),
        "scalar": np.array(1, np.int64),
        "scalars": ints(1),
        "twos": ints(2),
        "tens": ints(10),
        "zero": ints(0),
        "sevens": ints(7, -7),
        "large": ints(FAR),
        "table": np.array([[1, 2], [3, 4]], np.int64),
        "thin": np.array([[5]], np.int64),
        "column": ints(-1, 1),
        "seven": ints(7),
    }
    text = f"({ABC}) => (y) {{ s = Shape(x) y = {node} }}"
    assert facts(text, **weights)["y"] == contents


def test_the_shape_that_torchscript_expands_to() -> None:
    """Sizes of -1 are written as 1 there: Where(sizes == -1, 1, sizes)."""
    text = f"""({ABC}) => (y) {{
        s = Shape(x)
        all = ConstantOfShape <value = int64[1] {{1}}> (three)
        keep = Equal(s, minus)
        y = Where(keep, all, s)
    }}"""
    assert facts(text, three=ints(3), minus=ints(-1))["y"] == "(3) = [a, b, 12]"


def test_division_of_sizes_is_exact_where_it_can_be() -> None:
    text = "(float[a, 12] x) => (y) { n = Size(x) y = Div(n, four) }"
    assert facts(text, four=np.array(4, np.int64))["y"] == "() = 3*a"


def test_only_integer_tensors_are_followed() -> None:
    found = facts("(float[4] x) => (y) { y = Add(x, w) }", w=np.ones(4, np.float32))
    assert found == {"x": "(4)", "w": "(4)", "y": "(4)"}


# --- com.microsoft --------------------------------------------------------------------------------

ATTENTION = """(float[b, s, {width}] q, float[b, 4, past, 16] pk, float[b, 4, past, 16] pv,
               int32[b, 1] lens, int32 total) => (y, nk, nv) {{
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads=8, kv_num_heads=4>
                (q, {key}, {value}, pk, pv, lens, total)
}}"""


def test_group_query_attention_packed() -> None:
    found = facts(ATTENTION.format(width=256, key="", value=""))
    assert found["y"] == "(b, s, 128)"
    assert found["nk"] == found["nv"] == "(b, 4, past + s, 16)"


def test_group_query_attention_with_key_and_value() -> None:
    text = ATTENTION.format(width=128, key="k", value="k")
    found = facts(text.replace("int32 total", "int32 total, float[b, s, 64] k"))
    assert found["y"] == "(b, s, 128)"
    assert found["nk"] == "(b, 4, past + s, 16)"


def test_group_query_attention_keeps_the_declared_cache_length() -> None:
    text = ATTENTION.format(width=256, key="", value="")
    found = facts(text.replace("(y, nk, nv)", "(y, float[b, 4, total, 16] nk, nv)"))
    assert found["nk"] == found["nv"] == "(b, 4, total, 16)"


@pytest.mark.parametrize("op", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_skip_norm(op: str) -> None:
    found = facts(
        f"(float[b, s, 8] x) => (y, t) {{ y, , , t = com.microsoft.{op}(x, x, w) }}",
        w=np.ones(8, np.float32),
    )
    assert found["y"] == found["t"] == "(b, s, 8)"


def test_an_unknown_op_keeps_what_the_exporter_declared() -> None:
    found = facts("(float[a] x) => (float[a, 9] y, z) { y = local.Odd(x) z = local.Odd(x) }")
    assert found == {"x": "(a)", "y": "(a, 9)"}


# --- symbols --------------------------------------------------------------------------------------


def test_fresh_symbols_are_no_names_of_the_model() -> None:
    found = facts("(float[unk1, 4] x) => (y) { y = Reshape(x, s) }", s=ints(-1, 8))
    assert found == {"x": "(unk1, 4)", "s": "(2) = [-1, 8]", "y": "(unk2, 8)"}


def test_an_input_of_unnamed_size_gets_a_symbol_of_its_own() -> None:
    found = facts("(float[?, 4] x, float[?, 4] z) => (y) { y = Relu(x) }")
    assert found == {"x": "(unk1, 4)", "z": "(unk2, 4)", "y": "(unk1, 4)"}


def test_differences_pass_through_other_ops() -> None:
    found = facts(
        """(float[a] x, float[b] z) => (y) {
            n = Size(x)
            m = Size(z)
            r = Range(n, m, one)
            y = Neg(r)
        }""",
        one=np.array(1, np.int64),
    )
    assert found["r"] == found["y"] == "(-1*a + b)"


def test_shapes_are_written_into_the_values() -> None:
    model = small_model("(float[a, 4] x) => (y) { t = Concat <axis=0> (x, x) y = Relu(t) }")
    infer_shapes(model)
    y = model.graph.outputs[0]
    assert str(y.shape) == "[2*a,4]" and y.dtype is ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("shapes", "result"),
    [
        (["a 1", "b"], "a b"),
        (["1 4", "a 1"], "a 4"),
        (["a", "1"], "a"),
        (["a", "4"], "4"),
        (["0", "1"], "0"),
        (["a", "0"], "0"),
        (["", "a b"], "a b"),
        (["a", "b"], "a"),
    ],
)
def test_broadcast(shapes: list[str], result: str) -> None:
    given = [tuple(from_text(size) for size in text.split()) for text in shapes]
    assert " ".join(map(str, broadcast(given))) == result


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("Add(x, w)", "(Add) does not fit its operands x[a, 12], w[5, 7]: sizes 12 and 7 differ"),
        ("MatMul(x, w)", "x[a, 12], w[5, 7]: it contracts 12 with 5 entries. Check the model with"),
        ("Reshape(w, s)", "w[5, 7], s[2]: 35 entries cannot become 36"),
        ("Reshape(w, t)", "35 entries are no multiple of 6"),
        ("Concat <axis=0> (x, w)", "x[a, 12], w[5, 7]: sizes 12 and 7 differ"),
        ("Concat <axis=0> (x, s)", "x[a, 12], s[2]: ranks 2 and 1 differ"),
        ("Transpose <perm=[0, 2]> (x)", "(Transpose) does not fit its operands x[a, 12]: "),
        ("Conv(x, w)", "(Conv) does not fit its operands x[a, 12], w[5, 7]: "),
    ],
)
def test_operands_that_do_not_fit(node: str, message: str) -> None:
    weights: dict[str, Any] = {"w": np.zeros((5, 7), np.float32), "s": ints(6, 6), "t": ints(-1, 6)}
    model = small_model(f"(float[a, 12] x) => (y) {{ [first] y = {node} }}", **weights)
    with pytest.raises(GraphError) as caught:
        infer_shapes(model)
    text = str(caught.value)
    assert text.startswith("node 'first' (") and message in text
    assert "\n" not in text and text.endswith("and export it again.")


def test_an_initializer_without_data() -> None:
    model = small_model("(float[a] x) => (y) { y = Relu(x) }")
    model.graph.register_initializer(ir.val("w", const_value=ir.tensor([1.0])))
    model.graph.initializers["w"].const_value = None
    with pytest.raises(GraphError, match="initializer 'w' has no data"):
        infer_shapes(model)
