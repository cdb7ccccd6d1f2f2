"""Quantised models: exact blocks, int32 sums, and the meaning of each op against onnxruntime."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from graph.interpret import interpret
from tests.families import family_cases, family_inputs, family_path
from tests.graph.small import Array, Arrays, run_whole, small_model, weight
from tests.models import run_reference
from tests.tpcore.cases_quant import QUANT, codes, scales
from tests.tpcore.lockstep import SplitRunner, relative_difference
from tests.tpcore.toys import planned
from tpcore.partition import Options
from tpcore.shard import Split, split_model, split_plan
from tpcore.trial import Case, build_model

EXACT = 1e-4
ROUNDED = 1e-3
"""Of the output's scale, where activations are rounded by block."""
OPSET = 22
"""The newest that onnxruntime has kernels for on all integer types used here."""


# --- meaning --------------------------------------------------------------------------------------


def in_onnxruntime(case: Case) -> tuple[Arrays, Arrays]:
    """Results of our definition and of onnxruntime."""
    model = build_model(case)
    feeds = {f"x{i}": array for i, array in enumerate(case.operands) if array is not None}
    (ours,) = interpret([model], [feeds])
    for value in model.graph.outputs:
        array = np.asarray(ours[value.name or ""])
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    model.graph.opset_imports[""] = OPSET
    return ours, run_whole(model, feeds)


@pytest.mark.parametrize("case", QUANT, ids=str)
def test_an_op_means_what_onnxruntime_computes(case: Case) -> None:
    ours, theirs = in_onnxruntime(case)
    for name, array in ours.items():
        want = theirs[name]
        assert want.shape == np.shape(array) and want.dtype == np.asarray(array).dtype
        steps = 1 if want.dtype.itemsize == 1 else EXACT * np.abs(want).max()
        np.testing.assert_allclose(np.asarray(array, np.float64), want, rtol=0, atol=steps)


# --- layers ---------------------------------------------------------------------------------------


def n_bits_mlp(zero_points: bool = False) -> ir.Model:
    """Two layers of MatMulNBits, 64 -> 128 -> 64, in blocks of 16."""
    operands = ["", ", z1"], ["", ", z2"]
    up, down = (pair[zero_points] for pair in operands)
    text = f"""(float[3, 64] x) => (float[3, 64] y) {{
        h = com.microsoft.MatMulNBits <K = 64, N = 128, bits = 4, block_size = 16> (x, w1, s1{up})
        a = Sigmoid(h)
        y = com.microsoft.MatMulNBits <K = 128, N = 64, bits = 4, block_size = 16> (a, w2, s2{down})
    }}"""
    weights: dict[str, Array] = {
        **{"w1": codes(128, 4, 8), "s1": scales(128, 4)},
        **{"w2": codes(64, 8, 8), "s2": scales(64, 8)},
        **({"z1": codes(128, 2), "z2": codes(64, 4)} if zero_points else {}),
    }
    return small_model(text, **weights)


def split_of(model: ir.Model, ranks: int) -> Split:
    """The split of the plan for a model."""
    return split_plan(planned(model, ranks), Options(ranks))


def difference(model: ir.Model, split: Split) -> float:
    inputs = {"x": weight(3, 64)}
    return relative_difference(SplitRunner(split).run(inputs), run_whole(model, inputs))


@pytest.mark.parametrize(
    ("ranks", "zero_points", "bounds"),
    [
        (2, False, "0:4 4:8"),
        (3, False, "0:3 3:6 6:8"),
        (2, True, "0:4 4:8"),
        (4, True, "0:2 2:4 4:6 6:8"),
    ],
)
def test_blocks_are_split_whole(ranks: int, zero_points: bool, bounds: str) -> None:
    """Eight blocks; with zero points two to a byte four pairs of them."""
    model = n_bits_mlp(zero_points)
    split = split_of(model, ranks)
    assert split.report["collectives"] == {"AllReduce": 1}
    assert split.report["split_fraction"] == 1.0
    assert difference(model, split) <= EXACT
    assert split.shardings["w2"] == f"S(1) {bounds}"
    assert split.shardings["s2"] == f"S(1) {bounds}"


def test_a_square_weight_under_a_residual_keeps_its_other_side_whole() -> None:
    text = """(float[3, 64] x) => (float[3, 64] y) {
        h = com.microsoft.MatMulNBits <K = 64, N = 64, bits = 4, block_size = 16> (x, w, s)
        y = Add(x, h)
    }"""
    model = small_model(text, w=codes(64, 4, 8), s=scales(64, 4))
    split = split_of(model, 2)
    assert split.report["split_fraction"] == 1.0
    assert difference(model, split) <= EXACT


def test_int32_sums_are_exact() -> None:
    text = """(uint8[3, 64] x) => (int32[3, 8] y) {
        y = MatMulInteger(x, w, zx, zw)
    }"""
    model = small_model(
        text,
        w=codes(64, 8, dtype=np.int8),
        zx=np.array(7, np.uint8),
        zw=codes(8, dtype=np.int8, high=9),
    )
    split = split_of(model, 16)
    assert split.report["collectives"] == {"AllReduce": 1}
    inputs = {"x": codes(3, 64)}
    np.testing.assert_array_equal(
        SplitRunner(split).run(inputs)["y"], run_whole(model, inputs)["y"]
    )


# --- whole models ---------------------------------------------------------------------------------

FAMILIES = ("llama-genai-int4", "llama-genai-int4-zp", "llama-genai-int4-qdq", "llama-genai-int8")


@cache
def reference(family: str, case: str) -> Arrays:
    """Outputs of the unsplit model."""
    return run_reference(family_path(family), family_inputs(family, case))


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_whole(family: str, ranks: int) -> None:
    split = split_model(family_path(family), Options(ranks))
    assert split.report["split_fraction"] >= 0.9
    runner = SplitRunner(split)
    for case in family_cases(family):
        got = runner.run(family_inputs(family, case))
        assert relative_difference(got, reference(family, case)) <= ROUNDED


def test_int4_llama_has_two_sums_per_layer_and_half_the_bytes() -> None:
    report = split_model(family_path("llama-genai-int4"), Options(2)).report
    assert report["collectives"] == {"AllGather": 2, "AllReduce": 4}
    assert max(report["weight_bytes_per_rank"]) <= 0.53 * report["weight_bytes_total"]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("family", ["llama-genai-int4-zp", "qwen2-genai-int4-zp"])
def test_with_exact_activations_nothing_is_rounded_twice(family: str, ranks: int) -> None:
    """What is left of a difference comes from accuracy_level, not from the split."""
    model = onnx.load(family_path(family))
    for node in model.graph.node:
        kept = [a for a in node.attribute if a.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend(kept)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    split = split_plan(planned(ir.from_proto(model), ranks), Options(ranks))
    for case in family_cases(family):
        inputs = family_inputs(family, case)
        names = [output.name for output in session.get_outputs()]
        whole = dict(zip(names, session.run(names, inputs)))
        assert relative_difference(SplitRunner(split).run(inputs), whole) <= EXACT
