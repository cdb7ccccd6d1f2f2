"""Splits that are wrong on purpose: the checks must find each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import tpcore.localize
from graph.layout import Box, Layout, Range
from graph.weights import ShardTensor
from tests.tpcore.toys import error_of, mlp, packed_attention, planned, random_inputs
from tests.tpcore.validator_cases import const, floats, grouped
from tpcore import sharding
from tpcore.ops import OPS
from tpcore.partition import Options
from tpcore.plan import Plan
from tpcore.rule import RuleSyntaxError, parse
from tpcore.rules.spec import OpSpec, fixed
from tpcore.shard import split_plan
from tpcore.sharding import PARTIAL, REPLICATE
from tpcore.strategies import Strategy
from tpcore.trial import Case
from tpcore.validator import Findings, validate
from tpcore.verify import Verification, verify_ranks

TOLERANCE = 1e-4
CLEARLY_WRONG = 0.05
"""Of the largest value: what a check must see here is no rounding."""


@pytest.fixture
def patch_op(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, OpSpec], None]:
    """Give an op another spec for one test."""

    def patch(op_type: str, spec: OpSpec) -> None:
        monkeypatch.setitem(OPS, ("", op_type), spec)

    return patch


def the_wrong(findings: Findings) -> str:
    """The only wrong strategy of the findings."""
    assert len(findings.wrong) == 1, str(findings)
    return findings.wrong[0]


def verification(model: ir.Model, plan: Plan, folder: Path) -> Verification:
    """Verify the split of a plan against the whole model, as `tpcore verify` does."""
    path = folder / "model.onnx"
    onnx.save(ir.to_proto(model), path)
    split = split_plan(plan, Options(plan.mesh.size))
    return verify_ranks(split.ranks, split.shardings, path, random_inputs(model))


# --- (a) naive halves of a packed dim -------------------------------------------------------------


@pytest.fixture
def naive_halves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Split a packed dim into contiguous stretches, as if it were not packed."""
    derived = sharding._item_ranges

    def contiguous(
        item: int | tuple[sharding.Form, ...], layouts: Sequence[Layout], rank: int
    ) -> list[Range]:
        size = sharding._size((item,), [layout.global_size for layout in layouts])
        if not isinstance(item, tuple) or derived(item, layouts, rank) == [(0, size)]:
            return derived(item, layouts, rank)
        return list(Layout.even(size, layouts[0].ranks).ranges[rank])

    monkeypatch.setattr(sharding, "_item_ranges", contiguous)
    sharding._split_form.cache_clear()
    yield
    sharding._split_form.cache_clear()


@pytest.mark.parametrize("ranks", [2, 4])
def test_naive_halves_of_a_packed_weight(ranks: int, naive_halves: None, tmp_path: Path) -> None:
    """GPT-2: rank 0 would get all of q and half of k."""
    model = packed_attention()
    plan = planned(model, ranks)
    found = verification(model, plan, tmp_path)
    assert not found.equal
    assert found.outputs[0].max_rel_diff > CLEARLY_WRONG
    assert found.first_divergence is not None
    assert found.first_divergence["value"] == "q"
    assert found.first_divergence["op"] == "Split"


def test_derived_parts_of_a_packed_weight(tmp_path: Path) -> None:
    model = packed_attention()
    found = verification(model, planned(model, 2), tmp_path)
    assert found.equal and found.first_divergence is None
    assert found.outputs[0].max_rel_diff < TOLERANCE


def test_naive_halves_of_a_split_operand(naive_halves: None) -> None:
    case = Case("Split", (floats(5, 12), const(4, 4, 4)), {"axis": 1}, outputs=3, constants=(1,))
    wrong = validate(case, 2).wrong
    assert len(wrong) == 3  # one for each of q, k and v
    assert wrong[0].startswith("S(1) 0:6 6:12, R -> S(1) 0:2 2:4, R, R: 'y0' on rank 1 is off by")


