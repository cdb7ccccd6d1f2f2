"""ONNX's own node tests on their way from file to rank graphs, as `make node-tests` has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import node_tests
from bench.node_cases import node_cases, with_weights
from bench.node_tests import results_of

EVERY = 12
"""One of so many tests is run here."""
MAY_NOT_RUN = ("ImageDecoder",)
"""Ops for which neither ONNX Runtime nor ONNX's reference has a kernel in every installation."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of tests about NaN and infinity
def test_a_part_of_the_node_tests() -> None:
    cases, others = node_cases()
    names = list(cases)[::EVERY]
    results = [result for name in names for result in results_of(name, [2])]
    assert [str(r) for r in results if r.state == "failed"] == []
    split = {r.name for r in results if r.state == "equal" and r.split}
    assert len(split) > len(names) / 2, node_tests.summary(results, 2)
    not_run = {r.name for r in results if r.state == "does not run unsplit"}
    assert all(cases[name].ops & {*MAY_NOT_RUN} for name in not_run)
    assert set(others) <= {"too new", "not dense"}


@pytest.mark.parametrize(
    "name",
    [
        "castlike_FLOAT8E5M2_to_FLOAT_expanded",  # Slice takes no float8
        "castlike_FLOAT_to_INT4_expanded",  # two elements a byte
        "castlike_FLOAT16_to_FLOAT",  # a weight without entries
        "rotary_embedding_expanded",  # Split into sizes made of shapes
        "affine_grid_2d_expanded",  # Range of vectors
        "tensorscatter_3d",  # a partial cache
    ],
)
def test_what_once_failed(name: str) -> None:
    failed = [str(r) for r in results_of(f"test_{name}", [2, 3]) if r.state != "equal"]
    assert failed == []


def test_operands_that_become_weights() -> None:
    cases, _ = node_cases()
    where, gather = cases["test_where_example"], cases["test_gather_0"]
    assert set(with_weights(where, 2).inputs) == {"condition"}
    assert set(with_weights(gather, 2).inputs) == {"indices"}
    assert with_weights(where, 3) is where  # no operand has three entries each way
    assert with_weights(cases["test_relu"], 2) is cases["test_relu"]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    argv = ["node_tests", "--match", "test_bernoulli_seed", "--ranks", "2", "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", argv)
    assert node_tests.main() == 0
    *_, figures = capsys.readouterr().out.splitlines()
    assert figures.startswith("2 ranks: 2 tests in ") and " 0 failed" in figures
    assert len(rows.read_text().splitlines()) == 2 * (1 + node_tests.SEEDS)
    monkeypatch.setattr(sys, "argv", ["node_tests", "--match", "no such test"])
    assert node_tests.main() == 1
