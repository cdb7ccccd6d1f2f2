"""Clean up after a process that has started ranks and was killed before it could do so itself.

Its ranks end without it: the kernel tells their launcher, and what they wait for is gone. But MPI's
launcher kills them, so none of them can remove their records and what MPI has in shared memory.
That is done by a small process of its own, which imports nothing heavy and sleeps until then.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from .flight import clean, remove_shared_memory
from .spawn import bare_python
from .watch import GRACE_SECONDS, Watcher

POLL_SECONDS = 0.05


class Keeper:
    """The process that waits for the end of this one."""

    def __init__(self, run_dir: Path, ranks: int) -> None:
        arguments = [str(run_dir), str(ranks), str(os.getpid())]
        self._process = subprocess.Popen(
            bare_python("backends.keeper", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End it: this process has cleaned up."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Wait for the end of a process, then clean up: `keeper RUN_DIR RANKS PID`."""
    run_dir, ranks, owner = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(owner)
        if os.getppid() == owner:  # else it is gone, and the number may be another's
            select.select([handle], [], [])
    watcher = Watcher(run_dir, ranks, timeout_seconds=0.0)
    deadline = time.monotonic() + GRACE_SECONDS
    watcher.poll(0)
    while watcher.alive and time.monotonic() < deadline:
        watcher.poll(POLL_SECONDS)
    states = watcher.states()
    watcher.kill()
    remove_shared_memory(path for state in states for path in state.shared_memory)
    with contextlib.suppress(OSError):  # a launcher of ours may have cleaned up itself
        clean(run_dir, keep_reports=False)
