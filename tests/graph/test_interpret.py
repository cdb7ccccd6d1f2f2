"""The oracle agrees with onnxruntime on whole models and on every operator it defines itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graph import dialect
from graph.dialect import AllGather, AllReduce, Collective, ReduceScatter
from graph.errors import GraphError
from graph.interpret import interpret
from graph.layout import Layout
from graph.mesh import Mesh
from graph.reader import read_model
from tests.models import MODELS, model_cases, model_inputs, model_path

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
TOLERANCE = 1e-4


def run_onnxruntime(model: str | bytes, inputs: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def greatest_difference(got: Arrays, want: Arrays) -> float:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
    return max(float(np.abs(got[n] - array).max(initial=0)) for n, array in want.items())


@pytest.mark.parametrize("model_id", MODELS)
def test_whole_models(model_id: str) -> None:
    path = model_path(model_id)
    model = read_model(path)
    for case in model_cases(model_id):
        inputs = model_inputs(model_id, case)
        difference = greatest_difference(
            interpret([model], [inputs])[0], run_onnxruntime(str(path), inputs)
        )
        print(f"{model_id} {case}: {difference:.2e}")
        assert difference <= TOLERANCE


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def attention_inputs(past: int = 0, new: int = 5, batch: int = 2, room: int = 0) -> Arrays:
    """Packed GroupQueryAttention inputs: 4 heads on 2 kv heads of 16."""
    inputs = {
        "query": normal(batch, new, 8 * 16),
        "key": np.zeros(0, np.float32),
        "value": np.zeros(0, np.float32),
        "past_key": normal(batch, 2, past + room, 16),
        "past_value": normal(batch, 2, past + room, 16)[..., ::-1].copy(),
        "seqlens_k": np.full(batch, past + new - 1, np.int32),
        "total": np.array([past + new], np.int32),
        "cos": normal(32, 8),
        "sin": normal(32, 8) / 2,
        "position_ids": np.zeros(0, np.int64),
        "bias": normal(1, 4, new, past + new),
        "sink": normal(4),
    }
    return inputs


def without(inputs: Arrays, *names: str) -> Arrays:
    empty = {name: np.zeros(0, np.float32) for name in names}
    return {**inputs, **empty}


PLAIN = ("bias", "sink")
GQA = {"num_heads": 4, "kv_num_heads": 2}
ROTARY = {**GQA, "do_rotary": 1}
X, ROW = normal(2, 3, 8), normal(8)
SEPARATE = {
    **without(attention_inputs(), *PLAIN, "past_key", "past_value", "cos", "sin"),
    "query": normal(2, 5, 64),
    "key": normal(2, 5, 32),
    "value": normal(2, 5, 32) * 2,
}
POSITIONS = np.arange(3, 6)[None].repeat(2, 0)

CONTRIB_CASES: list[tuple[str, Arrays, dict[str, Any], int]] = [
    ("Gelu", {"x": X}, {}, 1),
    ("BiasGelu", {"x": X, "b": ROW}, {}, 1),
    ("FastGelu", {"x": X}, {}, 1),
    ("FastGelu", {"x": X, "b": ROW}, {}, 1),
    ("QuickGelu", {"x": X}, {"alpha": 1.5}, 1),
    ("FusedMatMul", {"a": normal(2, 3, 4), "b": normal(2, 5, 4)}, {"alpha": 0.5, "transB": 1}, 1),
    ("FusedMatMul", {"a": normal(2, 4, 3), "b": normal(2, 4, 5)}, {"transA": 1}, 1),
    (
        "FusedMatMul",
        {"a": normal(3, 2, 4), "b": normal(2, 4, 5)},
        {"transBatchA": 1},
        1,
    ),
    ("SimplifiedLayerNormalization", {"x": X, "g": ROW}, {"epsilon": 1e-3}, 1),
    ("SkipSimplifiedLayerNormalization", {"x": X, "s": X * 2, "g": ROW}, {"epsilon": 1e-3}, 4),
    ("SkipSimplifiedLayerNormalization", {"x": X, "s": X * 2, "g": ROW, "b": ROW * 3}, {}, 1),
    ("SkipLayerNormalization", {"x": X, "s": X * 2, "g": ROW, "b": ROW + 1, "c": ROW * 3}, {}, 1),
    ("SkipLayerNormalization", {"x": X, "s": X * 2, "g": ROW}, {}, 4),
    (
        "RotaryEmbedding",
        {"x": normal(2, 3, 32), "p": POSITIONS, "cos": normal(9, 8), "sin": normal(9, 8) / 3},
        {},
        1,
    ),
    (
        "RotaryEmbedding",
        {"x": normal(2, 2, 3, 16), "p": np.array([4]), "cos": normal(9, 8), "sin": normal(9, 8)},
        {"interleaved": 1},
        1,
    ),
    ("GroupQueryAttention", SEPARATE, GQA, 3),
    ("GroupQueryAttention", SEPARATE, {**GQA, "local_window_size": 2}, 3),
    ("GroupQueryAttention", SEPARATE, {**GQA, "softcap": 2.0, "scale": 0.7}, 3),
    ("GroupQueryAttention", without(attention_inputs(), *PLAIN), ROTARY, 3),
    (
        "GroupQueryAttention",
        without(attention_inputs(), *PLAIN),
        {**ROTARY, "rotary_interleaved": 1},
        3,
    ),
    ("GroupQueryAttention", without(attention_inputs(7, 1), *PLAIN), ROTARY, 3),
    ("GroupQueryAttention", without(attention_inputs(7, 3, batch=1), *PLAIN), ROTARY, 3),
    (
        "GroupQueryAttention",
        without(attention_inputs(7, 1), *PLAIN),
        {**ROTARY, "local_window_size": 4},
        3,
    ),
    ("GroupQueryAttention", without(attention_inputs(), "sink"), ROTARY, 3),
    ("GroupQueryAttention", without(attention_inputs(6, 1), "bias"), ROTARY, 3),
    (
        "GroupQueryAttention",
        without(attention_inputs(6, 1), *PLAIN),
        {**ROTARY, "smooth_softmax": 1},
        3,
    ),
    (
        "GroupQueryAttention",
        {
            **without(attention_inputs(7, 1), *PLAIN),
            "seqlens_k": np.array([7, 4], np.int32),
        },
        ROTARY,
        3,
    ),
    ("GroupQueryAttention", without(attention_inputs(6, 1, room=3), *PLAIN), ROTARY, 3),
]


def one_node(
    op_type: str, inputs: Arrays, attributes: dict[str, Any], outputs: int
) -> tuple[onnx.ModelProto, Arrays]:
    """A model of one operator; empty arrays stand for inputs left out."""
    domain = (
        "" if op_type in ("SimplifiedLayerNormalization", "GatherElements") else "com.microsoft"
    )
    given = {name: array for name, array in inputs.items() if array.ndim > 1 or array.size}
    names = [name if name in given else "" for name in inputs]
    results = [f"y{i}" for i in range(outputs)]
    if op_type.startswith("Skip") and outputs == 4:
        results[1] = results[2] = ""  # onnxruntime computes no statistics on CPU
    node = helper.make_node(op_type, names, results, "node", domain=domain, **attributes)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in given.items()
    ]
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results if n]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", infos, made)
    return helper.make_model(graph, ir_version=10, opset_imports=imports), given


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "outputs"),
    CONTRIB_CASES,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(CONTRIB_CASES)],
)
def test_contrib_operators(
    op_type: str, inputs: Arrays, attributes: dict[str, Any], outputs: int
) -> None:
    proto, given = one_node(op_type, inputs, attributes, outputs)
    want = run_onnxruntime(proto.SerializeToString(), given)
    got = interpret([ir.from_proto(proto)], [given])[0]
    assert greatest_difference(got, want) <= 1e-5


def test_gather_elements_of_a_long_dim() -> None:
    inputs = {"x": normal(4, 100), "i": np.array([[3, 99, -1], [0, 1, 2]])}
    proto, given = one_node("GatherElements", inputs, {"axis": 1}, 1)
    want = run_onnxruntime(proto.SerializeToString(), given)
    assert greatest_difference(interpret([ir.from_proto(proto)], [given])[0], want) == 0


def test_control_flow_and_functions() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1, "com.microsoft" : 1]>
    g (float[n] x, int64 trips, bool keep) => (float[n] y) {
      one = Constant <value = float[1] {1.0}> ()
      start = local.Double (x)
      true = Constant <value = bool {1}> ()
      s = Loop (trips, true, start)
          <body = b (int64 i, bool c, float[n] a) => (bool d, float[n] e) {
        d = Identity (c)
        grown = Add (a, one)
        e = com.microsoft.QuickGelu (grown)
      }>
      y = If (keep) <then_branch = t () => (float[n] t1) { t1 = Identity (s) },
                     else_branch = f () => (float[n] f1) { f1 = Mul (s, x) }>
    }
    <domain: "local", opset_import: ["" : 21]>
    Double (x) => (y) { y = Add (x, x) }
    """
    proto = onnx.parser.parse_model(text)
    for keep in (True, False):
        inputs: Arrays = {"x": normal(5), "trips": np.array(3), "keep": np.array(keep)}
        want = run_onnxruntime(proto.SerializeToString(), inputs)
        got = interpret([ir.from_proto(proto)], [inputs])[0]
        assert greatest_difference(got, want) <= 1e-6


