"""Quantised models: exact blocks, int32 sums, and the meaning of each op against onnxruntime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph.interpret import interpret
from graph.packing import bytes_of_codes, pack, unpack
from graph.weights import CodesTensor
from tests.families import family_cases, family_inputs, family_path
from tests.graph.small import Array, Arrays, run_whole, small_model, weight
from tests.models import run_reference
from tests.tpcore.cases_quant import QUANT, codes, scales
from tests.tpcore.lockstep import SplitRunner, relative_difference
from tests.tpcore.toys import planned
from tpcore.commands import verification_text
from tpcore.partition import Options
from tpcore.shard import Split, shard, split_model, split_plan
from tpcore.trial import Case, build_model
from tpcore.verify import AS_WRITTEN, verify, verify_ranks

EXACT = 1e-4
WRITTEN_EXACT = 5e-6
"""Of the output's scale, where nothing is rounded to codes but what the model says."""
ROUNDED = 1e-3
"""Of the output's scale, where activations are rounded by block."""
BYTES = (ir.DataType.UINT8, ir.DataType.INT8)
OPSET = 22
"""The newest that onnxruntime has kernels for on all integer types used here."""


# --- meaning --------------------------------------------------------------------------------------


def in_onnxruntime(case: Case) -> tuple[Arrays, Arrays]:
    """Results of our definition and of onnxruntime."""
    model = build_model(case)
    feeds = {
        f"x{i}": array
        for i, array in enumerate(case.operands)
        if array is not None and i not in case.constants
    }
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


def n_bits_mlp(zero_points: bool = False, blocks: int = 8, bits: int = 4) -> ir.Model:
    """Two layers of MatMulNBits, 64 -> 16 · blocks -> 64, in blocks of 16."""
    operands = ["", ", z1"], ["", ", z2"]
    up, down = (pair[zero_points] for pair in operands)
    size = 16 * blocks
    op = f"com.microsoft.MatMulNBits <bits = {bits}, block_size = 16"
    text = f"""(float[3, 64] x) => (float[3, 64] y) {{
        h = {op}, K = 64, N = {size}> (x, w1, s1{up})
        a = Sigmoid(h)
        y = {op}, K = {size}, N = 64> (a, w2, s2{down})
    }}"""
    per_row = [bytes_of_codes(count, bits) for count in (4, blocks)]
    weights: dict[str, Array] = {
        **{"w1": codes(size, 4, 2 * bits), "s1": scales(size, 4)},
        **{"w2": codes(64, blocks, 2 * bits), "s2": scales(64, blocks)},
        **({"z1": codes(size, per_row[0]), "z2": codes(64, per_row[1])} if zero_points else {}),
    }
    return small_model(text, **weights)


def split_of(model: ir.Model, ranks: int) -> Split:
    """The split of the plan for a model."""
    return split_plan(planned(model, ranks), Options(ranks))


def difference(model: ir.Model, split: Split) -> float:
    inputs = {"x": weight(3, 64)}
    return relative_difference(SplitRunner(split).run(inputs), run_whole(model, inputs))


@pytest.mark.parametrize(
    ("ranks", "blocks", "bounds"),
    [
        (2, 8, "0:4 4:8"),
        (3, 8, "0:3 3:6 6:8"),
        (4, 8, "0:2 2:4 4:6 6:8"),
        (2, 13, "0:7 7:13"),
        (3, 3, "0:1 1:2 2:3"),
        (4, 7, "0:2 2:4 4:6 6:7"),
    ],
)
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_are_split_whole(
    ranks: int, blocks: int, bounds: str, zero_points: bool, bits: int
) -> None:
    """Also where two ranks have zero points of one byte."""
    model = n_bits_mlp(zero_points, blocks, bits)
    split = split_of(model, ranks)
    assert split.report["collectives"] == {"AllReduce": 1}
    assert split.report["split_fraction"] == 1.0
    assert difference(model, split) <= EXACT
    for name in ("w2", "s2", *(["z2"] if zero_points else [])):
        assert split.shardings[name] == f"S(1) {bounds}"


def test_a_ranks_zero_points_are_packed_again(tmp_path: Path) -> None:
    """Seven blocks of thirteen are four bytes a row, six are three."""
    model = n_bits_mlp(zero_points=True, blocks=13)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    bundle = shard(path, tmp_path / "bundle", Options(2))
    codes_of = unpack(model.graph.initializers["z2"].const_value.numpy(), 4)  # type: ignore[union-attr]
    for rank, held in enumerate((codes_of[:, :7], codes_of[:, 7:13])):
        part = bundle.load_rank(rank).graph.initializers["z2"].const_value
        assert part is not None and part.dtype == ir.DataType.UINT8
        np.testing.assert_array_equal(part.numpy(), pack(held, 4))
    report = bundle.manifest["report"]
    rows = {"w1": 4 * 8, "s1": 4 * 4, "z1": 2, "w2": 8, "s2": 4}  # bytes per column or block
    of_block = 16 * (rows["w1"] + rows["s1"] + rows["z1"]) + 64 * (rows["w2"] + rows["s2"])
    assert report["weight_bytes_per_rank"] == [7 * of_block + 64 * 4, 6 * of_block + 64 * 3]
    assert report["weight_bytes_total"] == 13 * of_block + 64 * 7
    result = verify(bundle, path)
    assert result.equal and result.setting == AS_WRITTEN
    assert "compared: every op as written" in verification_text(result)
    assert result.to_json()["max_rel_diff_as_run"] == result.as_run


