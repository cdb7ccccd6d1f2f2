"""Experts dealt out to ranks: every rank routes by the whole router, and computes its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from graph.reader import read_model
from tests.families import family_cases, family_inputs, family_path
from tests.family_table import TABLE
from tests.graph.small import Array, run_whole, small_model, weight
from tests.models import run_reference
from tests.tpcore.cases_experts import experts
from tests.tpcore.lockstep import SplitRunner, relative_difference
from tests.tpcore.toys import planned
from tpcore.localizers import LocalNode
from tpcore.ops import OPS
from tpcore.partition import Options
from tpcore.plan import PLAN_VERSION, Plan
from tpcore.planner.plans import make_plan
from tpcore.shard import Split, split_plan
from tpcore.sharding import PARTIAL
from tpcore.validator import validate

EXACT = 1e-4
HALF = 4e-3
"""Of the output's scale, in float16."""
WIDTH, TOKENS = 8, 6
RANKS = (2, 3, 4)
FIVE = experts(6, count=5)


# --- a layer of experts ---------------------------------------------------------------------------


def layer(
    count: int = 4,
    inner: int = 8,
    width: int = WIDTH,
    *,
    batched: bool = False,
    **attributes: int,
) -> ir.Model:
    """A router and its experts; gate and up interleaved."""
    tokens = f"2, {TOKENS // 2}" if batched else f"{TOKENS}"
    given = " ".join(f", {name} = {number}" for name, number in attributes.items())
    text = f"""(float[{tokens}, {width}] x) => (float[{tokens}, {width}] y) {{
        flat = Reshape(x, rows)
        logits = MatMul(flat, router)
        y = com.microsoft.MoE <k = 2, activation_type = "swiglu", swiglu_fusion = 1{given}>
            (x, logits, fc1, b1, fc2, b2)
    }}"""
    return small_model(
        text,
        rows=np.array([-1, width], np.int64),
        router=weight(width, count),
        fc1=weight(count, 2 * inner, width),
        b1=weight(count, 2 * inner),
        fc2=weight(count, width, inner),
        b2=weight(count, width),
    )


def quantised_layer(count: int = 4, inner: int = 32) -> ir.Model:
    """Experts of four bits in blocks of 16."""
    random = np.random.default_rng(5)

    def codes(*shape: int) -> Array:
        return random.integers(0, 256, shape, np.uint8)

    text = f"""(float[{TOKENS}, 32] x) => (float[{TOKENS}, 32] y) {{
        logits = MatMul(x, router)
        y = com.microsoft.QMoE <k = 2, activation_type = "silu", block_size = 16>
            (x, logits, fc1, s1, , fc2, s2)
    }}"""
    return small_model(
        text,
        router=weight(32, count),
        fc1=codes(count, inner, 16),
        s1=np.abs(weight(count, inner, 2)) / 8,
        fc2=codes(count, 32, inner // 2),
        s2=np.abs(weight(count, 32, inner // 16)) / 8,
    )


def parts_of(count: int, ranks: int) -> str:
    """Text of an even split of the experts."""
    bounds = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(count), ranks))])
    return "S(0) " + " ".join(f"{a}:{b}" for a, b in pairwise(bounds))


def by_expert(
    model: ir.Model, ranks: int, folder: Path, count: int, names: Sequence[str] = ("fc1", "fc2")
) -> Plan:
    """The plan for a model, its experts pinned to be dealt out."""
    pins = {name: parts_of(count, ranks) for name in names}
    path = folder / "plan.json"
    path.write_text(json.dumps({"version": PLAN_VERSION, "mesh": {"tp": ranks}, "values": pins}))
    canonical, shapes = canonicalize(model.clone())
    return make_plan(canonical, shapes, ranks, preset=str(path))


def held_by(model: ir.Model, ranks: int) -> Mapping[str, str]:
    """How the weights of the cheapest plan are split."""
    return split_plan(planned(model, ranks), Options(ranks)).shardings


def difference(model: ir.Model, split: Split) -> float:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    inputs = {"x": weight(*shape.numpy(), seed=3)}
    return relative_difference(SplitRunner(split).run(inputs), run_whole(model, inputs))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("count", [4, 5])
@pytest.mark.parametrize("normalize", [0, 1])
def test_pinned_experts(count: int, normalize: int, ranks: int, tmp_path: Path) -> None:
    model = layer(count, normalize_routing_weights=normalize)
    split = split_plan(by_expert(model, ranks, tmp_path, count), Options(ranks))
    for name in ("fc1", "b1", "fc2", "b2"):
        assert split.shardings[name] == parts_of(count, ranks)
    assert "logits" not in split.shardings
    assert split.report["collectives"] == {"AllReduce": 1}
    assert difference(model, split) <= EXACT


@pytest.mark.parametrize("ranks", RANKS)
def test_pinned_experts_of_a_batch(ranks: int, tmp_path: Path) -> None:
    model = layer(batched=True)
    split = split_plan(by_expert(model, ranks, tmp_path, 4), Options(ranks))
    assert difference(model, split) <= EXACT


@pytest.mark.parametrize("ranks", RANKS)
def test_pinned_quantised_experts(ranks: int, tmp_path: Path) -> None:
    model = quantised_layer(5)
    split = split_plan(by_expert(model, ranks, tmp_path, 5), Options(ranks))
    assert split.shardings["s2"] == parts_of(5, ranks)
    assert difference(model, split) <= EXACT


# --- which split is cheaper -----------------------------------------------------------------------


def test_an_equal_share_of_every_expert_is_cheaper() -> None:
    """Experts dealt out are chosen as it happens, and the rank with the most is waited for."""
    assert held_by(layer(4, 64, 64), 4)["fc1"] == "S(1) 0:32 32:64 64:96 96:128"


