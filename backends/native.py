"""The compiled part, where there is one: `native.c` and `heap.c`, built if pip finds a C compiler.

It sums float32 between the ranks of one host as `comm_window.py` does, through the same memory in
the same rounds, but as an op inside onnxruntime's sessions, so that one session holds many
collectives; and what is large where it lies, in memory that all ranks reach (`heaps.py`).
Everything works without it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from mmap import mmap
from typing import TYPE_CHECKING, cast

import numpy as np

from graph.dialect import AllReduce, Collective
from graph.errors import ExecutionError

from .segments import Exchange, NativeOp
from .window import FLAG_STRIDE, NAP_SECONDS, Window, header_bytes

if TYPE_CHECKING:
    from .heaps import Heaps

DOMAIN = "tpcore.native"
"""Of the ops in sessions: operand, result of the op before, attributes `link` and `step`."""

_VERSION = 4
"""Of what native.c and Python share: `Link`, the window's rounds, the flight recorder."""
_INTERRUPTED, _UNEQUAL = 0, 3
"""How a sum may end."""
_SIGNALS_BYTES = 1 << 10
_UNRECORDED = -(1 << 30)
"""In place of a node's number in the flight recorder."""
_POLLS = 20
"""Looks at a flag in the time that Python takes for one."""


class _Link(ctypes.Structure):
    """`Link` of native.c."""

    _fields_ = [
        (name, kind)
        for names, kind in (
            ("count flags slots heaps records", ctypes.c_void_p),
            ("rank size stride slot_bytes chunk_bytes small_bytes", ctypes.c_int64),
            ("heap_bytes polls signals", ctypes.c_int64),
            ("patience nap seconds", ctypes.c_double),
            ("in_heaps", ctypes.c_int64),
        )
        for name in names.split()
    ]


@cache
def examine() -> tuple[str | None, str]:
    """Where the library lies, or None and why it is not used."""
    found = find_spec("backends._native")
    if found is None or found.origin is None:
        return None, "pip found no C compiler when it installed tpcore"
    try:
        layout = ctypes.c_int64.in_dll(ctypes.CDLL(found.origin), "tpcore_native_layout").value
    except (OSError, ValueError) as error:
        return None, f"{found.origin} does not load: {error}"
    if layout != (_VERSION << 16) + ctypes.sizeof(_Link):
        return None, f"{found.origin} is of another version: install tpcore again"
    return found.origin, ""


def path() -> str | None:
    """Where the library lies; None where it is not used."""
    return examine()[0]


@cache
def library() -> ctypes.CDLL:
    """The library. Only where there is one."""
    found = ctypes.CDLL(path())
    number, place = ctypes.c_int64, ctypes.c_void_p
    found.tpcore_heaps_map.argtypes = ctypes.c_int, number, number
    found.tpcore_heaps_map.restype = place
    found.tpcore_heap_use.argtypes = place, ctypes.c_int, number, number, number
    found.tpcore_heap_use.restype = found.tpcore_heap_forked.restype = None
    found.tpcore_sum.argtypes = place, place, place, number
    found.tpcore_sum.restype = number
    return found


class Link:
    """What the library must know of a rank's window."""

    def __init__(
        self, window: Window, chunk_bytes: int, small_bytes: int, heaps: Heaps | None
    ) -> None:
        self._window = window
        start = _address(window.memory)
        self._struct = _Link(
            count=_address(window.counted),
            flags=start,
            slots=start + header_bytes(window.size),
            heaps=heaps.address if heaps is not None else None,
            heap_bytes=heaps.bytes_each if heaps is not None else 0,
            rank=window.rank,
            size=window.size,
            stride=FLAG_STRIDE,
            slot_bytes=window.slot_bytes,
            chunk_bytes=min(chunk_bytes, window.slot_bytes),
            small_bytes=small_bytes,
            polls=window.polls * _POLLS,
            signals=_signals(),
            patience=window.patience_seconds,
            nap=NAP_SECONDS,
        )
        self.address = ctypes.addressof(self._struct)
        self._sum = library().tpcore_sum

    def record_in(self, records: mmap) -> None:
        """Have nodes tell a flight recorder where they are."""
        self._records = records  # keeps it mapped
        self._struct.records = _address(records)

    @property
    def seconds(self) -> float:
        """Time spent in nodes so far."""
        return float(self._struct.seconds)

    @property
    def has_heaps(self) -> bool:
        """Whether it may find operands where they lie."""
        return bool(self._struct.heaps)

    @property
    def sums_in_heaps(self) -> int:
        """How many sums so far found all they needed in heaps."""
        return int(self._struct.in_heaps)

    def sum(self, operand: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Sum float32 of all ranks into `total`, which may be the operand. Both are contiguous."""
        place = _address(total)
        begins = place if total is operand else operand.__array_interface__["data"][0]
        ended = self._sum(self.address, begins, place, operand.size)
        if ended == _INTERRUPTED:
            raise KeyboardInterrupt
        if ended == _UNEQUAL:
            raise ExecutionError("the ranks sum unequal numbers of values.")
        return total

    def forget_signals(self) -> None:
        """Python has handled those that came before."""
        if self._struct.signals >= 0:
            with suppress(BlockingIOError):
                os.read(self._struct.signals, _SIGNALS_BYTES)


def runs(op: Collective, dtype: str) -> bool:
    """Whether the library has a collective for a type of this name in ONNX."""
    return isinstance(op, AllReduce) and op.reduce == "sum" and dtype == "FLOAT"


def native_op(link: Link, exchange: Exchange, step: int | None) -> NativeOp | None:
    """The node that runs a collective and calls itself `step`, or does not tell where it is.

    None where the library cannot.
    """
    op = exchange.op
    if not runs(op, exchange.dtype):
        return None
    number = _UNRECORDED if step is None else step
    return NativeOp(DOMAIN, op.op_type, {"link": link.address, "step": number})


def link_through(
    window: Window, chunk_bytes: int, small_bytes: int, heaps: Heaps | None
) -> Link | None:
    """The library's way through a window and heaps; None where it was not built."""
    return None if path() is None else Link(window, chunk_bytes, small_bytes, heaps)


@cache
def _signals() -> int:
    """A file from which the numbers of signals can be read that Python's handlers get; or -1.

    Python runs its handlers between two of its own steps, which a session may keep it from long.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    except ValueError:  # not the main thread
        before = -2
    if before == -1:
        return reader
    if before >= 0:  # somebody else's
        signal.set_wakeup_fd(before)
    os.close(reader)
    os.close(writer)
    return -1


def _address(memory: mmap | memoryview | np.ndarray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(cast("mmap", memory)))
