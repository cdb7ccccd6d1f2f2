"""Join the job that this process was started in, and leave it in a way that nobody waits for it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from graph.errors import BackendUnavailable, ExecutionError, TpcoreError

from .base import Communicator
from .comm_local import SingleCommunicator
from .flight import (
    COMPARE,
    DONE,
    FAILED,
    START,
    Failure,
    Recorder,
    claim_failure,
    read_rank,
    write_report,
)
from .placement import Placement, detect_environment
from .run import Monitor, Silent
from .watch import told

RUN_DIR, WATCHED_HOST = "TPCORE_RUN_DIR", "TPCORE_WATCHED_HOST"
"""Set by our launcher: where the ranks' records lie, and the host whose ranks it watches itself."""
DEFAULT_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Job:
    """This process as one rank of a job."""

    rank: int
    size: int
    communicator: Communicator
    monitor: Monitor
    """To be given to every `RankProgram`."""
    recorder: Recorder | None = None


_current: Job | None = None


def join(timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Job:
    """Join this process's job; the second call returns the same job.

    Raises:
        BackendUnavailable: the launcher started several ranks but MPI sees only this one.
    """
    global _current
    if _current is None:
        placement = detect_environment()
        if placement.size == 1:
            _current = Job(0, 1, SingleCommunicator(), Silent())
        else:
            _current = _join_ranks(placement, timeout_seconds)
    return _current


def communicator() -> Communicator:
    """The communicator of this process's job."""
    return join().communicator


def _join_ranks(placement: Placement, timeout_seconds: float) -> Job:
    from .comm_mpi import MpiCommunicator

    given = os.environ.get(RUN_DIR)
    recorder = Recorder(Path(given), placement.rank) if given else None
    if recorder is not None:
        recorder.enter(START)
    ranks = MpiCommunicator()
    _check_size(placement, ranks)
    hosts = [json.loads(text) for text in ranks.exchange(_host_message(placement))]
    here = [rank for rank, host in enumerate(hosts) if host["host"] == socket.gethostname()]
    if recorder is None:
        recorder = Recorder(Path(hosts[here[0]]["run_dir"]), placement.rank)
        recorder.enter(START)
    recorder.leave(START)
    watched = os.environ.get(WATCHED_HOST) == socket.gethostname()
    if placement.rank == here[0] and not watched:
        _start_watcher(recorder.run_dir, ranks.size, len(here), timeout_seconds)
    recorder.enter(COMPARE)
    return Job(ranks.rank, ranks.size, ranks, recorder, recorder)


def _host_message(placement: Placement) -> bytes:
    """Every rank offers a directory; the one of a host's lowest rank is used and the rest go."""
    run_dir = os.environ.get(RUN_DIR, "")
    if not run_dir:
        run_dir = str(Path(tempfile.gettempdir(), f"tpcore-run-{os.getppid()}-{os.getpid()}"))
    if not os.environ.get(RUN_DIR):
        os.mkdir(run_dir, 0o700)
    return json.dumps({"host": socket.gethostname(), "run_dir": run_dir}).encode()


def _check_size(placement: Placement, ranks: Communicator) -> None:
    if ranks.size != placement.size:
        raise BackendUnavailable(
            f"the launcher started {placement.size} ranks but MPI sees {ranks.size}: the launcher "
            f"({placement.launcher}) belongs to another MPI than the library that mpi4py loads. "
            f"Start the ranks with the launcher beside {sys.executable}, or let tpcore start them."
        )


def _start_watcher(run_dir: Path, size: int, here: int, timeout_seconds: float) -> None:
    """Start the process that outlives the ranks; it imports nothing heavy and ends with them."""
    root = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from backends.watch import main; main()"
    arguments = [str(run_dir), str(size), str(here), str(timeout_seconds)]
    subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
