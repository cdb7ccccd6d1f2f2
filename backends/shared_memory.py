"""Memory that one process offers to the others of its host."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import TypeVar

from .base import Communicator

T = TypeVar("T")


def shared(
    meeting: Communicator, offer: Callable[[], SharedMemory | None], take: Callable[[str], T | None]
) -> T | None:
    """What every rank takes of memory that the first one offers; None if one of them has nothing.

    Every rank must call it. What raises OSError or AttributeError (not Linux) is not to be had.
    """
    offered = _try(offer) if meeting.rank == 0 else None
    address = meeting.exchange((offered.address if offered else "").encode())[0].decode()
    taken = _try(lambda: take(address)) if address else None
    all_have = all(meeting.exchange(b"" if taken is None else b"taken"))
    if offered is not None:
        offered.close()
    return taken if all_have else None


def _try(make: Callable[[], T | None]) -> T | None:
    try:
        return make()
    except (OSError, AttributeError):
        return None


class SharedMemory:
    """Shared memory as its maker offers it: a file in memory that is gone with its last user."""

    def __init__(self, size_bytes: int, *, sparse: bool = False) -> None:
        """Raises OSError where the system has no such memory or too little of it.

        Where it is `sparse` the system gives memory for what is written only.
        """
        self.name = f"tpcore-{os.urandom(16).hex()}"
        self._file = os.memfd_create(self.name)
        try:
            if sparse:
                os.ftruncate(self._file, size_bytes)
            else:
                os.posix_fallocate(self._file, 0, size_bytes)
        except OSError:
            os.close(self._file)
            raise

    @property
    def address(self) -> str:
        """By which other processes of this host find it."""
        return f"/proc/{os.getpid()}/fd/{self._file}:{self.name}"

    def close(self) -> None:
        """Stop offering it; who has mapped it keeps it."""
        os.close(self._file)


def open_memory(address: str) -> int:
    """The memory that another process offers, as a file to be closed.

    Raises OSError where it is not on this host.
    """
    path, _, name = address.partition(":")
    # The same path on another host may be anything; only the name tells.
    if os.readlink(path) != f"/memfd:{name} (deleted)":
        raise FileNotFoundError(address)
    return os.open(path, os.O_RDWR)


def map_memory(address: str, size_bytes: int) -> mmap.mmap:
    """Map the memory that another process offers. Raises OSError where it is not on this host."""
    file = open_memory(address)
    try:
        return mmap.mmap(file, size_bytes)
    finally:
        os.close(file)
