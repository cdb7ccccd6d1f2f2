"""The torch executor: every row against ONNX's node tests or the oracle, whole models against
onnxruntime, and what it promises about memory, devices and errors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from backends.exec_torch import TorchExecutor, missing_ops  # noqa: E402
from backends.exec_torch.held import plain_of  # noqa: E402
from bench.node_cases import node_cases  # noqa: E402
from bench.torch_models import DTYPES, rows_of  # noqa: E402
from bench.torch_nodes import outcome_of, share  # noqa: E402
from graph.canonicalize import canonicalize  # noqa: E402
from graph.errors import ExecutionError  # noqa: E402
from graph.interpret import interpret  # noqa: E402
from graph.reader import read_model  # noqa: E402
from tests.families import family_inputs, family_path  # noqa: E402
from tests.models import GENAI, MODELS, model_cases, model_inputs, model_path  # noqa: E402
from tests.tpcore.validator_cases import ATTENTION, CASES  # noqa: E402
from tpcore.trial import Case, build_model  # noqa: E402

EVERY = 6
"""One of so many node tests is run here; bench.torch_nodes runs all."""
SHARE = 0.95
TOLERANCE = 1e-4
NO_ABS = "LpNormalization"
"""onnx.reference sums signed numbers for p = 1; ONNX's own node test says what is right."""


@pytest.mark.filterwarnings("ignore")
def test_node_tests() -> None:
    executor = TorchExecutor()
    chosen = list(node_cases()[0].values())[::EVERY]
    outcomes = [outcome_of(case, executor) for case in chosen]
    wrong = [o for o in outcomes if o.state in ("failed", "no row") and o.runtime_passes]
    print(f"{len(chosen)} node tests, {share(outcomes):.1%} of those onnxruntime passes are equal")
    assert share(outcomes) >= SHARE, "\n".join(f"{o.name}: {o.reason}" for o in wrong)
    assert not [o for o in wrong if o.state == "failed"], wrong


OP_NAMES = sorted({f"{case.domain or 'ai.onnx'}:{case.op_type}" for case in [*CASES, *ATTENTION]})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op_name", OP_NAMES)
def test_what_the_rules_are_proven_on(op_name: str) -> None:
    domain, op_type = op_name.split(":")
    domain = "" if domain == "ai.onnx" else domain
    for case in [*CASES, *ATTENTION]:
        if (case.domain, case.op_type) == (domain, op_type):
            _check(case)


def _check(case: Case) -> None:
    model = build_model(case)
    names = [value.name or "" for value in model.graph.inputs]
    inputs = {f"x{i}": array for i, array in enumerate(case.operands) if f"x{i}" in names}
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    if case.op_type == NO_ABS and case.attributes.get("p") == 1:
        arrays = {name: np.abs(array) for name, array in arrays.items()}
    (wanted,) = interpret([model], [arrays])
    got = run(model, arrays)
    for name, array in got.items():
        want = np.asarray(wanted[name])
        assert (array.dtype, array.shape) == (want.dtype, want.shape), f"{case}: {name}"
        a, b = array.astype(np.float64), want.astype(np.float64)
        scale = np.abs(b[np.isfinite(b)]).max(initial=0)
        close = 0.0 if want.dtype.kind in "biu" else TOLERANCE * scale
        np.testing.assert_allclose(a, b, rtol=0, atol=close, err_msg=f"{case}: {name}")


