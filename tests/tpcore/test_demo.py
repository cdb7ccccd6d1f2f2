"""`tpcore demo` is the whole journey: its last lines say what was split, and that it is equal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graph.errors import ExecutionError
from tests.tpcore.command import tpcore, tpcore_here
from tpcore.demo import _run


def test_the_demo_shows_bytes_collectives_and_the_greatest_difference(tmp_path: Path) -> None:
    done = tpcore("demo", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    *_, title, weights, collectives, logits = done.out.splitlines()
    assert title == "4. The outputs of the ranks against unsplit ONNX Runtime"
    assert re.fullmatch(r"weights per rank: \S+ KiB, \S+ KiB of \S+ MiB", weights)
    assert re.fullmatch(r"collectives: \d AllGather, 4 AllReduce", collectives)
    found = re.fullmatch(r"logits: equal, greatest difference (\S+) \(allowed 1e-04 of .*", logits)
    assert found and 0 <= float(found[1]) < 1e-4
    assert not list(tmp_path.iterdir())


def test_the_demo_on_more_ranks_than_the_model_has_dims(
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = tpcore_here(capfd, "demo", "--tp", "9999")
    assert done.status == 2 and "error: cannot split over tp=9999: the largest dim" in done.err


def test_a_run_that_fails_inside_the_demo_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="status 2: error: there is no .* bundle .*nope"):
        _run(tmp_path / "nope", tmp_path / "x.npz", tmp_path / "y.npz")