def rank_graph(weights: dict[str, Array], ops: list[Collective | str]) -> ir.Model:
    """x -> each op in turn, a string "MatMul w" or a collective -> y."""
    x = ir.val("x", ir.DataType.FLOAT, [None, None])
    consts = {n: ir.val(n, const_value=ir.tensor(w, name=n)) for n, w in weights.items()}
    value, nodes = x, []
    for i, op in enumerate(ops):
        if isinstance(op, str):
            op_type, *names = op.split()
            nodes.append(ir.node(op_type, [value, *(consts[name] for name in names)]))
        else:
            nodes.append(dialect.make_node(op, value, tag=i))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    imports = {"": 21, "tpcore": 1}
    graph = ir.Graph(
        [x],
        [value],
        nodes=nodes,
        initializers=list(consts.values()),
        opset_imports=imports,
        name="g",
    )
    return ir.Model(graph, ir_version=10)


UP, DOWN = normal(4, 7), normal(7, 4) * 2


def split_mlp(rank: int, last: Collective) -> ir.Model:
    columns = [slice(0, 5), slice(5, 7)][rank]
    weights = {"w1": UP[:, columns], "w2": DOWN[columns]}
    return rank_graph(weights, ["MatMul w1", "Relu", "MatMul w2", last])


def test_collectives_make_the_ranks_one_model() -> None:
    x = normal(3, 4)
    want = np.maximum(x @ UP, 0) @ DOWN
    ranks = [split_mlp(rank, AllReduce("tp")) for rank in range(2)]
    for values in interpret(ranks, [{"x": x}] * 2):
        np.testing.assert_allclose(values["v3"], want, atol=1e-5)
    scatter = ReduceScatter("tp", (0,), (Layout.even(3, 2),))
    halves = interpret([split_mlp(rank, scatter) for rank in range(2)], [{"x": x}] * 2)
    np.testing.assert_allclose(np.concatenate([h["v3"] for h in halves]), want, atol=1e-5)


