"""Where every rank of one host is, in a directory that all of them and their watcher can read.

Per rank: `rank<N>.flight`, a ring of records in mapped memory (0.6 us per record, no system call);
`rank<N>.json`, what the numbers in it mean; `rank<N>.alive`, a pipe that closes when the rank dies.
The first failure of the job is `failure.json`. After an abnormal end `rank<N>.flight.json` has each
rank's last records as text. Only the standard library is used, so that a watcher starts in 20 ms.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<8sIIdqI4xq")
"""Magic, pid, rank, monotonic start, number of records, state, collectives entered."""
_COUNT_OFFSET, _ENTERED_OFFSET = 24, 40
_STATE, _STATE_OFFSET = struct.Struct("<I"), 32
_RECORD = struct.Struct("<qiiqd")
"""Number of the record, step, phase, collectives entered so far, monotonic seconds."""
_MAGIC = b"tpflt01\0"
_FIRST, _RING = 64, 126
_OFFSETS = [_FIRST + _RECORD.size * place for place in range(_RING)]
_SIZE = _FIRST + _RING * _RECORD.size
_pack_record, _now = _RECORD.pack_into, time.monotonic

RUNNING, DONE, FAILED = 1, 2, 3
ENTER, LEAVE = 1, 0
START, EXCHANGE = 0, 1
"""The first two steps of every rank; those of its programs follow."""
_FIRST_PLACES = ("the meeting of all ranks", "an exchange of messages between all ranks")


class Recorder:
    """Writes one rank's records."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.run_dir, self.rank = run_dir, rank
        self._places: list[str] = []
        self._exchanges: list[bool] = []
        path = run_dir / f"rank{rank}.flight"
        with open(path, "w+b") as file:
            file.truncate(_SIZE)
            self.map = mmap.mmap(file.fileno(), _SIZE)
        """What all can read; `native.c` writes its records there as well."""
        header = (_MAGIC, os.getpid(), rank, time.monotonic(), 0, RUNNING, 0)
        _HEADER.pack_into(self.map, 0, *header)
        numbers = memoryview(self.map)[:_FIRST].cast("q")
        self._total, self._entered = (
            numbers[offset // 8 : offset // 8 + 1] for offset in (_COUNT_OFFSET, _ENTERED_OFFSET)
        )
        self._alive = _open_alive(run_dir / f"rank{rank}.alive")
        self.register(_FIRST_PLACES, [True, True])

    def register(self, places: Sequence[str], exchanges: Sequence[bool]) -> int:
        """Name the steps of a program and say which are collectives; returns the first's number."""
        base = len(self._places)
        self._places += places
        self._exchanges += exchanges
        described = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "places": self._places,
            "exchanges": self._exchanges,
            "shared_memory": shared_memory(),
        }
        _write_whole(self.run_dir / f"rank{self.rank}.json", described)
        return base

    def enter(self, step: int) -> None:
        """Note that a step begins."""
        self._entered[0] += self._exchanges[step]
        self._record(step, ENTER)

    def leave(self, step: int) -> None:
        """Note that a step has ended."""
        self._record(step, LEAVE)

    def set_state(self, state: int) -> None:
        """Note that this rank is done or has failed: its end is no surprise any more."""
        _STATE.pack_into(self.map, _STATE_OFFSET, state)

    def _record(self, step: int, phase: int) -> None:
        count = self._total[0]
        _pack_record(
            self.map, _OFFSETS[count % _RING], count, step, phase, self._entered[0], _now()
        )
        self._total[0] = count + 1


def _open_alive(path: Path) -> int:
    """Open a pipe that this process alone writes to, so that its readers see it die."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


_MPI_FILES = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.")
"""MPICH's and Open MPI's."""


def shared_memory() -> list[str]:
    """The shared-memory files that MPI has mapped, which it leaves behind when ranks are killed."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = (line.split(maxsplit=5)[-1] for line in lines if any(m in line for m in _MPI_FILES))
    return sorted({path.removesuffix(" (deleted)") for path in paths})


def remove_shared_memory(paths: Iterable[str]) -> None:
    """Remove such files; whoever has mapped them keeps them."""
    for path in paths:
        Path(path).unlink(missing_ok=True)


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that readers see whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


