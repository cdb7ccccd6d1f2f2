"""The frame around a program that may be one rank of a job: how it speaks and how it ends.

With it a plain console script is safe under `mpirun -n 4`: an exception in one rank, which would
leave the others waiting for ever, ends all of them with one message.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from graph.errors import TpcoreError

from .base import Communicator
from .flight import (
    DONE,
    FAILED,
    Failure,
    claim_failure,
    read_rank,
    remove_shared_memory,
    shared_memory,
    write_report,
)
from .job import RUN_DIR, current, decline
from .placement import Placement, detect_environment
from .watch import dead_peer, told


def rank_main(main: Callable[[], int | None]) -> int:
    """Run a program that may be one rank of a job; returns its exit status.

    A rank that fails ends all ranks, with one message for the job. Rank 0 alone writes to stdout.
    """
    placement = detect_environment()
    if placement.rank > 0:
        sys.stdout = sys.stderr = Prefixed(sys.stderr, f"[rank {placement.rank}] ")
    try:
        return _leave(main() or 0)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if status and current() is not None:
            return _fail(stop, placement)
        if status and placement.size > 1:
            _declines("", status, placement)
        return _leave(status)
    except BaseException as error:
        return _fail(error, placement)


class Prefixed:
    """A text stream that puts a prefix before every line."""

    encoding = "utf-8"

    def __init__(self, inner: TextIO, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix
        self._partial = ""

    def write(self, text: str) -> int:
        """Write the lines that are complete."""
        *lines, self._partial = (self._partial + text).split("\n")
        self._inner.write("".join(f"{self._prefix}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Flush the lines that are complete."""
        self._inner.flush()

    def isatty(self) -> bool:
        """Never: colours and progress bars are for rank 0."""
        return False

    def fileno(self) -> int:
        """The descriptor beneath."""
        return self._inner.fileno()


def _leave(status: int) -> int:
    """End as the program wants to: all of its ranks come to this point."""
    sys.stdout.flush()
    sys.stderr.flush()
    job = current()
    if job is not None and job.recorder is not None:
        job.recorder.set_state(DONE)
    return status


def _fail(error: BaseException, placement: Placement) -> int:
    """Publish a failure, once for the job, and end all ranks unless they all end like this one."""
    failure = _failure_of(error, placement)
    job = current()
    if job is None or job.recorder is None:
        return _fail_alone(failure, placement)
    recorder = job.recorder
    first = claim_failure(recorder.run_dir, failure)
    if not failure.agreed:
        trace = "".join(traceback.format_exception(error))
        write_report(recorder.run_dir, recorder.rank, failure.message, trace)
    if first and _given_run_dir() is None:
        print(told(failure, recorder.run_dir), file=sys.__stderr__, flush=True)
    recorder.set_state(DONE if failure.agreed else FAILED)
    if not failure.agreed:
        _abort(job.communicator, failure.status)
    return failure.status


def _fail_alone(failure: Failure, placement: Placement) -> int:
    """Publish the failure of a rank that has not joined a job, or of a job of one."""
    speaks = placement.size == 1 or _declines(failure.message, failure.status, placement)
    run_dir = _given_run_dir()
    if run_dir is not None:
        claim_failure(run_dir, Failure(failure.message, failure.status, agreed=True))
    elif speaks:
        print(told(failure, None), file=sys.__stderr__, flush=True)
    return failure.status


def _declines(message: str, status: int, placement: Placement) -> bool:
    """Decline to join; where MPI itself fails, let rank 0 speak."""
    try:
        return decline(message, status, placement)
    except Exception:
        return placement.rank == 0


def _failure_of(error: BaseException, placement: Placement) -> Failure:
    """The message of a failure; one that its user cannot mend names rank and place."""
    if isinstance(error, TpcoreError):
        text, status, agreed = str(error), error.exit_status, error.agreed
    else:
        text, status, agreed = _text_of(error), 3, False
    if status == 3 and not agreed and placement.size > 1:
        job = current()
        state = read_rank(job.recorder.run_dir, placement.rank) if job and job.recorder else None
        if job is not None and job.recorder is not None and state is not None and state.waiting:
            death = dead_peer(job.recorder.run_dir, job.size, job.rank)  # what it ran into
            if death is not None:
                return death
        place = state.where if state is not None else "at the start"
        text = f"rank {placement.rank} failed {place}: {text}"
    return Failure(text, status, agreed)


def _text_of(error: BaseException) -> str:
    """An error that is not one of ours, in one sentence."""
    if isinstance(error, SystemExit):
        return f"it ended by itself with status {error.code}"
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _given_run_dir() -> Path | None:
    """The directory that our launcher has given; the launcher then prints the message."""
    given = os.environ.get(RUN_DIR)
    return Path(given) if given and Path(given).is_dir() else None


def _abort(communicator: Communicator, status: int) -> None:
    """End all ranks; does not return."""
    with contextlib.suppress(Exception):
        remove_shared_memory(shared_memory())
        communicator.abort(status)
