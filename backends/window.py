"""Memory that all ranks of one host share: a slot per rank to write into, and a way to meet.

A round is: write into your slot, `meet`, read the others' slots. Slots come in two sets that take
turns, so one meeting a round is enough: a rank writes into a set again only after the next
meeting, and who has come to that one has read what it wanted of this one.

A rank says that it has come by counting up its own flag, an aligned 64-bit integer that it alone
writes, on a cache line of its own. Who sees the flag must see the slot as well. x86 keeps the order
of one core's stores and of its loads, so nothing more is needed there (what glibc copies with
streaming stores it ends with a fence); other processors need a `fence` on both sides.
"""

from __future__ import annotations

import math
import mmap
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SLOT_BYTES = 1 << 20
"""What a rank can hand over in one round."""
_LINE = 128
"""Bytes between flags: two cache lines, since processors fetch them in pairs."""
FLAG_STRIDE = _LINE // 8
"""Numbers between flags."""
_POLLS = 400
"""How often to look at a flag before the core is offered to others, some 15 us."""
_PATIENCE_SECONDS = 0.01
"""How long to go on looking before sleeping in between; a rank so late computes or is stopped."""
NAP_SECONDS = 2e-5
"""The system makes some 70 us of it. Ranks that outnumber the cores nap at once: on 4 ranks of 2
cores, offering the core over and over took four times as long as napping and twice MPI's time."""

Fence = Callable[[], None]


class Window:
    """One rank's view of the shared memory."""

    def __init__(
        self,
        memory: mmap.mmap,
        rank: int,
        size: int,
        slot_bytes: int,
        *,
        crowded: bool = False,
        fence: Fence | None = None,
    ) -> None:
        self.rank, self.size, self.slot_bytes = rank, size, slot_bytes
        self.memory = memory
        self.counted = memoryview(bytearray(8)).cast("q")
        """Meetings so far; `native.c` counts its own here as well."""
        first = header_bytes(size)
        self._flags = memoryview(memory)[:first].cast("q")
        self._slots = np.frombuffer(memory, np.uint8, offset=first).reshape(2, size, slot_bytes)
        self._mine = rank * FLAG_STRIDE
        self._others = [other * FLAG_STRIDE for other in range(size) if other != rank]
        self.polls, self.patience_seconds = (0, 0.0) if crowded else (_POLLS, _PATIENCE_SECONDS)
        self._fence = fence

    @property
    def turn(self) -> int:
        """Which set of slots this round uses, 0 or 1."""
        return self.counted[0] & 1

    def view(
        self, turn: int, rank: int, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0
    ) -> np.ndarray:
        """An array in a rank's slot of one set, `offset` bytes into it."""
        end = offset + math.prod(shape) * dtype.itemsize
        return self._slots[turn, rank, offset:end].view(dtype).reshape(shape)

    def views(
        self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of both sets, an array of `shapes[rank]` at the start of every rank's slot."""
        first, second = (
            [self.view(turn, rank, shape, dtype) for rank, shape in enumerate(shapes)]
            for turn in (0, 1)
        )
        return first, second

    def meet(self) -> None:
        """Wait until every rank has come to this meeting; the other set of slots has its turn."""
        self.counted[0] = count = self.counted[0] + 1
        flags, fence = self._flags, self._fence
        if fence is not None:
            fence()
        flags[self._mine] = count
        for other in self._others:
            if flags[other] < count:
                self._wait_for(other, count)
        if fence is not None:
            fence()

    def _wait_for(self, other: int, count: int) -> None:
        flags = self._flags
        for _ in range(self.polls):
            if flags[other] >= count:
                return
        patient_until = time.monotonic() + self.patience_seconds
        while flags[other] < count:
            if time.monotonic() < patient_until:
                os.sched_yield()
            else:
                time.sleep(NAP_SECONDS)


def needs_fence() -> bool:
    """Whether this processor may show others a rank's flag before what was written ahead of it."""
    return platform.machine() not in ("x86_64", "AMD64", "i386", "i686")


def header_bytes(size: int) -> int:
    """Where in the memory the slots begin."""
    page = mmap.PAGESIZE
    return -(-size * _LINE // page) * page


def window_bytes(size: int, slot_bytes: int) -> int:
    """What a window takes."""
    return header_bytes(size) + 2 * size * slot_bytes
