"""Start a program on n ranks of this machine, watch them, and end them all when one fails."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .base import RankLauncher
from .flight import DONE, Failure, clean, read_failure, remove_shared_memory
from .job import DEFAULT_TIMEOUT_SECONDS, RUN_DIR, WATCHED_HOST
from .keeper import Keeper
from .launcher import find_launcher
from .launcher_noise import Filter
from .watch import GRACE_SECONDS, TICK_SECONDS, Watcher, told

_PR_SET_PDEATHSIG = 1


def launch(
    argv: Sequence[str],
    ranks: int,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    environ: Mapping[str, str] | None = None,
    launcher: RankLauncher | None = None,
) -> int:
    """Run `argv` as `ranks` ranks and return the exit status that the command line should have.

    0 if all ranks ended well; the status of the first failure (2 or 3), whose one message is
    printed to stderr; 1, 2 or 3 if the program itself ended with that; else 3.
    Without a `launcher` MPI's starts them; raises BackendUnavailable if there is none.
    """
    run_dir = Path(tempfile.mkdtemp(prefix="tpcore-run-"))
    process = start(argv, ranks, run_dir, os.environ if environ is None else environ, launcher)
    keeper = Keeper(run_dir, ranks)
    filters = [Filter(process.stdout, sys.stdout), Filter(process.stderr, sys.stderr)]
    watcher = Watcher(run_dir, ranks, timeout_seconds)
    try:
        with _terminable():
            failure = _watch(process, watcher)
        return _conclude(process, watcher, failure, filters)
    finally:
        leave(process, watcher, keeper, keep_reports=True)


def start(
    argv: Sequence[str],
    ranks: int,
    run_dir: Path,
    environ: Mapping[str, str],
    launcher: RankLauncher | None = None,
) -> subprocess.Popen[bytes]:
    """Start the launcher of `ranks` ranks whose records are to lie in `run_dir`."""
    launcher = launcher or find_launcher()
    variables = {RUN_DIR: str(run_dir), WATCHED_HOST: socket.gethostname()}
    in_main = threading.current_thread() is threading.main_thread()
    return subprocess.Popen(
        launcher.command(argv, ranks),
        env={**environ, **launcher.environment(), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # The kernel takes the end of the thread that starts it for the end of the parent.
        preexec_fn=_die_with_parent if in_main else None,
    )


def leave(
    process: subprocess.Popen[bytes], watcher: Watcher, keeper: Keeper, *, keep_reports: bool
) -> None:
    """End what is left of a job, and remove all but the reports of a failure, if asked to."""
    states = watcher.states()
    _stop(process, watcher)
    if process.returncode:
        remove_shared_memory(path for state in states for path in state.shared_memory)
    clean(watcher.run_dir, keep_reports=keep_reports)
    keeper.dismiss()


def _watch(process: subprocess.Popen[bytes], watcher: Watcher) -> Failure | None:
    """Wait for the end of the job; returns its failure, if it fails."""
    while process.poll() is None:
        if watcher.seen and not watcher.alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK_SECONDS / 10)
        failure = watcher.poll(TICK_SECONDS / 4)
        if failure is not None:
            return failure
    return watcher.poll(0) if process.returncode else read_failure(watcher.run_dir)


def _conclude(
    process: subprocess.Popen[bytes],
    watcher: Watcher,
    failure: Failure | None,
    filters: Sequence[Filter],
) -> int:
    """End what is left, print the one message, and translate the exit status."""
    states = watcher.states()
    if failure is not None:
        watcher.end(failure)
        failure = read_failure(watcher.run_dir) or failure
    _stop(process, watcher)
    for stream in filters:
        stream.finish(GRACE_SECONDS)
    if failure is not None:
        print(told(failure, watcher.run_dir), file=sys.stderr, flush=True)
        return failure.status
    refused = [s.error for s in filters if s.error and not isinstance(s.error, BrokenPipeError)]
    if refused and process.returncode == 0:
        print(f"error: the output could not be written: {refused[0]}.", file=sys.stderr)
        return 3
    if process.returncode in (0, 1, 2, 3) and all(state.state == DONE for state in states):
        return process.returncode
    print(
        f"error: the ranks could not start: {process.args!r} ended with status "
        f"{process.returncode}.\n{''.join(stream.noise for stream in filters)}",
        file=sys.stderr,
        flush=True,
    )
    return 3


def _stop(process: subprocess.Popen[bytes], watcher: Watcher) -> None:
    """End the launcher, and with it or else one by one the ranks."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS / 4)
    for send in (process.terminate, process.kill):
        if process.poll() is None:
            send()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
    watcher.kill()


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the ranks do not outlive us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> None:
    """Ask the kernel to end the launcher when this process is killed."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
