"""`--trace`: a timeline of all ranks, for tpcore run and tpcore generate."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from backends.comm_local import SingleCommunicator
from backends.handshake import collective_sequence
from backends.run import Silent
from backends.trace import MESSAGES, Tracer
from tests.models import GENAI, model_path
from tests.tpcore.command import Done, python_path, save, tpcore_here
from tests.tpcore.generation import ranks_of
from tests.tpcore.small_models import mlp
from tests.tpcore.trace_format import check_event, check_nesting, read_trace, seconds
from tpcore.partition import Options
from tpcore.shard import shard

STEPS = 16


class Remote(SingleCommunicator):
    """Two ranks on two hosts, whose clocks differ by 100 s; the second one came 2 s later."""

    def exchange(self, message: bytes) -> list[bytes]:
        """The other rank's notes are this one's, moved."""
        if not message:
            return [message] * 2
        notes = json.loads(message)
        steps = [[p, x, a + 100 + 2 * x, b + 102] for p, x, a, b in notes["steps"]]
        other = {"host": "far", "now": notes["now"] + 100, "steps": steps, "runs": []}
        return [message, json.dumps(other).encode()]


class Listener(Silent):
    """Numbers the steps of programs from 7 on, and hears which ones run."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self._next = 7

    def register(self, places: Sequence[str], exchanges: Sequence[bool]) -> int:
        """Number the steps."""
        self._next += len(exchanges)
        return self._next - len(exchanges)

    def enter(self, step: int) -> None:
        """Hear of a step."""
        self.heard.append(step)


def test_a_rank_waits_for_the_last_one() -> None:
    tracer = Tracer()
    first = tracer.register(["a", "b"], [False, True])
    for step in (first, first + 1):
        tracer.enter(step)
        tracer.leave(step)
    events = [e for e in tracer.gather(Remote())["traceEvents"] if e["ph"] == "X"]
    found = {(e["tid"], e["name"]): e["dur"] / 1e6 for e in events}
    own = pytest.approx(0, abs=0.05)
    assert found == {
        (1, "a"): own,
        (1, "wait for b"): own,
        (1, "b"): own,
        (2, "a"): pytest.approx(2, abs=0.05),
        (2, "wait for b"): own,
        (2, "b"): own,
    }


def test_programs_are_told_apart_and_the_other_monitor_hears_its_own_numbers() -> None:
    listener = Listener()
    tracer = Tracer(listener)
    starts = [tracer.register(names, [False] * 2) for names in (["a", "b"], ["c", "d"])]
    for step in (starts[1] + 1, starts[0]):
        tracer.enter(step)
        tracer.leave(step)
    events = tracer.gather(SingleCommunicator())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["d", "a"]
    assert listener.heard == [10, 7]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ph": "X", "name": "a", "cat": "b", "ts": 0.0, "dur": -1.0, "pid": 1, "tid": 1},
        {"ph": "X", "name": "a", "cat": "b", "ts": 0.0, "pid": 1, "tid": 1},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {}},
    ],
    ids=["negative", "without an end", "without a name"],
)
def test_the_check_of_the_format_sees_wrong_events(wrong: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        check_event(wrong)


def test_the_check_of_the_format_sees_events_that_cross() -> None:
    with pytest.raises(AssertionError):
        check_nesting([{"ts": 0.0, "dur": 2.0}, {"ts": 1.0, "dur": 2.0}])


@pytest.fixture
def traced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The trace of one run of an MLP on two ranks."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    bundle = shard(save(mlp(), tmp_path / "m.onnx"), tmp_path / "b", Options(2)).path
    done = tpcore_here(capfd, "run", bundle, "--trace", tmp_path / "t.json")
    assert (done.status, done.err) == (0, "")
    return tmp_path / "t.json"


def test_a_trace_has_a_track_per_rank(traced: Path) -> None:
    for events in read_trace(traced, 2):
        kinds = Counter(event["cat"] for event in events)
        assert kinds == {"run": 1, "segment": 2, "wait": 1, "collective": 1}
        assert [e["cat"] for e in events] == ["run", "segment", "wait", "collective", "segment"]


def generated(capfd: pytest.CaptureFixture[str], path: Path, *more: object) -> Done:
    prompt = ("--prompt-ids", "5,17,99,3,200,41", "--max-new-tokens", STEPS + 1)
    return tpcore_here(capfd, "generate", model_path(GENAI), *prompt, "--trace", path, *more)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_trace_of_decode_steps_agrees_with_the_timing_line(
    backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tell of one run: the file measures steps one by one, the line sums them on the way."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    path = tmp_path / "t.json"
    done = generated(capfd, path, "--tp", 2, "--backend", backend, "--json")
    assert (done.status, done.err) == (0, "")
    line = json.loads(done.out)
    ranks = read_trace(path, 2)
    split = ranks_of(model_path(GENAI), 2)
    collectives = len(collective_sequence(split.models["main"]))
    for events in ranks:
        names = [event["name"] for event in events if event["cat"] == "run"]
        assert names == ["prefill", *(f"decode {step}" for step in range(1, STEPS + 1))]
        kinds = Counter(event["cat"] for event in events)
        assert kinds["wait"] == kinds["collective"] == (collectives + 1) * len(names)
        assert kinds["segment"] >= collectives * len(names)
        told = [e["name"] for e in events if e["cat"] == "collective"]
        assert told.count(MESSAGES) == len(names)
    first, steps = ranks[0], seconds(ranks[0], "run", name="decode")
    exchanges = sum(seconds(first, "wait", "collective")) / sum(seconds(first, "run"))
    for what, traced, printed in (
        ("all steps", sum(steps), line["decode_seconds"]),
        ("a step", statistics.median(steps), line["decode_seconds_per_token"]),
        ("share of exchanges", exchanges, line["exchange_fraction"]),
    ):
        assert traced == pytest.approx(printed, rel=0.05), f"{what}: {traced} in the trace, {line}"


def test_a_run_in_one_process_has_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, path = save(mlp(), tmp_path / "m.onnx"), tmp_path / "t.json"
    one = ("--tp", 2, "--backend", "simulate")
    for done in (
        tpcore_here(capfd, "run", model, *one, "--trace", path),
        generated(capfd, path, *one),
    ):
        assert done.status == 2 and not path.exists()
        assert "on backend 'simulate' is one process, in which no rank waits. Trace" in done.error


def test_a_trace_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = generated(capfd, tmp_path / "none" / "t.json", "--tp", 2)
    assert done.status == 2 and "none' is no directory. Choose another path." in done.error