def test_experts_are_dealt_out_where_their_blocks_are_too_few() -> None:
    model = quantised_layer(4, inner=32)  # two blocks
    assert held_by(model, 2)["fc2"] == "S(2) 0:8 8:16"
    split = split_plan(planned(model, 4), Options(4))
    assert split.shardings["fc2"] == parts_of(4, 4)
    assert difference(model, split) <= EXACT


def test_experts_are_dealt_out_where_their_features_do_not_divide() -> None:
    model = layer(8, 5)
    assert held_by(model, 4)["fc1"] == parts_of(8, 4)


def test_with_fewer_experts_than_ranks_every_expert_is_cut() -> None:
    assert held_by(layer(2, 8), 4)["fc1"] == "S(1) 0:4 4:8 8:12 12:16"


# --- what makes it exact --------------------------------------------------------------------------


def test_experts_that_route_among_themselves_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op picks some of the experts it is given for every token, and weighs these alone."""
    spec = OPS["com.microsoft", "MoE"]

    def local_columns(node: LocalNode) -> None:
        """Cut the router's columns, nothing more."""
        held = node.held(node.source.inputs[2]).split_of(0)
        if held is None or held.layout is None:
            return
        mine = held.layout.indices(node.rank)
        operands = [node.node.inputs[1], node.constant(mine, "mine")]
        columns = node.emit("Gather", operands, "columns", attributes={"axis": 1})
        node.node.replace_input_with(1, columns)
        node.node.attributes["k"] = ir.AttrInt64("k", min(2, len(mine)))

    monkeypatch.setitem(OPS, ("com.microsoft", "MoE"), replace(spec, localize=local_columns))
    wrong = [text for text in validate(FIVE, 2).wrong if "S(0) 0:3 3:5 -> P(sum)" in text]
    assert len(wrong) == 1 and "off by" in wrong[0]


@pytest.mark.parametrize(("sparse", "names"), [(0, {"split 5", "split 8"}), (1, {"split 8"})])
def test_sparse_mixer_experts_stay_together(sparse: int, names: set[str]) -> None:
    """Only ways to split inside an expert are left, here of five with eight features each."""
    plan = planned(layer(5, use_sparse_mixer=sparse), 2)
    (node,) = (node for node in plan.model.graph if node.op_type == "MoE")
    found = {s.name for s in plan.space.strategies(node) if s.results[0] == PARTIAL}
    assert found == names


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_rank_no_token_chose_adds_nothing(dtype: type, tmp_path: Path) -> None:
    """Even if what its experts make of the tokens is infinite."""
    router = np.zeros((WIDTH, 4), np.float32)
    router[:, 2:] = 1
    model = layer(4, 8)
    model.graph.initializers["router"].const_value = ir.tensor(router, name="router")
    scale = np.finfo(dtype).max / 4
    huge = weight(4, 16, WIDTH)
    huge[:2] *= scale
    model.graph.initializers["fc1"].const_value = ir.tensor(huge, name="fc1")
    if dtype is np.float16:
        make_half(model)
    split = split_plan(by_expert(model, 2, tmp_path, 4), Options(2))
    x: Array = np.abs(weight(TOKENS, WIDTH)).astype(dtype)
    whole = run_whole(model, {"x": x})["y"]
    assert np.isfinite(whole).all()
    got = SplitRunner(split).run({"x": x})["y"]
    np.testing.assert_allclose(got, whole, rtol=0, atol=HALF * np.abs(whole).max())


def make_half(model: ir.Model) -> None:
    """Turn a model into float16."""
    graph = model.graph
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        if value.dtype != ir.DataType.FLOAT:
            continue
        value.dtype = ir.DataType.FLOAT16
        if value.const_value is not None:
            with np.errstate(over="ignore"):
                array = value.const_value.numpy().astype(np.float16)
            value.const_value = ir.tensor(np.clip(array, -6e4, 6e4), name=value.name)


@pytest.mark.parametrize("ranks", RANKS)
def test_experts_in_float16(ranks: int, tmp_path: Path) -> None:
    model = layer(5)
    make_half(model)
    split = split_plan(by_expert(model, ranks, tmp_path, 5), Options(ranks))
    x = weight(TOKENS, WIDTH, seed=4).astype(np.float16)
    whole = run_whole(model, {"x": x})["y"].astype(np.float32)
    got = SplitRunner(split).run({"x": x})["y"].astype(np.float32)
    np.testing.assert_allclose(got, whole, rtol=0, atol=HALF * np.abs(whole).max())


# --- whole models ---------------------------------------------------------------------------------

FAMILIES = ("gpt-oss-genai-fp32", "lfm2-moe-genai-fp32", "lfm2-moe-genai-int4")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_their_experts_dealt_out(family: str, ranks: int, tmp_path: Path) -> None:
    """Four experts in each of two layers."""
    model = read_model(family_path(family))
    second = {"MoE": 4, "QMoE": 5}
    names = [
        value.name or ""
        for node in model.graph
        if node.op_type in second
        for value in (node.inputs[2], node.inputs[second[node.op_type]])
        if value is not None
    ]
    assert len(names) == 4
    split = split_plan(by_expert(model, ranks, tmp_path, 4, names), Options(ranks))
    runner, tolerance = SplitRunner(split), TABLE[family].tolerance or EXACT
    for case in family_cases(family):
        inputs = family_inputs(family, case)
        whole = run_reference(family_path(family), inputs)
        assert relative_difference(runner.run(inputs), whole) <= tolerance