@pytest.mark.parametrize("ranks", [2, 4])
def test_naive_halves_of_packed_grouped_query_attention(ranks: int, naive_halves: None) -> None:
    message = the_wrong(validate(grouped(8, 4, packed=True), ranks))
    layout = Layout.even(64, ranks)
    assert message.startswith(f"S(2) {layout}, -, -, ")
    assert "'y0' on rank 0 is off by" in message


# --- (b) a bias added on every rank ---------------------------------------------------------------


def test_bias_that_is_whole_beside_a_partial_sum(
    patch_op: Callable[[str, OpSpec], None],
) -> None:
    patch_op("Add", OpSpec(OPS["", "Add"].rule, linear=((0,),)))
    message = the_wrong(validate(Case("Add", (floats(5, 6), floats(6))), 2))
    assert message.startswith("P(sum), R -> P(sum): sum of 'y0' is off by")


def test_convolution_bias_that_is_whole(patch_op: Callable[[str, OpSpec], None]) -> None:
    conv = OPS["", "Conv"]
    patch_op("Conv", OpSpec(conv.rule, attributes=conv.attributes))
    case = Case("Conv", (floats(2, 4, 5), floats(3, 4, 3), floats(3)))
    message = the_wrong(validate(case, 2))
    assert message.startswith("S(1) 0:2 2:4, S(1) 0:2 2:4, R -> P(sum): sum of 'y0' is off by")


def add_the_bias_before_the_sum(plan: Plan) -> Plan:
    """Make the second Add of the MLP work on the partial sums of the MatMul before it."""
    nodes = {node.outputs[0].name: node for node in plan.model.graph}
    add = nodes["y"]
    plan.choices.strategy[add] = Strategy("partial", (PARTIAL, PARTIAL), (PARTIAL,))
    for value in add.inputs:
        assert value is not None
        plan.choices.hub[value] = PARTIAL
    return plan


def test_bias_added_on_every_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def whole_everywhere(source: ir.TensorProtocol, box: Box, *, zero: bool) -> ShardTensor:
        return ShardTensor(source, box)

    model = mlp()
    plan = add_the_bias_before_the_sum(planned(model, 2))
    monkeypatch.setattr(tpcore.localize, "ShardTensor", whole_everywhere)
    found = verification(model, plan, tmp_path)
    assert not found.equal
    bias = model.graph.initializers["b2"].const_value
    assert bias is not None
    largest = float(np.abs(bias.numpy()).max())
    assert found.outputs[0].max_abs_diff == pytest.approx(largest, rel=1e-4)


def test_bias_added_on_one_rank(tmp_path: Path) -> None:
    model = mlp()
    assert verification(model, add_the_bias_before_the_sum(planned(model, 2)), tmp_path).equal


# --- (c) a rule with a wrong factor ---------------------------------------------------------------


def test_contraction_that_is_not_marked() -> None:
    with pytest.raises(RuleSyntaxError, match=r"factor 'k' occurs in no result. Mark it \+ or !"):
        parse("m k, k n -> m n")