def test_keep_returns_all_values() -> None:
    values = interpret(
        [split_mlp(r, AllReduce("tp")) for r in range(2)], [{"x": X[0, :, :4]}] * 2, keep=True
    )[1]
    assert set(values) == {"x", "w1", "w2", "v0", "v1", "v2", "v3"}
    assert values["v0"].shape == (3, 2)


def test_mesh_axes_exchange_apart() -> None:
    mesh = Mesh.of(dp=2, tp=3)
    inputs = [{"x": np.full((1, 1), 10.0**rank, np.float32)} for rank in range(6)]

    def run(op: Collective) -> list[list[float]]:
        results = interpret([rank_graph({}, [op])] * 6, inputs, mesh=mesh)
        return [result["v0"].ravel().tolist() for result in results]

    assert run(AllReduce("tp")) == [[111]] * 3 + [[111000]] * 3
    assert run(AllReduce("dp", "max")) == [[1e3], [1e4], [1e5]] * 2
    gathered = run(AllGather("tp", (0,), (Layout.even(3, 3),)))
    assert gathered == [[1, 10, 100]] * 3 + [[1e3, 1e4, 1e5]] * 3


@pytest.mark.parametrize(
    "other",
    [
        [AllReduce("tp", "max"), AllReduce("tp")],
        [AllReduce("tp", "sum"), "Relu"],
        ["Relu"],
    ],
)
def test_refuses_ranks_that_disagree(other: list[Collective | str]) -> None:
    first = rank_graph({}, [AllReduce("tp"), AllReduce("tp", "max")])
    with pytest.raises(GraphError, match="differ in their collectives: rank 0: AllReduce"):
        interpret([first, rank_graph({}, other)], [{"x": X[0]}] * 2)


def test_errors_name_the_node() -> None:
    model = rank_graph({"w": UP}, ["MatMul w"])
    with pytest.raises(GraphError, match=r"MatMul.* on rank 0 .*x \[3, 8\], w \[4, 7\]"):
        interpret([model], [{"x": X[0]}])
    with pytest.raises(GraphError, match=r"no value for the inputs \['x'\]; given are \['z'\]"):
        interpret([model], [{"z": X}])
    with pytest.raises(GraphError, match=r"ai\.onnx:Nonsense"):
        interpret([rank_graph({}, ["Nonsense"])], [{"x": X}])
