"""Ranks without MPI, which meet through torch.distributed: what happens when one of them fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.spawn import OwnLauncher
from tests.backends.faulty import (
    LIMIT_SECONDS,
    ROOT,
    Faulty,
    environment,
    messages,
    wait_for_reports,
)

pytest.importorskip("torch")
START_SECONDS = 30.0
"""What importing torch in every rank may take on a busy machine."""

TEXTS = {
    "kill": r"\(pid \d+ on .*\) was killed by SIGKILL after AllGather #1 at node 'AllGather_1'",
    "stop": r"\(pid \d+\) is stopped after AllGather #1 .* waited 1 s .* AllReduce #0 at node",
    "raise": r"failed after AllGather #1 at node 'AllGather_1': ValueError: a bug",
    "exit": r"\(pid \d+ on .*\) ended with status 5 after AllGather #1 at node 'AllGather_1'",
}


def test_programs_pass_on_gloo(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/mpi"]
    variables = {**environment(tmp_path, OwnLauncher()), "TPCORE_RUN_DIR": str(tmp_path)}
    done = subprocess.run(
        OwnLauncher().command(argv, 2),
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.parametrize(
    ("how", "fault", "ranks"),
    [
        ("own", "kill", 2),
        ("own", "stop", 3),
        ("own", "raise", 2),
        ("own", "exit", 2),
        ("torchrun", "kill", 2),
        ("torchrun", "raise", 2),
    ],
)
def test_a_failing_rank_ends_all(how: str, fault: str, ranks: int, tmp_path: Path) -> None:
    status, out, err, seconds = Faulty(how, fault, ranks, 1, tmp_path).finish()
    assert "finished" not in out
    assert status == 3 if how == "own" else status != 0
    assert seconds < START_SECONDS + LIMIT_SECONDS
    (message,) = messages(err)
    assert re.search(f"rank {ranks - 1} {TEXTS[fault]}", message)
    if how == "own":
        assert err.strip() == message
    reports = wait_for_reports(tmp_path, ranks)
    report = json.loads(reports[-1].read_text())
    assert report["records"][-1]["place"] == "AllGather #1 at node 'AllGather_1'"


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("order", 2, "rank 1 would run other collectives than rank 0. First difference at positio"),
        ("early", 3, "rank 1 failed at the start: ValueError: before MPI starts"),
    ],
)
def test_what_ranks_refuse_before_they_run(
    fault: str, status: int, text: str, tmp_path: Path
) -> None:
    code, out, err, _ = Faulty("own", fault, 2, 5, tmp_path).finish()
    assert (code, out) == (status, "")
    assert len(messages(err)) == 1 and text in err
    assert not list(tmp_path.glob("tpcore-run-*"))


@pytest.mark.parametrize("how", ["own", "torchrun"])
def test_a_job_without_fault(how: str, tmp_path: Path) -> None:
    code, out, err, _ = Faulty(how, "none", 2, 5, tmp_path).finish()
    assert code == 0
    assert re.fullmatch(r"finished with \S+ on 2 ranks\n", out)
    assert re.search(r"\[rank 1\] finished with", err)
    assert not list(tmp_path.glob("tpcore-run-*"))
