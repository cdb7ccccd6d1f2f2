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
        machine = os.sysconf("SC_PHYS_PAGES") * PAGESIZE
        bytes_each = min(machine, MOST_ADDRESSES // ranks) // PAGESIZE * PAGESIZE
        _agreed[ranks] = shared(
            meeting,
            lambda: SharedMemory(bytes_each * ranks, sparse=True) if native.path() else None,
            lambda address: _map(address, bytes_each, meeting.rank, ranks),
        )
    return _agreed[ranks]


def _map(address: str, bytes_each: int, rank: int, ranks: int) -> Heaps | None:
    if native.path() is None:
        return None
    file = open_memory(address)
    try:
        start = native.library().tpcore_heaps_map(file, bytes_each, rank, ranks)
    finally:
        os.close(file)
    return Heaps(start, bytes_each) if start else None
