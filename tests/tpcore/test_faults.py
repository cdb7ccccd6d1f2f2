"""Ranks that die, stop, fail or disagree in the middle of `tpcore run`: one message, nothing left.

Which step a rank is in is read from the records that every rank keeps; a run lasts long enough to
act in its middle because all of its ranks share one core.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from backends.flight import ENTER, RankState, read_rank
from backends.launcher import find_launcher
from graph.dialect import AllReduce, is_collective
from tests import big_model
from tests.backends.toys import Maker
from tests.tpcore.command import command, environment, on_cores, save, tpcore_here
from tests.tpcore.small_models import decoder, mlp
from tpcore.bundle import write_bundle
from tpcore.partition import Options
from tpcore.program import Program
from tpcore.shard import Split, shard, split_model, write_splits

Doctor = Callable[[Sequence[ir.Model]], None]

LIMIT_SECONDS = 10.0
START_SECONDS = 10.0
"""What a busy machine may need to start three Pythons."""
WAIT_SECONDS = 3
"""What --timeout allows; no step of the long run takes that long, even on a busy machine."""
LONG = {
    "layers": 16, "hidden": 256, "intermediate": 704, "heads": 8, "kv_heads": 4,
    "vocabulary": 512, "batch": 16, "sequence": 256,
}  # fmt: skip
HOW = pytest.mark.parametrize("mpirun", [False, True], ids=["launch", "mpirun"])


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama on two ranks that takes seconds to run, with 34 collectives on the way."""
    folder = tmp_path_factory.mktemp("long")
    return shard(big_model.make(folder / "model.onnx", **LONG), folder / "b", Options(2)).path


@dataclass
class Started:
    """A run in a process of its own, whose records and temporary files lie in `scratch`."""

    process: subprocess.Popen[str]
    scratch: Path
    ranks: int

    def states(self) -> list[RankState]:
        """Where the ranks are, as far as they have come up."""
        folders = list(self.scratch.glob("tpcore-run-*"))
        found = [read_rank(folders[0], rank) for rank in range(self.ranks)] if folders else []
        return [state for state in found if state is not None]

    def signal_in_the_middle(self, rank: int, number: signal.Signals) -> None:
        """Signal a rank that computes, after every rank has run some collectives."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            states = self.states()
            if len(states) == self.ranks and all(s.started and s.entered > 6 for s in states):
                victim = states[rank]
                if victim.phase == ENTER and not victim.exchanging:
                    os.kill(victim.pid, number)
                    return
            time.sleep(0.002)
        raise AssertionError("the ranks did not start")

    def finish(self) -> tuple[int, str, str, float]:
        """Status, stdout, stderr and the seconds it took to end."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=60)
        seconds = time.monotonic() - began
        self.check_that_nothing_is_left()
        return self.process.returncode, out, err, seconds

    def check_that_nothing_is_left(self) -> None:
        """No process of the run lives (a watcher may need a moment), and only reports lie about."""
        deadline = time.monotonic() + 5
        while left := list(processes_with(str(self.scratch))):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        names = {path.name for path in self.scratch.glob("tpcore-*/*")}
        reports = {f"rank{rank}.flight.json" for rank in range(self.ranks)}
        assert names <= reports | {"failure.json"}


