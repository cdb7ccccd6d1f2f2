"""Join the job that this process was started in, and leave it in a way that nobody waits for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graph.errors import BackendUnavailable

from .base import Communicator
from .comm_local import SingleCommunicator
from .flight import DONE, EXCHANGE, START, Recorder
from .handshake import agree
from .native import Link
from .placement import Placement, detect_environment
from .run import Monitor, Silent
from .spawn import bare_python

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


class Watched:
    """A communicator whose exchanges of messages are recorded (a program records its own steps)."""

    def __init__(self, inner: Communicator, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder
        self.rank, self.size = inner.rank, inner.size
        self.asynchronous = inner.asynchronous
        self.takes, self.run = inner.takes, inner.run
        self.native: Link | None = getattr(inner, "native", None)
        if self.native is not None:
            self.native.record_in(recorder.map)

    def exchange(self, message: bytes) -> list[bytes]:
        """Every rank's message, in rank order."""
        self.recorder.enter(EXCHANGE)
        messages = self.inner.exchange(message)
        self.recorder.leave(EXCHANGE)
        return messages

    def abort(self, status: int) -> None:
        """End every rank of the job."""
        self.inner.abort(status)


Joining = Callable[[Communicator], Communicator]
"""Makes a backend's communicator from the one through which the ranks have met."""

_current: Job | None = None
_begun = False
"""Whether the ranks have told each other if they join."""


def join(timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, joining: Joining | None = None) -> Job:
    """Join this process's job; the second call returns the same job.

    The ranks meet as their launcher allows, and then exchange as `joining` says, or as they met.

    Raises:
        BackendUnavailable: the launcher started several ranks but MPI sees only this one, or the
            backend cannot exchange between them.
    """
    global _current
    if _current is None:
        placement = detect_environment()
        if placement.size == 1:
            _current = Job(0, 1, SingleCommunicator(), Silent())
        else:
            _current = _join_ranks(placement, timeout_seconds, joining)
    return _current


def current() -> Job | None:
    """The job that this process has joined, if any."""
    return _current


def meet(placement: Placement) -> Communicator:
    """The communicator through which ranks of this launcher speak first, whatever the backend."""
    if placement.speaks_mpi:
        from .comm_mpi import MpiCommunicator

        return MpiCommunicator()
    from .torch_groups import meet_by_store

    return meet_by_store(placement, os.environ.get(RUN_DIR))


def _join_ranks(placement: Placement, timeout_seconds: float, joining: Joining | None) -> Job:
    given = os.environ.get(RUN_DIR)
    recorder = None
    if given:
        Path(given).mkdir(mode=0o700, exist_ok=True)
        recorder = Recorder(Path(given), placement.rank)
        recorder.enter(START)
    ranks = meet(placement)
    _check_size(placement, ranks)
    try:
        hosts = _take_part(ranks, {"host": socket.gethostname()})
        communicator = agree(ranks, lambda: joining(ranks)) if joining is not None else ranks
    except (SystemExit, BackendUnavailable):
        if recorder is not None:
            recorder.set_state(DONE)
        raise
    here = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.rank]]
    run_dir = _agree_on_run_dir(ranks, here[0], given)
    if recorder is None:
        recorder = Recorder(run_dir, ranks.rank)
        recorder.enter(START)
    else:
        recorder.register((), ())
    recorder.leave(START)
    watched = os.environ.get(WATCHED_HOST) == socket.gethostname()
    if ranks.rank == here[0] and not watched:
        _start_watcher(run_dir, ranks.size, len(here), timeout_seconds)
    return Job(ranks.rank, ranks.size, Watched(communicator, recorder), recorder, recorder)


def decline(message: str, status: int, placement: Placement) -> bool:
    """Tell the ranks that join that this one does not; True if this rank should say why.

    A rank that just ended before the ranks have met would leave the others waiting.
    """
    ranks = meet(placement)
    if _begun or ranks.size != placement.size:
        return placement.rank == 0
    said = _take_part(ranks, {"declined": message, "status": status})
    return ranks.rank == next(rank for rank, text in enumerate(said) if "declined" in text)


def _take_part(ranks: Communicator, said: dict[str, object]) -> list[dict[str, object]]:
    """Every rank's first words; a rank that would join ends where another one declines."""
    global _begun
    messages = [json.loads(text) for text in ranks.exchange(json.dumps(said).encode())]
    _begun = True
    declined = [message["status"] for message in messages if "declined" in message]
    if declined and "declined" not in said:
        raise SystemExit(declined[0])
    return messages


def _agree_on_run_dir(ranks: Communicator, leader: int, given: str | None) -> Path:
    """The directory of this host's records: the one given, or one that its lowest rank makes."""
    mine = given or (tempfile.mkdtemp(prefix="tpcore-run-") if ranks.rank == leader else "")
    return Path(ranks.exchange(mine.encode())[leader].decode())


def _check_size(placement: Placement, ranks: Communicator) -> None:
    if ranks.size != placement.size:
        raise BackendUnavailable(
            f"the launcher started {placement.size} ranks but MPI sees {ranks.size}: the launcher "
            f"({placement.launcher}) belongs to another MPI than the library that mpi4py loads. "
            f"Start the ranks with the launcher beside {sys.executable}, or let tpcore start them."
        )


def _start_watcher(run_dir: Path, size: int, here: int, timeout_seconds: float) -> None:
    """Start the process that outlives the ranks; it imports nothing heavy and ends with them."""
    arguments = [str(run_dir), str(size), str(here), str(timeout_seconds)]
    subprocess.Popen(
        bare_python("backends.watch", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
