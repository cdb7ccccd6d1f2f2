"""Start a program on n ranks of this machine without MPI, and end them all when one fails.

`python -m backends.spawn N PROGRAM ARGUMENTS...` plays the part of `mpirun -n N`. It imports the
standard library only, and nothing of ours, so that it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

RANK, SIZE = "TPCORE_RANK", "TPCORE_SIZE"
"""What each rank is told."""
_PR_SET_PDEATHSIG = 1
_TICK_SECONDS = 0.02
_GRACE_SECONDS = 2.0
"""How long the other ranks may take to end by themselves once one has failed."""


@dataclass(frozen=True)
class OwnLauncher:
    """The launcher that needs no MPI."""

    def command(self, argv: Sequence[str], ranks: int) -> list[str]:
        """The command that starts `argv` on `ranks` ranks."""
        return bare_python("backends.spawn", str(ranks), *argv)

    def environment(self) -> dict[str, str]:
        """Nothing."""
        return {}


def bare_python(module: str, *argv: str) -> list[str]:
    """The command that calls `main` of a module of ours which needs the standard library only."""
    root = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from {module} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, *argv]


def main() -> None:
    """Start the ranks, wait for them, and end with the first status that is not 0."""
    ranks, argv = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, _stop)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            variables = {**os.environ, RANK: str(rank), SIZE: str(ranks)}
            started.append(subprocess.Popen(argv, env=variables, preexec_fn=_die_with_parent))
        status = _wait(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
    sys.exit(status)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all ranks have ended, or for a while after one has failed; its status."""
    deadline = float("inf")
    failed = 0
    while any(process.poll() is None for process in started) and time.monotonic() < deadline:
        failed = failed or next((p.returncode for p in started if p.returncode), 0)
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_SECONDS
        time.sleep(_TICK_SECONDS)
    failed = failed or next((p.returncode for p in started if p.returncode), 0)
    return 128 - failed if failed < 0 else failed


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _die_with_parent() -> None:
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
