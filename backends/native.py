"""The compiled part, where there is one: `native.c`, which pip builds if it finds a C compiler.

It sums float32 between the ranks of one host as `comm_window.py` does, through the same memory in
the same rounds, but as an op inside onnxruntime's sessions, so that one session holds many
collectives. Everything works without it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from mmap import mmap

from graph.dialect import AllReduce, Collective

from .segments import Exchange, NativeOp
from .window import FLAG_STRIDE, NAP_SECONDS, Window, header_bytes

DOMAIN = "tpcore.native"
"""Of the ops in sessions: one input, one output, attributes `link` and `step`."""


_POLLS = 20
"""Looks at a flag in the time that Python takes for one."""


class _Link(ctypes.Structure):
    """`Link` of native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("count", "flags", "slots", "records")),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("rank", "size", "stride", "slot_bytes", "chunk_bytes", "small_bytes", "polls"),
            )
        ),
        *((name, ctypes.c_double) for name in ("patience", "nap", "seconds")),
    ]


@cache
def path() -> str | None:
    """Where the library lies; None where it was not built or does not load."""
    found = find_spec("backends._native")
    if found is None or found.origin is None:
        return None
    try:
        ctypes.CDLL(found.origin)
    except OSError:
        return None
    return found.origin


class Link:
    """What the library must know of a rank's window."""

    def __init__(self, window: Window, chunk_bytes: int, small_bytes: int) -> None:
        self._window = window
        start = _address(window.memory)
        self._struct = _Link(
            count=_address(window.counted),
            flags=start,
            slots=start + header_bytes(window.size),
            rank=window.rank,
            size=window.size,
            stride=FLAG_STRIDE,
            slot_bytes=window.slot_bytes,
            chunk_bytes=min(chunk_bytes, window.slot_bytes),
            small_bytes=small_bytes,
            polls=window.polls * _POLLS,
            patience=window.patience_seconds,
            nap=NAP_SECONDS,
        )
        self.address = ctypes.addressof(self._struct)

    def record_in(self, records: mmap) -> None:
        """Have nodes tell a flight recorder where they are."""
        self._records = records  # keeps it mapped
        self._struct.records = _address(records)

    @property
    def seconds(self) -> float:
        """Time spent in nodes so far."""
        return float(self._struct.seconds)

    def takes(self, op: Collective, dtype: str) -> bool:
        """Whether the library can run a collective on elements of an ONNX type."""
        return isinstance(op, AllReduce) and op.reduce == "sum" and dtype == "FLOAT"


def native_op(link: Link, exchange: Exchange, step: int) -> NativeOp | None:
    """The node that runs a collective and calls itself `step`; None where the library cannot."""
    if not link.takes(exchange.op, exchange.dtype):
        return None
    return NativeOp(DOMAIN, exchange.op.op_type, {"link": link.address, "step": step})


def link_through(window: Window, chunk_bytes: int, small_bytes: int) -> Link | None:
    """The library's way through a window; None where it was not built."""
    return None if path() is None else Link(window, chunk_bytes, small_bytes)


def _address(memory: mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