def run(model: ir.Model, inputs: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """Outputs of one model."""
    executor = TorchExecutor(**options)
    step = executor.prepare(model, 1)
    made = step({name: executor.to_tensor(array) for name, array in inputs.items()})
    return {name: executor.to_array(tensor) for name, tensor in made.items()}


@pytest.mark.parametrize("model_id", MODELS)
def test_split_models_equal_the_whole_in_onnxruntime(model_id: str) -> None:
    cases = [model_inputs(model_id, case) for case in model_cases(model_id)]
    path = model_path(model_id)
    rows = [
        *rows_of(model_id, path, cases, (1, 2, 4), (None,)),
        *rows_of(model_id, path, cases, (2,), ("fp16", "bf16")),
    ]
    assert {row.dtype for row in rows} == set(DTYPES.values())
    wrong = [str(row) for row in rows if not row.equal]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("family", ["llama-genai-int4-zp", "gpt-oss-genai-fp32", "resnet-qlinear"])
def test_families(family: str) -> None:
    path, inputs = family_path(family), [family_inputs(family)]
    assert all(row.equal for row in rows_of(family, path, inputs, (2,), (None,)))


@pytest.mark.parametrize("family", ["deberta", "lfm2-moe-genai-int4", "llama-half", "resnet-qdq"])
def test_families_in_16_bits(family: str) -> None:
    """Masks beyond float16's range, torch's kernel for 4-bit weights, casts, scales."""
    path, inputs = family_path(family), [family_inputs(family)]
    assert all(row.equal for row in rows_of(family, path, inputs, (2,), ("fp16", "bf16")))


def test_compiled() -> None:
    """One symbolic graph serves all sizes."""
    model_id = "mlp-opset18-dynamic"
    cases = [model_inputs(model_id, case) for case in model_cases(model_id)]
    rows = list(rows_of(model_id, model_path(model_id), cases, (2,), (None,), compile=True))
    assert all(row.equal for row in rows)


# --- shapes and devices ---------------------------------------------------------------------------

DYNAMIC = [GENAI, *(m for m in MODELS if m.endswith("dynamic"))]


@pytest.mark.parametrize("model_id", DYNAMIC)
def test_shapes_never_touch_the_device(model_id: str) -> None:
    """The meta device has no contents: reading one back, or mixing devices, would raise."""
    model, _ = canonicalize(read_model(model_path(model_id)))
    executor = TorchExecutor("meta")
    step = executor.prepare(model, 1)
    inputs = {n: executor.to_tensor(x) for n, x in model_inputs(model_id).items()}
    made = step(inputs)
    assert {tensor.device.type for tensor in made.values()} == {"meta"}
    assert plain_of not in {node.target for node in step._module.graph.nodes}


def test_positions_are_exact_in_16_bits() -> None:
    """4001 is no bfloat16: the angle is computed in float32 and its cosine rounded once."""
    position = ir.Value(name="p", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    as_float = ir.node("Cast", [position], {"to": 1})
    rate = ir.node("Constant", [], {"value": ir.tensor(np.array([0.37], np.float32))})
    angle = ir.node("Mul", [as_float.outputs[0], rate.outputs[0]])
    cosine = ir.node("Cos", [angle.outputs[0]])
    nodes = [as_float, rate, angle, cosine]
    for node in nodes:
        node.outputs[0].name = f"v{node.op_type}"
    cosine.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([position], cosine.outputs, nodes=nodes, opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    got = run(model, {"p": np.array([4001])}, dtype="bf16")["vCos"]
    assert got.dtype == np.float32
    assert abs(got[0] - np.cos(np.float32(4001 * np.float32(0.37)))) < 4e-3


# --- memory ---------------------------------------------------------------------------------------


def _multiplied(weight: ir.TensorProtocol) -> ir.Model:
    """`y = MatMul(x, w)`."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape(["n", 4]))
    w = ir.Value(name="w", type=kind, shape=ir.Shape([4, 3]), const_value=weight)
    node = ir.node("MatMul", [x, w], name="product")
    node.outputs[0].name, node.outputs[0].type = "y", kind
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 18}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def test_weights_are_the_mapped_file(tmp_path: Path) -> None:
    contents = np.arange(12, dtype=np.float32)
    (tmp_path / "w").write_bytes(contents.tobytes())
    weight = ir.ExternalTensor(
        "w", 0, 48, ir.DataType.FLOAT, shape=ir.Shape([4, 3]), name="w", base_dir=tmp_path
    )
    executor = TorchExecutor()
    steps = [executor.prepare(_multiplied(weight), 1) for _ in range(2)]
    (first,), (second,) = (list(step._module.buffers()) for step in steps)
    assert np.shares_memory(first.numpy(), weight.numpy())
    assert first is second


def test_a_weight_cast_for_several_segments_is_held_once(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    weight = ir.ExternalTensor(
        "w", 0, 48, ir.DataType.FLOAT, shape=ir.Shape([4, 3]), name="w", base_dir=tmp_path
    )
    executor = TorchExecutor(dtype="bf16")
    steps = [executor.prepare(_multiplied(weight), 1) for _ in range(2)]
    (first,), (second,) = (list(step._module.buffers()) for step in steps)
    assert first is second and first.dtype == torch.bfloat16


@pytest.mark.parametrize("compile", [False, True])
def test_a_cache_grows_in_place_where_its_owner_says_so(compile: bool) -> None:
    random, room = np.random.default_rng(3), 8
    packed = random.standard_normal((1, 1, 64), np.float32)
    past = [random.standard_normal((1, 1, 5, 16), np.float32) for _ in range(2)]
    lengths = np.array([5], np.int32), np.array([6], np.int32)
    rooms = [np.concatenate([x, np.zeros((1, 1, room - 5, 16), np.float32)], 2) for x in past]
    attributes = {"num_heads": 2, "kv_num_heads": 1}

    def case(*caches: np.ndarray) -> Case:
        operands = (packed, None, None, *caches, *lengths)
        return Case("GroupQueryAttention", operands, attributes, "com.microsoft", 3)

    executor = TorchExecutor(compile=compile)
    step = executor.prepare(build_model(case(*rooms)), 1)
    inputs = {n: executor.to_tensor(x) for n, x in zip(("x0", "x5", "x6"), (packed, *lengths))}
    caches = [executor.to_tensor(x) for x in rooms]
    step.write_into({"y1": caches[0], "y2": caches[1]})
    made = step(inputs | {"x3": caches[0], "x4": caches[1]})
    want = run(build_model(case(*past)), {f"x{i}": a for i, a in enumerate(case(*past).operands)
                                          if a is not None})  # fmt: skip
    np.testing.assert_allclose(executor.to_array(made["y0"]), want["y0"], atol=1e-5)
    for name, held, buffer in (("y1", caches[0], rooms[0]), ("y2", caches[1], rooms[1])):
        assert made[name] is held
        np.testing.assert_allclose(buffer[:, :, :6], want[name], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
def test_arrays_and_tensors_share_memory(dtype: str) -> None:
    executor, array = TorchExecutor(), np.zeros((3, 4), dtype)
    assert np.shares_memory(executor.to_array(executor.to_tensor(array)), array)


@cache
def _codes() -> list[ir.DataType]:
    return [t for t in ir.DataType if t.name.startswith(("BFLOAT16", "FLOAT8", "INT4", "UINT2"))]


@pytest.mark.parametrize("dtype", _codes(), ids=str)
def test_types_that_numpy_lacks_pass(dtype: ir.DataType) -> None:
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([3]))
    node = ir.node("Identity", [x])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(dtype)
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}, name="g")
    array = np.array([0, 1, 1]).astype(dtype.numpy())
    got = run(ir.Model(graph, ir_version=10), {"x": array})["y"]
    assert got.dtype == array.dtype and got.tobytes() == array.tobytes()


# --- errors ---------------------------------------------------------------------------------------


def test_an_op_without_a_row_is_named_with_the_reason() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3]))
    node = ir.node("SequenceConstruct", [x], name="list")
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    reason = "ai.onnx:SequenceConstruct (a sequence, map or optional value is no tensor)"
    assert missing_ops(model) == [reason]
    with pytest.raises(ExecutionError, match=r"no row for ai.onnx:SequenceConstruct"):
        TorchExecutor().prepare(model, 1)


def test_a_node_that_fails_is_named() -> None:
    model = _multiplied(ir.tensor(np.zeros((4, 3), np.float32)))
    with pytest.raises(ExecutionError, match=r"cannot run node 'product' \(ai.onnx:MatMul\)"):
        run(model, {"x": np.zeros((2, 5), np.float32)})


def test_an_attribute_without_a_meaning_is_refused() -> None:
    model = _multiplied(ir.tensor(np.zeros((4, 3), np.float32)))
    model.graph[0].attributes["odd"] = ir.AttrInt64("odd", 1)
    with pytest.raises(ExecutionError, match="no meaning for the attributes odd"):
        TorchExecutor().prepare(model, 1)