def test_bytes_cut_where_codes_should_be_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of packing again: a byte for each block."""
    model = n_bits_mlp(zero_points=True, blocks=13)
    monkeypatch.setattr(CodesTensor, "codes_of", lambda self, packed: np.repeat(packed, 2, -1))
    assert difference(model, split_of(model, 2)) > 1e-2


# --- heads and blocks -----------------------------------------------------------------------------


def heads_then_blocks(heads: int, kv_heads: int, block: int, size: int = 64) -> ir.Model:
    """Attention whose output is multiplied by blocks of `block`, with odd zero points."""
    query, kv = heads * size, kv_heads * size
    blocks = query // block
    cache = f"float[1, {kv_heads}, 2, {size}]"
    attributes = f"num_heads = {heads}, kv_num_heads = {kv_heads}"
    text = f"""(float[1, 3, 32] x, {cache} pk, {cache} pv, int32[1] last, int32 total)
        => (float[1, 3, 64] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        a, nk, nv = com.microsoft.GroupQueryAttention <{attributes}> (q, k, v, pk, pv, last, total)
        y = com.microsoft.MatMulNBits <K = {query}, N = 64, bits = 4, block_size = {block}>
            (a, wo, so, zo)
    }}"""
    return small_model(
        text,
        wq=weight(32, query) / 4, wk=weight(32, kv) / 4, wv=weight(32, kv, seed=1) / 4,
        wo=codes(64, blocks, block // 2), so=scales(64, blocks),
        zo=codes(64, bytes_of_codes(blocks, 4)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "kv_heads", "block", "ranks", "bounds"),
    [
        (14, 7, 128, 2, "0:4 4:7"),
        (14, 7, 128, 3, "0:3 3:5 5:7"),
        (14, 14, 128, 3, "0:3 3:5 5:7"),
        (14, 7, 128, 4, "0:2 2:4 4:6 6:7"),
        (14, 2, 32, 2, "0:14 14:28"),
        (14, 2, 32, 4, "0:8 8:14 14:22 22:28"),
        (28, 4, 128, 2, "0:7 7:14"),
        (12, 4, 128, 2, "0:3 3:6"),
        (16, 4, 128, 4, "0:2 2:4 4:6 6:8"),
    ],
)
def test_heads_go_by_whole_blocks(
    heads: int, kv_heads: int, block: int, ranks: int, bounds: str
) -> None:
    """Blocks of two heads each, and blocks that heads share where groups of both end together."""
    model = heads_then_blocks(heads, kv_heads, block)
    split = split_of(model, ranks)
    found = split.report["collectives"]
    assert found["AllReduce"] == 1 and "AllGather" not in found
    assert split.shardings["wo"] == split.shardings["zo"] == f"S(1) {bounds}"
    inputs = {
        **{"x": weight(1, 3, 32), "pk": weight(1, kv_heads, 2, 64)},
        **{"pv": weight(1, kv_heads, 2, 64, seed=1)},
        **{"last": np.array([4], np.int32), "total": np.array(5, np.int32)},
    }
    got, want = SplitRunner(split).run(inputs), run_whole(model, inputs)
    assert relative_difference(got, want) <= EXACT * max(1.0, float(np.abs(want["y"]).max()))


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
WRITTEN = (*FAMILIES, "qwen2-genai-int4-zp", "bert-dynamic-int8", "bert-qdq", "resnet-qlinear")


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


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("family", WRITTEN)
def test_what_is_left_of_a_difference_is_rounding(family: str, ranks: int) -> None:
    """With every op as written the split is as exact as one without quantised ops."""
    path = family_path(family)
    split = split_model(path, Options(ranks))
    for case in family_cases(family):
        found = verify_ranks(split.ranks, split.shardings, path, family_inputs(family, case))
        assert found.setting == AS_WRITTEN and found.as_run is not None
        assert found.equal and all(one.tolerance <= EXACT for one in found.outputs)
        assert max(one.max_rel_diff for one in found.outputs) <= WRITTEN_EXACT


@pytest.mark.parametrize("family", ["llama-genai-int4-zp", "bert-qdq", "bert-dynamic-int8"])
def test_a_wrong_code_is_noticed_whatever_is_rounded(family: str) -> None:
    """The negative control: one row of one rank's largest quantised weight is another."""
    path = family_path(family)
    split = split_model(path, Options(2))
    weights = [v for v in split.ranks[1].graph.initializers.values() if v.dtype in BYTES]
    wrong = max(weights, key=lambda v: v.const_value.size if v.const_value is not None else 0)
    contents = wrong.const_value.numpy().copy()  # type: ignore[union-attr]
    contents[0] ^= 0x7F
    wrong.const_value = ir.tensor(contents, name=wrong.name)
    found = verify_ranks(split.ranks, split.shardings, path, family_inputs(family))
    assert not found.equal and found.setting == AS_WRITTEN
