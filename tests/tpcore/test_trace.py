"""`tpcore run --trace`: a timeline of all ranks."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from backends.comm_local import SingleCommunicator
from backends.run import Silent
from backends.trace import Tracer
from tests.tpcore.command import python_path, save, tpcore_here
from tests.tpcore.small_models import mlp
from tpcore.partition import Options
from tpcore.shard import shard


class Remote(SingleCommunicator):
    """Two ranks on two hosts, whose clocks differ by 100 s; the second one came 2 s later."""

    def exchange(self, message: bytes) -> list[bytes]:
        """The other rank's notes are this one's, moved."""
        if not message:
            return [message] * 2
        notes = json.loads(message)
        steps = [[p, x, a + 100 + 2 * x, b + 102] for p, x, a, b in notes["steps"]]
        other = {"host": "far", "now": notes["now"] + 100, "steps": steps}
        return [message, json.dumps(other).encode()]


def test_a_rank_waits_for_the_last_one() -> None:
    tracer = Tracer(Silent())
    for step in [tracer.register(["a", "b"], [False, True]), 1]:
        tracer.enter(step)
        tracer.leave(step)
    events = [e for e in tracer.gather(Remote())["traceEvents"] if e["ph"] == "X"]
    found = {(e["tid"], e["name"]): e["dur"] / 1e6 for e in events}
    own = pytest.approx(0, abs=0.05)
    assert found == {
        (0, "a"): own,
        (0, "wait for b"): own,
        (0, "b"): own,
        (1, "a"): pytest.approx(2, abs=0.05),
        (1, "wait for b"): own,
        (1, "b"): own,
    }


def test_a_trace_has_a_track_per_rank(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())
    bundle = shard(save(mlp(), tmp_path / "m.onnx"), tmp_path / "b", Options(2)).path
    done = tpcore_here(capfd, "run", bundle, "--trace", tmp_path / "t.json")
    assert (done.status, done.err) == (0, "")
    trace = json.loads((tmp_path / "t.json").read_text())
    tracks = [e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"]
    assert tracks == ["rank 0", "rank 1"]
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    kinds = Counter((event["tid"], event["cat"]) for event in events)
    assert kinds[0, "wait"] == kinds[1, "wait"] == kinds[0, "collective"] == kinds[1, "collective"]
    assert kinds[0, "segment"] == kinds[1, "segment"] > 0 < kinds[0, "wait"]
    assert all(event["dur"] >= 0 <= event["ts"] for event in events)
    for rank in range(2):
        mine = [event for event in events if event["tid"] == rank]
        for before, after in pairwise(mine):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-3


def test_a_run_in_one_process_has_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save(mlp(), tmp_path / "m.onnx")
    path = tmp_path / "t.json"
    done = tpcore_here(capfd, "run", model, "--tp", 2, "--backend", "simulate", "--trace", path)
    assert done.status == 2 and not path.exists()
    assert "on backend 'simulate' is one process, in which no rank waits. Trace" in done.error
