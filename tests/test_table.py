"""The table of models × ranks, as its one command prints it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from bench import rows as rows_of
from bench import table
from tests.tpcore.command import python_path
from tpcore.compare import compare
from tpcore.verify import run_ranks

MODEL = "mlp-opset18-dynamic"


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setattr(sys, "argv", ["table", *argv])
    monkeypatch.setattr(table, "RANKS", {"simulate": (1, 2, 3), "cpu": (2,)})
    return table.main()


def test_both_backends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--models", MODEL) == 0
    header, *lines, summary = capsys.readouterr().out.splitlines()
    assert header == rows_of.HEADER and summary == "4 rows, 4 equal, 0 wrong"
    rows = [line.split() for line in lines]
    assert [row[:4] for row in rows] == [
        [MODEL, "simulate", "1", "yes"],
        [MODEL, "simulate", "2", "yes"],
        [MODEL, "simulate", "3", "yes"],
        [MODEL, "cpu", "2", "yes"],
    ]
    for row in rows:
        assert float(row[4]) < 1e-4 and float(row[5]) < 1e-4
        assert float(row[6]) > 0.95 or row[2] == "1"
    assert rows[1][4:] == rows[3][4:]


def test_a_wrong_row_is_shown_and_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(*args: Any) -> dict[str, np.ndarray]:
        return {name: array + 1 for name, array in run_ranks(*args).items()}

    monkeypatch.setattr(rows_of, "run_ranks", off)
    assert run(monkeypatch, "--models", MODEL, "--backend", "simulate") == 1
    out = capsys.readouterr().out
    assert " NO " in out and "3 rows, 0 equal, 3 wrong" in out


def test_no_model_of_that_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--models", "nope") == 1
    assert "0 rows" in capsys.readouterr().out


def test_one_wrong_output_makes_a_row_wrong() -> None:
    right, wrong = (compare("y", np.ones(2), np.full(2, x)) for x in (1.0, 2.0))
    report = {
        "weight_bytes_per_rank": [6, 4], "weight_bytes_total": 10, "split_fraction": 1.0,
        "collectives": {"AllReduce": 2, "AllGather": 1},
    }  # fmt: skip
    assert rows_of.Row("m", "cpu", 2, [right], report).equal
    row = rows_of.Row("m", "cpu", 2, [right, wrong], report)
    assert not row.equal and str(row).split()[3] == "NO"
    assert str(row).endswith("1.000    1.200  1 AllGather, 2 AllReduce")
