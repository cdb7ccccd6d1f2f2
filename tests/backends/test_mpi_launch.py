"""Real ranks, started from a plain `pytest`: the MPI suites, and what happens when a rank fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backends.launcher import find_launcher
from graph.errors import BackendUnavailable
from tests.backends.faulty import (
    LIMIT_SECONDS,
    ROOT,
    Faulty,
    environment,
    messages,
    wait_for_pids,
    wait_for_reports,
    wait_until_gone,
)

try:
    LAUNCHER = find_launcher()
except BackendUnavailable as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)


@pytest.mark.parametrize("ranks", [2, 4])
def test_programs_pass_on_mpi(ranks: int, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/mpi"]
    done = subprocess.run(
        LAUNCHER.command(argv, ranks),
        cwd=ROOT, env=environment(tmp_path, LAUNCHER), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d+ passed", done.stdout)


TEXTS = {
    "kill": r"\(pid \d+ on .*\) was killed by SIGKILL after AllGather #1 at node 'AllGather_1'",
    "stop": r"\(pid \d+\) is stopped after AllGather #1 .* waited 1 s .* AllReduce #0 at node",
    "raise": r"failed after AllGather #1 at node 'AllGather_1': ValueError: a bug",
    "exit": r"\(pid \d+ on .*\) ended with status 5 after AllGather #1 at node 'AllGather_1'",
    "sysexit": r"failed after AllGather #1 .*: it ended by itself with status 3",
}
HOW = pytest.mark.parametrize("how", ["launch", "mpirun"])


@HOW
@pytest.mark.parametrize(
    ("fault", "ranks"),
    [("kill", 2), ("kill", 4), ("stop", 2), ("stop", 4), ("raise", 2), ("exit", 2), ("sysexit", 2)],
)
def test_a_failing_rank_ends_all(fault: str, ranks: int, how: str, tmp_path: Path) -> None:
    status, out, err, seconds = Faulty(how, fault, ranks, 1, tmp_path).finish()
    assert "finished" not in out
    assert status == 3 if how == "launch" else status != 0
    assert seconds < LIMIT_SECONDS
    (message,) = messages(err)
    assert re.search(f"rank {ranks - 1} {TEXTS[fault]}", message)
    if how == "launch":
        assert err.strip() == message
    reports = wait_for_reports(tmp_path, ranks)
    assert [path.name for path in reports] == [f"rank{r}.flight.json" for r in range(ranks)]
    assert str(reports[0].parent) in message
    report = json.loads(reports[-1].read_text())
    assert report["records"][-1]["place"] == "AllGather #1 at node 'AllGather_1'"
    assert (report["traceback"] != "") == (fault in ("raise", "sysexit"))


@HOW
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_failing_rank_ends_all_that_share_no_memory(
    fault: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_APART", "1")
    status, _, err, seconds = Faulty(how, fault, 2, 1, tmp_path).finish()
    assert status != 0 and seconds < LIMIT_SECONDS
    (message,) = messages(err)
    assert re.search(f"rank 1 {TEXTS[fault]}", message)


@HOW
@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("order", 2, "rank 1 would run other collectives than rank 0. First difference at positio"),
        ("world", 2, "the bundle is split for 3 ranks but 2 were started. Start 3 ranks"),
        ("early", 3, "rank 1 failed at the start: ValueError: before MPI starts"),
    ],
)
def test_what_ranks_refuse_before_they_run(
    fault: str, status: int, text: str, how: str, tmp_path: Path
) -> None:
    code, out, err, seconds = Faulty(how, fault, 2, 5, tmp_path).finish()
    assert (code, out) == (status, "")
    assert seconds < LIMIT_SECONDS
    assert len(messages(err)) == 1 and text in err
    assert not list(tmp_path.glob("tpcore-run-*"))


@HOW
def test_a_rank_that_only_ends_early_leaves_nobody_waiting(how: str, tmp_path: Path) -> None:
    code, out, _, seconds = Faulty(how, "earlyexit", 2, 5, tmp_path).finish()
    assert (code, out) == (3, "") and seconds < LIMIT_SECONDS


@HOW
def test_a_job_without_fault(how: str, tmp_path: Path) -> None:
    code, out, err, _ = Faulty(how, "none", 2, 5, tmp_path).finish()
    assert code == 0
    assert re.fullmatch(r"finished with \S+ on 2 ranks\n", out)
    assert re.search(r"\[rank 1\] finished with", err)
    assert not list(tmp_path.glob("tpcore-run-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ending_our_launcher_ends_the_ranks(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_RUNS", "100000000")
    job = Faulty("launch", "none", 2, 60, tmp_path)
    pids = wait_for_pids(tmp_path, 2)
    job.process.send_signal(number)
    job.process.communicate(timeout=20)
    assert job.process.returncode != 0
    wait_until_gone(pids)
