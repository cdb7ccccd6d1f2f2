"""Every sharding rule is right and complete, on 2, 3, 4 and for attention 8 ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.tpcore.validator_cases import ATTENTION, CASES, floats
from tpcore.ops import OPS
from tpcore.trial import Case
from tpcore.validator import KNOWN_MISSING, Findings, validate

RANKS = (2, 3, 4)
OP_NAMES = sorted({f"{case.domain or 'ai.onnx'}:{case.op_type}" for case in CASES})

TOO_MANY = {
    *("GroupQueryAttention", "Attention", "MultiHeadAttention", "LinearAttention", "MoE", "QMoE"),
    *("SkipLayerNormalization", "SkipGroupNorm"),
}
TOO_MANY |= {"MatMulNBits", "GatherBlockQuantized", "QGemm", "QLinearConv", "QAttention"}
"""Ops with cases of too many operands to try every placement; their other cases are tried."""


@cache
def findings_of(index: int, ranks: int) -> Findings:
    """Findings for a row of the table, which several tests look at."""
    return validate(CASES[index], ranks)


def rows_of(op_name: str) -> list[int]:
    domain, op_type = op_name.split(":")
    domain = "" if domain == "ai.onnx" else domain
    return [i for i, c in enumerate(CASES) if (c.domain, c.op_type) == (domain, op_type)]


def test_every_op_has_a_case(record_property: Callable[[str, object], None]) -> None:
    have = {(case.domain, case.op_type) for case in CASES}
    assert set(OPS) - have == set()
    assert have - set(OPS) == set()
    runs = len(CASES) * len(RANKS) + len(ATTENTION)
    record_property("validator_runs", runs)
    print(f"{len(CASES)} cases of {len(have)} ops, {runs} with all numbers of ranks")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("op_name", OP_NAMES)
def test_rule(op_name: str, ranks: int) -> None:
    for row in rows_of(op_name):
        findings = findings_of(row, ranks)
        assert findings.is_clean, str(findings)
        assert not findings.not_tried or CASES[row].op_type in TOO_MANY, str(findings)


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_with_more_ranks_than_kv_heads(case: Case) -> None:
    findings = validate(case, 8)
    assert findings.is_clean, str(findings)


def test_every_reason_for_a_missing_strategy_is_needed() -> None:
    ops = {op for op, _, _ in KNOWN_MISSING}
    used = {
        (case.op_type, text.split(": ", 1)[1])
        for row, case in enumerate(CASES)
        if case.op_type in ops
        for ranks in RANKS
        for text in findings_of(row, ranks).excused
    }
    assert {(op, reason) for op, _, reason in KNOWN_MISSING} == used


def test_grouped_queries_are_split_with_more_ranks_than_kv_heads() -> None:
    """Four kv heads on eight ranks overlap, eight query heads do not."""
    case = next(c for c in ATTENTION if c.attributes.get("num_heads") == 8)
    text = validate(case, 8).strategies[1]
    query, key = text.split(", ")[:2]
    assert query == "S(2) 0:4 4:8 8:12 12:16 16:20 20:24 24:28 28:32"
    assert key == "S(2) 0:4 0:4 4:8 4:8 8:12 8:12 12:16 12:16"


def test_findings_are_a_text() -> None:
    findings = validate(Case("Relu", (floats(5, 6),)), 2)
    assert str(findings) == "Relu(float32[5, 6]) on 2 ranks: 3 strategies"
    assert findings.trials == 4


def test_findings_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPS, ("", "Relu"))
    findings = validate(Case("Relu", (floats(5, 6),)), 2)
    assert not findings.is_clean
    assert findings.missing == ("S(0) 0:3 3:5 -> S(0) 0:3 3:5", "S(1) 0:3 3:6 -> S(1) 0:3 3:6")


def test_one_rank_has_one_strategy() -> None:
    findings = validate(Case("Relu", (floats(5, 6),)), 1)
    assert findings == Findings(
        findings.case, 1, ("R -> R",), (), (), (), 0, "one rank holds everything"
    )