def findings_of_rule(rule: str, case: Case, ranks: int = 2) -> Findings:
    """Findings for a case under another rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPS, (case.domain, case.op_type), OpSpec(fixed(rule)))
        return validate(case, ranks)


SQUARE = Case("MatMul", (floats(6, 6), floats(6, 6)))
MEAN = Case("ReduceMean", (floats(5, 6), const(1)), constants=(1,))
LARGEST = Case("ReduceMax", (floats(5, 6), const(1)), constants=(1,))


@pytest.mark.parametrize(
    ("rule", "case", "message"),
    [
        ("m k+, n k -> m n", SQUARE, "cannot be interpreted"),
        ("m n, k! n -> m n", SQUARE, "cannot be interpreted"),
        ("m n, * -> m n", SQUARE, "cannot be interpreted"),
        ("d0 d1 -> d0 d1", Case("Softmax", (floats(5, 6),)), "off by"),
        ("d0 d1, * -> d0 d1", Case("LayerNormalization", (floats(5, 6), floats(6))), "cannot be"),
        ("d0 d1+, * -> d0 1", MEAN, "off by"),
        ("d0 d1+, * -> d0 1", LARGEST, "off by"),
        ("a b -> b a", Case("Relu", (floats(6, 6),)), "should have"),
    ],
)
def test_rule_with_a_wrong_factor(rule: str, case: Case, message: str) -> None:
    findings = findings_of_rule(rule, case)
    assert findings.wrong, str(findings)
    assert any(message in text for text in findings.wrong), str(findings)


def test_rule_that_splits_less_than_it_could() -> None:
    findings = findings_of_rule("m! k!, k n -> m n", Case("MatMul", (floats(5, 6), floats(6, 8))))
    assert not findings.wrong
    assert "S(0) 0:3 3:5, R -> S(0) 0:3 3:5" in findings.missing
    assert "S(1) 0:3 3:6, S(0) 0:3 3:6 -> P(sum)" in findings.missing


def test_head_count_that_is_not_made_local() -> None:
    case = grouped(8, 4, packed=False)
    spec = OPS["com.microsoft", "GroupQueryAttention"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPS, ("com.microsoft", "GroupQueryAttention"), OpSpec(spec.rule))
        assert any("S(2)" in text for text in validate(case, 2).wrong)


# --- (d) a partial sum through an op that is not linear -------------------------------------------


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Abs", "Exp"])
def test_partial_sum_through_a_nonlinear_op(
    op_type: str, patch_op: Callable[[str, OpSpec], None]
) -> None:
    patch_op(op_type, OpSpec(OPS["", op_type].rule, linear=((0,),)))
    message = the_wrong(validate(Case(op_type, (floats(5, 6),)), 2))
    assert message.startswith("P(sum) -> P(sum): sum of 'y0' is off by")


@pytest.mark.parametrize("op_type", ["Mul", "Max", "Pow"])
def test_product_of_two_partial_sums(op_type: str, patch_op: Callable[[str, OpSpec], None]) -> None:
    patch_op(op_type, OpSpec(OPS["", op_type].rule, linear=((0, 1),)))
    case = Case(op_type, (np.abs(floats(5, 6)), np.full(6, 2, np.float32)))
    assert any(text.startswith("P(sum), P(sum) -> P(sum)") for text in validate(case, 2).wrong)


def test_partial_sum_through_relu_in_a_model(tmp_path: Path) -> None:
    """The first layer is split on its contraction, and its sum is left to after the Relu."""
    model = mlp(hidden=12, width=8)
    plan = planned(model, 2)
    nodes = {node.outputs[0].name: node for node in plan.model.graph}
    values = {value.name: value for value in plan.choices.hub}
    by_rows = next(s for s in plan.space.strategies(nodes["h"]) if s.results == (PARTIAL,))
    plan.choices.strategy[nodes["h"]] = by_rows
    plan.choices.hub[values["w1"]] = by_rows.operands[1]
    plan.choices.strategy[nodes["hb"]] = Strategy("partial", (PARTIAL, PARTIAL), (PARTIAL,))
    plan.choices.strategy[nodes["a"]] = Strategy("partial", (PARTIAL,), (PARTIAL,))
    for name in ("h", "b1", "hb", "a"):
        plan.choices.hub[values[name]] = PARTIAL
    plan.choices.strategy[nodes["p"]] = Strategy("whole", (REPLICATE, REPLICATE), (REPLICATE,))
    plan.choices.hub[values["w2"]] = REPLICATE
    found = verification(model, plan, tmp_path)
    assert not found.equal
    assert found.outputs[0].max_rel_diff > CLEARLY_WRONG
    assert found.first_divergence is not None and found.first_divergence["value"] == "a"


def test_the_same_model_as_it_is_planned() -> None:
    model = mlp(hidden=12, width=8)
    assert error_of(model, planned(model, 2)) < TOLERANCE
