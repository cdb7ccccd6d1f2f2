"""Jobs of the fault program, started in every way there is, and what they must not leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from backends.base import RankLauncher
from backends.launcher import find_launcher
from backends.spawn import OwnLauncher

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 10.0
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def environment(tmp_path: Path, launcher: RankLauncher) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        **launcher.environment(),
        "PYTHONPATH": paths,
        "TMPDIR": str(tmp_path),
        "MPIEXEC_TIMEOUT": "300",
    }


def command(how: str, program: list[str], ranks: int, timeout: float) -> list[str]:
    """How a job is started: by our `launch` with or without MPI, by mpirun, or by torchrun."""
    if how == "mpirun":
        return find_launcher().command(program, ranks)
    if how == "torchrun":
        return [*TORCHRUN, "--nproc-per-node", str(ranks), "--no-python", *program]
    own = ", launcher=OwnLauncher()" if how == "own" else ""
    code = (
        "from backends.launch import launch; from backends.spawn import OwnLauncher; "
        f"raise SystemExit(launch({program}, {ranks}, {timeout}{own}))"
    )
    return [sys.executable, "-c", code]


def _heed_interrupts() -> None:
    """A test run started in the background ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Faulty:
    """A started job of the fault program."""

    def __init__(self, how: str, fault: str, ranks: int, timeout: float, tmp_path: Path) -> None:
        program = [sys.executable, "-m", "tests.backends.fault_program", fault, str(timeout)]
        launcher = OwnLauncher() if how in ("own", "torchrun") else find_launcher()
        self.tmp_path = tmp_path
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command(how, program, ranks, timeout),
            cwd=ROOT, env=environment(tmp_path, launcher), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=_heed_interrupts,
        )  # fmt: skip

    def finish(self) -> tuple[int, str, str, float]:
        """Status, stdout, stderr and seconds; no process and no shared memory is left."""
        out, err = self.process.communicate(timeout=60)
        seconds = time.monotonic() - self.began
        pids = [json.loads(p.read_text())["pid"] for p in self.tmp_path.rglob("rank*.flight.json")]
        wait_until_gone(pids)
        return self.process.returncode, out, err, seconds


def runs(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    """MPI's launcher may be back a few milliseconds before its last rank has ended."""
    deadline = time.monotonic() + 2
    while left := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < deadline, f"ranks are left: {left}"
        time.sleep(0.01)


def wait_for_reports(tmp_path: Path, ranks: int) -> list[Path]:
    """Under MPI's launcher the process that writes them may outlive it by a moment."""
    deadline = time.monotonic() + 2
    while len(found := sorted(tmp_path.rglob("rank*.flight.json"))) < ranks:
        assert time.monotonic() < deadline, f"only {found}"
        time.sleep(0.01)
    return found


def messages(text: str) -> list[str]:
    return [line for line in text.splitlines() if "error:" in line]


def wait_for_pids(tmp_path: Path, ranks: int) -> list[int]:
    """Process ids of the ranks once all of them have a program."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        files = [p for p in tmp_path.rglob("rank?.json")]
        described = [json.loads(path.read_text()) for path in files]
        if len(described) == ranks and all(len(d["places"]) > 2 for d in described):
            return [d["pid"] for d in described]
        time.sleep(0.02)
    raise AssertionError("the ranks did not start")
