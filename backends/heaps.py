"""Memory of every rank that the other ranks of the host can reach: `heap.c`.

What onnxruntime allocates for a run lies there, so that ranks sum what is large where it lies: each
a share, into the results of all. The process has one heap from the first job of several ranks on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from mmap import PAGESIZE

from . import native
from .base import Communicator
from .shared_memory import SharedMemory, open_memory, shared

MOST_ADDRESSES = 1 << 45
"""Bytes that all heaps may span: a quarter of what a process can address."""


@dataclass(frozen=True)
class Heaps:
    """The memory of all ranks, one behind the other, as this one has mapped it."""

    address: int
    bytes_each: int


_agreed: dict[int, Heaps | None] = {}
"""By the number of ranks, what they have: all of them, or None."""


def in_use() -> bool:
    """Whether onnxruntime is to allocate from this process's heap."""
    return any(_agreed.values())


def share_heaps(meeting: Communicator) -> Heaps | None:
    """Share heaps with all ranks; None where one of them cannot.

    Every rank must call it. The system gives memory to what is written, so each may fill the
    machine.
    """
    ranks = meeting.size
    if ranks not in _agreed:
        none_yet = not in_use()
        mapped = shared(
            meeting,
            lambda: _offer(ranks) if none_yet else None,
            lambda address: _map(address, ranks),
        )
        _agreed[ranks] = None if mapped is None else _use(*mapped, meeting.rank, ranks)
    return _agreed[ranks]


def _offer(ranks: int) -> SharedMemory | None:
    machine = os.sysconf("SC_PHYS_PAGES") * PAGESIZE
    bytes_each = min(machine, MOST_ADDRESSES // ranks) // PAGESIZE * PAGESIZE
    return SharedMemory(bytes_each * ranks, sparse=True) if native.path() else None


def _map(address: str, ranks: int) -> tuple[int, int] | None:
    """The heaps that a file has, and the file."""
    from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit  # Windows has none, nor such memory

    limit, _ = getrlimit(RLIMIT_AS)
    if native.path() is None or limit != RLIM_INFINITY:  # they would take the addresses of others
        return None
    file = open_memory(address)
    start = native.library().tpcore_heaps_map(file, _bytes_each(file, ranks), ranks)
    if start:
        return start, file
    os.close(file)
    return None


def _bytes_each(file: int, ranks: int) -> int:
    """As the rank has it that has made the file: machines may change their size."""
    return os.fstat(file).st_size // ranks


def _use(start: int, file: int, rank: int, ranks: int) -> Heaps:
    library, bytes_each = native.library(), _bytes_each(file, ranks)
    library.tpcore_heap_use(start, file, bytes_each, rank, ranks)
    os.register_at_fork(after_in_child=library.tpcore_heap_forked)
    return Heaps(start, bytes_each)