def processes_with(text: str) -> Iterator[tuple[str, str]]:
    """Process ids and command lines of the processes whose environment names `text`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                yield folder.name, (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue


def start(scratch: Path, mpirun: bool, *argv: object, ranks: int = 2) -> Started:
    """Start `tpcore run argv`."""
    process = subprocess.Popen(
        command("run", *argv, ranks=ranks if mpirun else 0),
        env=environment(TMPDIR=str(scratch), **find_launcher().environment()),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return Started(process, scratch, ranks)


def message_of(err: str, mpirun: bool) -> str:
    """The one message; under mpirun its launcher may add words of its own."""
    messages = [line for line in err.splitlines() if "error:" in line]
    assert len(messages) == 1 and "Traceback" not in err, err
    assert mpirun or err == messages[0] + "\n", err
    return messages[0]


@HOW
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run(
    long_bundle: Path, mpirun: bool, rank: int, tmp_path: Path
) -> None:
    with on_cores(1):
        run = start(tmp_path, mpirun, long_bundle)
    run.signal_in_the_middle(rank, signal.SIGKILL)
    status, out, err, seconds = run.finish()
    assert seconds < LIMIT_SECONDS and "logits" not in out
    assert status != 0 if mpirun else status == 3
    assert re.search(
        rf"error: rank {rank} \(pid \d+ on .*\) was killed by SIGKILL (in|after) "
        r"(the segment before )?\w+ #\d+ at node '.+'. The other ranks were ended.",
        message_of(err, mpirun),
    )
    check_reports(tmp_path, err)


@HOW
def test_a_stopped_rank_ends_the_run(long_bundle: Path, mpirun: bool, tmp_path: Path) -> None:
    with on_cores(1):
        run = start(tmp_path, mpirun, long_bundle, "--timeout", WAIT_SECONDS)
    run.signal_in_the_middle(1, signal.SIGSTOP)
    status, out, err, seconds = run.finish()
    assert WAIT_SECONDS - 1 < seconds < LIMIT_SECONDS and "logits" not in out
    assert status != 0 if mpirun else status == 3
    assert re.search(
        r"error: rank 1 \(pid \d+\) is stopped (in|after) (the segment before )?\w+ #\d+ at node "
        rf"'.+', and rank 0 has waited {WAIT_SECONDS} s for it in \w+ #\d+ at node '.+'. All ranks",
        message_of(err, mpirun),
    )
    check_reports(tmp_path, err)


def check_reports(scratch: Path, err: str) -> None:
    """Every rank has left its last records, and the message says where."""
    reports = sorted(scratch.rglob("rank*.flight.json"))
    assert [path.name for path in reports] == ["rank0.flight.json", "rank1.flight.json"]
    assert f"Records of every rank: {reports[0].parent}" in err
    for path in reports:
        report = json.loads(path.read_text())
        assert report["records"] and report["failure"] in err


@HOW
def test_a_node_that_fails_on_one_rank_ends_the_run(mpirun: bool, tmp_path: Path) -> None:
    """Rank 1 looks up a row that is not there, between two collectives."""
    bundle = write_doctored(tmp_path, decoder(), lambda ranks: insert_bad_lookup(ranks[1]))
    run = start(tmp_path, mpirun, bundle, "--timeout", 30)
    status, out, err, seconds = run.finish()
    assert seconds < LIMIT_SECONDS + START_SECONDS and "logits" not in out
    assert status != 0 if mpirun else status == 3
    assert re.search(
        r"error: rank 1 failed in the segment before All\w+ #\d+ at node '.+': onnxruntime cannot "
        r"run node 'lookup': .*idx=99",
        message_of(err, mpirun),
    )
    check_reports(tmp_path, err)


def test_a_rank_that_fails_at_the_very_end_leaves_no_outputs(tmp_path: Path) -> None:
    """The MLP has one collective: rank 0 is through when rank 1 fails behind it."""
    bundle = write_doctored(tmp_path, mlp(), lambda ranks: insert_bad_lookup(ranks[1]))
    run = start(tmp_path, False, bundle, "--outputs", tmp_path / "y.npz")
    status, out, err, _ = run.finish()
    assert (status, out) == (3, "")
    assert "rank 1 failed in the segment after the last collective" in message_of(err, False)
    assert not (tmp_path / "y.npz").exists()


def write_doctored(folder: Path, model: ir.Model, doctor: Doctor) -> Path:
    """A bundle on two ranks whose graphs were changed; its digests are right."""
    path = save(model, folder / "model.onnx")
    split = split_model(path, Options(2))
    doctor(split.ranks)
    return write(split, path, folder / "b")


def write(split: Split, model: Path, path: Path) -> Path:
    return write_splits(path, [split], model).path


def insert_bad_lookup(model: ir.Model) -> None:
    """Look up row 99 of what the first collective gives, unless the batch is that large."""
    reduced = next(node for node in model.graph if is_collective(node))
    row = ir.Value(
        name="row",
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array([99]), name="row"),
    )
    model.graph.register_initializer(row)
    lookup = ir.node("Gather", [reduced.outputs[0], row], {"axis": 0}, name="lookup")
    lookup.outputs[0].name, lookup.outputs[0].type = "looked_up", reduced.outputs[0].type
    for user, index in list(reduced.outputs[0].uses()):
        if user is not lookup:
            user.replace_input_with(index, lookup.outputs[0])
    reduced.append(lookup)


def other_reduction(ranks: Sequence[ir.Model]) -> None:
    """Rank 1 takes the largest part where rank 0 takes the sum."""
    reduced = next(node for node in ranks[1].graph if is_collective(node))
    reduced.attributes["reduce"] = ir.AttrString("reduce", "max")


def write_other_order(folder: Path) -> Path:
    """Two sums that do not need each other: rank 1 has them the other way round."""
    manifest = {
        "source": {"name": "toy", "sha256": "0" * 64},
        "inputs": [{"name": "x", "dtype": "FLOAT", "shape": [2], "rows": None}],
        "outputs": [],
        "states": {},
        "programs": [Program("main", {}, {}, {}).to_json()],
    }
    models = [{"main": two_sums(order)} for order in (["Neg", "Abs"], ["Abs", "Neg"])]
    return write_bundle(folder / "b", models, manifest=manifest, plan={})


def two_sums(order: Sequence[str]) -> ir.Model:
    maker = Maker()
    x = maker.input("x", (2,))
    sums = {op: maker.collective(AllReduce("tp"), maker.op(op, x), f"sum_{op}", op) for op in order}
    return maker.model([sums["Neg"], sums["Abs"]])


def _write_other_reduction(folder: Path) -> Path:
    return write_doctored(folder, mlp(), other_reduction)


DIFFERENT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "reduction": (
        _write_other_reduction,
        r"rank 1 would run other collectives than rank 0. First difference at position 0: rank 1 "
        r"has #0 AllReduce\(axis=tp, reduce=max\) of FLOAT at '.+', rank 0 has #0 "
        r"AllReduce\(axis=tp, reduce=sum\) of FLOAT at '.+'. Write the bundle again",
    ),
    "order": (
        write_other_order,
        r"rank 1 would run other collectives than rank 0. First difference at position 0: rank 1 "
        r"has #0 AllReduce\(.*\) of FLOAT at 'sum_Abs', rank 0 has .* at 'sum_Neg'. Write the ",
    ),
}


@HOW
@pytest.mark.parametrize("kind", DIFFERENT)
def test_ranks_that_would_exchange_other_things_are_refused(
    kind: str, mpirun: bool, tmp_path: Path
) -> None:
    make, text = DIFFERENT[kind]
    run = start(tmp_path, mpirun, make(tmp_path))
    status, out, err, seconds = run.finish()
    assert (status, out) == (2, "") and seconds < LIMIT_SECONDS + START_SECONDS
    assert re.search(text, message_of(err, mpirun))
    assert not list(tmp_path.glob("tpcore-run-*"))


@pytest.mark.parametrize("kind", DIFFERENT)
def test_lockstep_refuses_them_as_well(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, text = DIFFERENT[kind]
    done = tpcore_here(capfd, "run", make(tmp_path), "--backend", "simulate")
    assert done.status == 2 and re.search(text, done.error)
