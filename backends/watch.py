"""Watch the ranks of one host: notice the dead, the stopped and the failed, and say so once.

The watcher is a process of its own: our launcher, or under a plain `mpirun` a small one beside the
ranks. MPI's launcher kills all ranks within a millisecond of the first death, before a thread of
theirs could speak, and a thread could not run in a rank that is stopped.

A rank's death is seen by its pipe, which the kernel closes together with MPI's own; epoll reports
pipes in the order in which they close, so the first one is the rank that died by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from .flight import (
    DONE,
    FAILED,
    Failure,
    RankState,
    claim_failure,
    clean,
    read_failure,
    read_rank,
    remove_shared_memory,
    write_report,
)

COMING_UP_SECONDS = 0.01
"""How often ranks are looked for that have not come up yet."""
TICK_SECONDS = 0.2
"""How often the clocks of the ranks are read; deaths are seen at once."""
START_SECONDS = 120.0
"""The least time that ranks may wait for each other before their first step (they load weights)."""
GRACE_SECONDS = 2.0
"""How long ranks may take to end by themselves once one of them has failed."""
_ADVICE = {
    "was killed by SIGKILL": "If nobody killed it, it may have run out of memory: see the "
    "system's log."
}
_OTHER_ADVICE = "See its stderr for the reason."
_PF_EXITING = 0x4
"""Flag of a process in /proc/PID/stat: the kernel is ending it."""
_PIDFD_GET_INFO, _PIDFD_INFO_EXIT, _EXIT_CODE_OFFSET = 0xC040FF0B, 8, 60
"""Linux 6.15 and later: ioctl, flag and offset for the wait status of a process that is gone."""


class Watcher:
    """Watches those ranks of a job that run on this host."""

    def __init__(self, run_dir: Path, size: int, timeout_seconds: float) -> None:
        self.run_dir = run_dir
        self._size = size
        self._timeout = timeout_seconds
        self._poll = select.epoll()
        self._pipes: dict[int, int] = {}
        """Pipe → rank, of those alive."""
        self._handles: dict[int, int] = {}
        """Rank → process handle, of all that were seen."""

    @property
    def seen(self) -> int:
        """Number of ranks that have come up so far."""
        return len(self._handles)

    @property
    def alive(self) -> int:
        """Number of ranks that have come up and not ended."""
        return len(self._pipes)

    def fileno(self) -> int:
        """What becomes readable when a rank ends."""
        return self._poll.fileno()

    def poll(self, wait_seconds: float) -> Failure | None:
        """Wait for something to happen; returns the job's failure once there is one."""
        gone = self._adopt()
        if len(self._handles) < self._size:  # of those that come up now an end must not be missed
            wait_seconds = min(wait_seconds, COMING_UP_SECONDS)
        gone += [self._pipes[pipe] for pipe, _ in self._poll.poll(0 if gone else wait_seconds)]
        for rank in dict.fromkeys(gone):
            self._forget(rank)
        for rank in self._culprits_first(gone):
            failure = self._judge_end(rank)
            if failure is not None:
                return failure
        return read_failure(self.run_dir) or self._judge_waits()

    def _culprits_first(self, gone: list[int]) -> list[int]:
        """Ranks that have ended or are about to: those first that did not wait for another.

        A launcher kills the others as soon as one dies, and they may be gone before it.
        """
        if not gone:
            return []
        ending = [s for s in self.states() if s.rank in gone or self._is_watched_and_ends(s)]
        ended = {rank: place for place, rank in enumerate(dict.fromkeys(gone))}
        ending.sort(key=lambda s: (s.waiting, ended.get(s.rank, len(ended))))
        return [state.rank for state in ending]

    def _is_watched_and_ends(self, state: RankState) -> bool:
        return state.rank in self._pipes.values() and _is_ending(state.pid)

    def states(self) -> list[RankState]:
        """The states of all ranks that have come up."""
        found = (read_rank(self.run_dir, rank) for rank in range(self._size))
        return [state for state in found if state is not None]

    def end(self, failure: Failure) -> bool:
        """Publish a failure, let the ranks end, kill those that do not; True if it is ours."""
        first = claim_failure(self.run_dir, failure)
        self._adopt()
        if not failure.agreed:
            for state in self.states():
                write_report(self.run_dir, state.rank, failure.message)
        deadline = time.monotonic() + (0 if first else GRACE_SECONDS)
        while self.alive and time.monotonic() < deadline:
            for pipe, _ in self._poll.poll(0.05):
                self._forget(self._pipes[pipe])
        self.kill()
        return first

    def kill(self) -> None:
        """Kill every rank that is left, the stopped ones included, and wait until it is gone."""
        for rank in self._pipes.values():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._handles[rank], signal.SIGKILL)
        for handle in self._handles.values():
            if handle >= 0:
                select.select([handle], [], [], GRACE_SECONDS)

    def _adopt(self) -> list[int]:
        """Begin to watch ranks that have come up; returns those that are gone already."""
        gone = []
        for rank in range(self._size):
            if rank in self._handles:
                continue
            state = read_rank(self.run_dir, rank)
            if state is None:
                continue
            pipe = os.open(self.run_dir / f"rank{rank}.alive", os.O_RDONLY | os.O_NONBLOCK)
            self._pipes[pipe] = rank
            self._poll.register(pipe, 0)
            self._handles[rank] = _handle(state.pid)
            if _is_ending(state.pid):  # a pipe opened after its writer has closed it tells nothing
                gone.append(rank)
        return gone

    def _forget(self, rank: int) -> None:
        pipe = next(pipe for pipe, held in self._pipes.items() if held == rank)
        self._poll.unregister(pipe)
        os.close(pipe)
        del self._pipes[pipe]

    def _judge_end(self, rank: int) -> Failure | None:
        """What it means that a rank's process has ended."""
        state = read_rank(self.run_dir, rank)
        if state is None or state.state == DONE:
            return None
        known = read_failure(self.run_dir)
        if known is not None or state.state == FAILED:
            return known
        return _death(state, _cause(state.pid, self._handles[rank]))

    def _judge_waits(self) -> Failure | None:
        """Whether a rank has waited too long, and for whom."""
        now, states = time.monotonic(), self.states()
        for state in sorted(states, key=lambda state: _is_stopped(state.pid)):
            limit = self._timeout if state.started else max(self._timeout, START_SECONDS)
            if state.waiting and now - state.since > limit:
                return Failure(self._blame(state, states, limit), 3)
        return None

    def _blame(self, waiter: RankState, states: list[RankState], limit: float) -> str:
        stopped = [state for state in states if _is_stopped(state.pid)]
        behind = [state for state in states if state.entered < waiter.entered]
        late = stopped or behind
        if not late:
            return (
                f"rank {waiter.rank} has waited {limit:g} s in {waiter.place}, and so have all "
                f"ranks of {waiter.host}. Look at the ranks of other hosts and at the network."
            )
        names = " and ".join(
            f"rank {s.rank} (pid {s.pid}) {'is stopped' if s in stopped else 'is still'} {s.where}"
            for s in late
        )
        return (
            f"{names}, and rank {waiter.rank} has waited {limit:g} s for it in {waiter.place}. "
            f"All ranks were ended. If a rank is only slow, allow more than --timeout {limit:g}."
        )


