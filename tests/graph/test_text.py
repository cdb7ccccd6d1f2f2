"""The text form: what a dump shows of a graph, line by line."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph.dialect import AllReduce, make_node
from graph.infer import infer_shapes
from graph.text import DTYPES, MAX_SHOWN, describe_type, graph_text
from tests.graph.small import small_model, weight

TEXT = """(float[batch, 4] x, int64[?] i) => (y, z) {
    [a] h = MatMul (x, w)
    [b] t = Reshape (h, shape)
    [c] y, z = Split <axis = 1, num_outputs = 2> (t)
    [d] c = Clip (h, , most)
    [e] f = com.microsoft.FusedMatMulActivation <alpha = 0.5, transA = 0> (x, w)
}"""


def test_every_line() -> None:
    model = small_model(
        TEXT,
        w=weight(4, 6),
        shape=np.array([-1, 2, 3], np.int64),
        most=np.array(6, np.float32),
    )
    infer_shapes(model)
    assert graph_text(model).splitlines() == [
        "graph small",
        "  input x: f32[batch, 4]",
        "  input i: i64[unk1]",
        "  const w: f32[4, 6]",
        "  const shape: i64[3] = [-1, 2, 3]",
        "  const most: f32[]",
        "  h = MatMul(x, w): f32[batch, 6]",
        "  t = Reshape(h, shape): f32[batch, 2, 3]",
        "  y, z = Split(t, axis=1, num_outputs=2): f32[batch, 1, 3], f32[batch, 1, 3]",
        "  c = Clip(h, -, most): f32[batch, 6]",
        "  f = com.microsoft.FusedMatMulActivation(x, w, alpha=0.5, transA=0): ?[?]",
        "  output y",
        "  output z",
    ]


def test_the_drawing_of_the_module() -> None:
    """A collective shows its attributes, and the last line counts them."""
    model = small_model("(float[batch, 64] x) => (float[batch, 256] y) { h = MatMul (x, w1) }")
    graph = model.graph
    exchange = make_node(AllReduce("tp"), graph[0].outputs[0], 0)
    exchange.outputs[0].name = "y"
    graph.append(exchange)
    graph.outputs[0] = exchange.outputs[0]
    lines = graph_text(model, header="mesh(tp=4)", footer=" · 256 B per row").splitlines()
    assert lines[0] == "graph small on mesh(tp=4)"
    assert "  y = AllReduce(h, axis=tp, reduce=sum, tag=0): ?[?]" in lines
    assert lines[-1] == "# collectives: 1 AllReduce · 256 B per row"


def test_a_footer_without_collectives() -> None:
    model = small_model("(float[n] x) => (float[n] y) { y = Relu (x) }")
    assert graph_text(model, footer=".").endswith("  output y\n# collectives: none.\n")
    assert graph_text(model).endswith("  output y\n")


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        (ir.DataType.FLOAT, [2, "n"], "f32[2, n]"),
        (ir.DataType.BFLOAT16, [], "bf16[]"),
        (ir.DataType.UINT4, [3], "uint4[3]"),
        (ir.DataType.BOOL, [None], "bool[?]"),
        (ir.DataType.INT64, None, "i64[?]"),
        (None, [1], "?[1]"),
    ],
)
def test_types(dtype: ir.DataType | None, shape: list[int | str | None] | None, text: str) -> None:
    assert describe_type(ir.val("v", dtype, shape)) == text


def test_marks_and_notes_of_a_split() -> None:
    value = ir.val("v", ir.DataType.FLOAT, ["n", 8])
    assert describe_type(value, {1: "@tp"}, " partial(sum@tp)") == "f32[n, 8@tp] partial(sum@tp)"


def test_every_short_name_is_a_type() -> None:
    assert all(hasattr(ir.DataType, name) for name in DTYPES)
    assert len(set(DTYPES.values())) == len(DTYPES)


@pytest.mark.parametrize(("size", "shown"), [(MAX_SHOWN, True), (MAX_SHOWN + 1, False)])
def test_short_integer_constants_show_their_contents(size: int, shown: bool) -> None:
    model = small_model("(float[n] x) => (y) { y = Gather(x, k) }", k=np.arange(size))
    line = next(line for line in graph_text(model).splitlines() if "const k" in line)
    assert line.endswith(f" = {[*range(size)]}") == shown


def test_weights_are_never_read() -> None:
    def fail() -> ir.TensorProtocol:
        raise AssertionError("read")

    model = small_model("(float[4] x) => (y) { y = Add(x, w) }", w=weight(4))
    lazy = ir.LazyTensor(fail, ir.DataType.FLOAT, ir.Shape([4]), name="w")
    model.graph.initializers["w"].const_value = lazy
    assert "  const w: f32[4]\n" in graph_text(model)


def test_attributes_that_hold_data_are_short() -> None:
    text = """(float[n] x, bool p) => (y) {
        c = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()
        t = Transpose <perm = [1, 0]> (c)
        y = If (p) <
            then_branch = a () => (u) { u = Neg(x) }, else_branch = b () => (v) { v = Relu(x) }
        >
    }"""
    lines = graph_text(small_model(text)).splitlines()
    assert "  c = Constant(value=tensor[2, 3]): ?[?]" in lines
    assert "  t = Transpose(c, perm=[1, 0]): ?[?]" in lines
    assert "  y = If(p, else_branch={…}, then_branch={…}): ?[?]" in lines