@dataclass(frozen=True)
class RankState:
    """Where one rank was when its records were read."""

    rank: int
    pid: int
    host: str
    state: int
    step: int
    phase: int
    entered: int
    """Collectives entered so far, over all runs: how far the rank is."""
    since: float
    """Monotonic time of the last record, seconds."""
    exchanging: bool
    """Whether the last step is an exchange between ranks."""
    place: str
    """The last step in words."""
    started: bool
    """Whether it has run a step of a program lately, and so has all its weights."""
    shared_memory: tuple[str, ...]
    """Files that MPI has mapped."""

    @property
    def where(self) -> str:
        """The place in words, as the end of a sentence."""
        return f"{'in' if self.phase == ENTER else 'after'} {self.place}"

    @property
    def waiting(self) -> bool:
        """Whether the rank is inside an exchange."""
        return self.state == RUNNING and self.phase == ENTER and self.exchanging


def read_rank(run_dir: Path, rank: int) -> RankState | None:
    """The state of one rank of this host; None where it has not come up yet."""
    raw, described = _read_raw(run_dir, rank)
    if raw is None:
        return None
    _, pid, _, started, count, state, _ = _HEADER.unpack_from(raw, 0)
    records = _records(raw, count)
    _, step, phase, entered, since = records[-1] if records else (0, START, ENTER, 0, started)
    return RankState(
        rank=rank,
        pid=pid,
        host=described["host"],
        state=state,
        step=step,
        phase=phase,
        entered=entered,
        since=since,
        exchanging=described["exchanges"][step],
        place=described["places"][step],
        started=any(record[1] > EXCHANGE for record in records),
        shared_memory=tuple(described["shared_memory"]),
    )


def _records(raw: bytes, count: int) -> list[tuple[int, int, int, int, float]]:
    """The records that are still in the ring, oldest first."""
    numbers = range(max(0, count - _RING), count)
    offsets = (_FIRST + _RECORD.size * (number % _RING) for number in numbers)
    return [_RECORD.unpack_from(raw, offset) for offset in offsets]


def _read_raw(run_dir: Path, rank: int) -> tuple[bytes | None, dict[str, Any]]:
    try:
        # In this order: a rank describes its steps before it records any of them.
        raw = (run_dir / f"rank{rank}.flight").read_bytes()
        described = json.loads((run_dir / f"rank{rank}.json").read_text())
    except OSError:
        return None, {}
    return raw, described


def write_report(run_dir: Path, rank: int, failure: str, extra: str = "") -> None:
    """Leave a rank's last records as text in `rank<N>.flight.json`, unless it is there already."""
    path = run_dir / f"rank{rank}.flight.json"
    raw, described = _read_raw(run_dir, rank)
    if raw is None or path.exists():
        return
    now, count = time.monotonic(), _HEADER.unpack_from(raw, 0)[4]
    records = [
        {
            "record": number,
            "phase": "enter" if phase == ENTER else "leave",
            "place": described["places"][step],
            "collectives_entered": entered,
            "seconds_ago": round(now - when, 6),
        }
        for number, step, phase, entered, when in _records(raw, count)
    ]
    report = {"rank": rank, "pid": described["pid"], "host": described["host"]}
    _write_whole(path, report | {"failure": failure, "traceback": extra, "records": records})


@dataclass(frozen=True)
class Failure:
    """Why a job ended: the one message that its user sees."""

    message: str
    status: int
    """Exit status of the command line: 2 or 3."""
    agreed: bool = False
    """Whether every rank ends by itself with this same error."""


def claim_failure(run_dir: Path, failure: Failure) -> bool:
    """Make `failure` the job's message; False if somebody was first."""
    partial = run_dir / f"failure.{os.getpid()}.partial"
    partial.write_text(json.dumps(asdict(failure)))
    try:
        os.link(partial, run_dir / "failure.json")
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def read_failure(run_dir: Path) -> Failure | None:
    """The job's message, if it has failed."""
    try:
        return Failure(**json.loads((run_dir / "failure.json").read_text()))
    except OSError:
        return None


def clean(run_dir: Path, *, keep_reports: bool) -> None:
    """Remove what the ranks left; their reports, if there are any, and the failure may stay."""
    reports = set(run_dir.glob("*.flight.json")) if keep_reports else set()
    kept = reports | {run_dir / "failure.json"} if reports else reports
    for path in set(run_dir.iterdir()) - kept:
        path.unlink(missing_ok=True)
    if not kept:
        run_dir.rmdir()