def _handle(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _process_state(pid: int) -> str:
    """The state letter of a process (T is stopped, Z ended), '' if it is gone."""
    return _stat(pid)[0]


def _is_stopped(pid: int) -> bool:
    return _process_state(pid) in ("T", "t")


def _is_ending(pid: int) -> bool:
    """Whether a process is gone, or the kernel has begun to end it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in ("Z", "X") or bool(int(fields[6]) & _PF_EXITING)


def _death(state: RankState, cause: str) -> Failure:
    """The failure that a rank's death is."""
    return Failure(
        f"rank {state.rank} (pid {state.pid} on {state.host}) {cause} {state.where}. "
        f"The other ranks were ended. {_ADVICE.get(cause, _OTHER_ADVICE)}",
        3,
    )


def dead_peer(run_dir: Path, size: int, rank: int) -> Failure | None:
    """The death of another rank of this host that `rank` has run into before the watcher saw it."""
    for other in range(size):
        state = read_rank(run_dir, other) if other != rank else None
        if state is None or state.state in (DONE, FAILED) or state.host != socket.gethostname():
            continue
        if _is_ending(state.pid):
            handle = _handle(state.pid)
            cause = _cause(state.pid, handle)
            if handle >= 0:
                os.close(handle)
            return _death(state, cause)
    return None


def _stat(pid: int) -> tuple[str, int]:
    """State letter and wait status of a process, as /proc has them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", -1
    return fields[0], int(fields[-1])


def _cause(pid: int, handle: int) -> str:
    """How a process ended, in words; a few tries, since its parent may not have noticed yet."""
    for _ in range(40):
        state, status = _stat(pid)
        if state not in ("Z", "X"):
            status = _exit_info(handle)
        if status >= 0:
            killer = status & 0x7F
            if killer:
                return f"was killed by {signal.Signals(killer).name}"
            return f"ended with status {status >> 8}"
        time.sleep(0.005)
    return "died"


def _exit_info(handle: int) -> int:
    """The wait status of a process that its parent has reaped; -1 where unknown."""
    answer = bytearray(64)
    struct.pack_into("<Q", answer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(handle, _PIDFD_GET_INFO, answer)
    except (OSError, ValueError):
        return -1
    known = struct.unpack_from("<Q", answer, 0)[0] & _PIDFD_INFO_EXIT
    return int(struct.unpack_from("<i", answer, _EXIT_CODE_OFFSET)[0]) if known else -1


def told(failure: Failure, run_dir: Path | None) -> str:
    """The text for the user: the message, and where the records lie."""
    if failure.agreed or run_dir is None or not any(run_dir.glob("*.flight.json")):
        return f"error: {failure.message}"
    stop = "" if failure.message.endswith((".", "!", "?")) else "."
    return f"error: {failure.message}{stop} Records of every rank: {run_dir}"


def main() -> None:
    """Watch this host until its ranks have ended: `watch RUN_DIR SIZE RANKS_HERE TIMEOUT`."""
    run_dir, size, here = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    watcher = Watcher(run_dir, size, float(sys.argv[4]))
    failure = None
    while failure is None and (watcher.alive or watcher.seen < here):
        failure = watcher.poll(TICK_SECONDS)
    if failure is None:
        clean(run_dir, keep_reports=False)
        return
    states = watcher.states()
    if watcher.end(failure):
        print(told(failure, run_dir), file=sys.stderr, flush=True)
    if not failure.agreed:
        remove_shared_memory(path for state in states for path in state.shared_memory)
    clean(run_dir, keep_reports=not failure.agreed)
