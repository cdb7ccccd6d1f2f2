"""The table of ops is complete, and says how many validator cases prove each rule.

python -m tests.tpcore.test_ops_table    write the counts after adding cases
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from pathlib import Path

import onnx
import pytest

from tests.tpcore.validator_cases import CASES
from tpcore.cli import main
from tpcore.ops import OPS
from tpcore.ops_table import ops_table, summary
from tpcore.rules import proven
from tpcore.rules.whole import REWRITTEN_OPS, WHOLE_OPS

LAST_OPSET = 26


def counts() -> dict[str, int]:
    """Validator cases by op, as `ai.onnx:Add`."""
    found = Counter(f"{case.domain or 'ai.onnx'}:{case.op_type}" for case in CASES)
    return dict(sorted(found.items()))


def test_the_table_says_how_many_cases_prove_a_rule() -> None:
    assert counts() == proven.PROVEN, "run python -m tests.tpcore.test_ops_table"


def test_every_op_of_onnx_is_in_the_table() -> None:
    known = {op for domain, op in {*OPS, *WHOLE_OPS, *REWRITTEN_OPS} if domain == ""}
    schemas = onnx.defs.get_all_schemas_with_history()
    ops = {s.name for s in schemas if s.domain == "" and s.since_version <= LAST_OPSET}
    assert ops - known == set()


def test_every_microsoft_op_is_in_the_table() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    known = {op for domain, op in {*OPS, *WHOLE_OPS} if domain == "com.microsoft"}
    ops = {s.name for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
    assert known - ops == set()


def test_no_op_has_a_rule_and_a_reason_for_none() -> None:
    assert not set(OPS) & {*WHOLE_OPS, *REWRITTEN_OPS}


def test_enough_ops_have_a_rule() -> None:
    found = summary(ops_table())
    assert found["ai.onnx"]["rule"] >= 150
    assert found["com.microsoft"]["rule"] >= 30


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_op = {(row["domain"], row["op"]): row for row in found["ops"]}
    assert by_op["ai.onnx", "MatMul"]["rule"] == "b m k+, b k n -> b m n"
    assert by_op["ai.onnx", "NonZero"]["kind"] == "whole"
    assert by_op["ai.onnx", "Gemm"]["reason"].startswith("it becomes MatMul")
    assert found["summary"]["validator_cases"] == len(CASES)
    assert main(["ops"]) == 0
    assert "b m k+, b k n -> b m n" in capsys.readouterr().out


def write_counts() -> None:
    """Write the counts into the module that the table reads."""
    lines = textwrap.wrap(" ".join(f"{op}={n}" for op, n in counts().items()), 96)
    text = "\n".join(lines)
    Path(proven.__file__).write_text(
        '"""Validator cases by op, written by python -m tests.tpcore.test_ops_table."""\n\n'
        f'COUNTS = """\n{text}\n"""\n'
        'PROVEN = {op: int(n) for op, _, n in (item.partition("=") for item in COUNTS.split())}\n'
    )


if __name__ == "__main__":
    write_counts()
