"""When every rank was in which step, as a file for Chrome's about:tracing or ui.perfetto.dev.

A collective ends for all ranks when the last one has come to it. What a rank spends before that it
waits, what it spends after that it exchanges; the first is told apart as a step of its own.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import Communicator
from .run import Monitor


class Tracer:
    """A monitor that notes when every step began and ended, and tells another monitor as well."""

    def __init__(self, inner: Monitor) -> None:
        self._inner = inner
        self._places: list[str] = []
        self._exchanges: list[bool] = []
        self._first = 0
        self._began = 0.0
        self._steps: list[tuple[int, float, float]] = []

    def register(self, places: Sequence[str], exchanges: Sequence[bool]) -> int:
        """Name a program's steps; a tracer is for one program."""
        self._places, self._exchanges = list(places), list(exchanges)
        self._first = self._inner.register(places, exchanges)
        return self._first

    def enter(self, step: int) -> None:
        """Note that a step begins."""
        self._inner.enter(step)
        self._began = time.perf_counter()

    def leave(self, step: int) -> None:
        """Note that a step has ended."""
        self._steps.append((step - self._first, self._began, time.perf_counter()))
        self._inner.leave(step)

    def forget(self) -> None:
        """Begin anew: what has run so far was to warm up."""
        self._steps.clear()

    def gather(self, communicator: Communicator) -> dict[str, Any]:
        """The trace of all ranks; every rank must call it."""
        communicator.exchange(b"")
        mine = {
            "host": socket.gethostname(),
            "now": time.perf_counter(),
            "steps": [
                (self._places[step], self._exchanges[step], began, ended)
                for step, began, ended in self._steps
            ],
        }
        texts = communicator.exchange(json.dumps(mine).encode())
        return _trace(_on_one_clock([json.loads(text) for text in texts]))


@dataclass(frozen=True)
class _Step:
    place: str
    exchange: bool
    began: float
    ended: float
    """Seconds."""


def _on_one_clock(ranks: Sequence[dict[str, Any]]) -> list[list[_Step]]:
    """Every rank's steps by the first rank's clock.

    Ranks of one host read one clock. Others have just left an exchange together.
    """
    first = ranks[0]
    ahead = [0.0 if r["host"] == first["host"] else r["now"] - first["now"] for r in ranks]
    return [
        [_Step(place, exchange, began - by, ended - by) for place, exchange, began, ended in steps]
        for by, steps in zip(ahead, (rank["steps"] for rank in ranks))
    ]


def _trace(ranks: Sequence[Sequence[_Step]]) -> dict[str, Any]:
    """The file's contents: one track per rank."""
    start = min((step.began for steps in ranks for step in steps), default=0.0)
    # All ranks run the same collectives in the same order.
    collectives = zip(*([step for step in steps if step.exchange] for steps in ranks))
    complete = [max(step.began for step in together) for together in collectives]
    events: list[dict[str, Any]] = []
    for rank, steps in enumerate(ranks):
        events.append(
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank,
             "args": {"name": f"rank {rank}"}}
        )  # fmt: skip
        last_came = iter(complete)
        for step in steps:
            parts = [(step.place, "segment", step.began, step.ended)]
            if step.exchange:
                came = min(max(next(last_came), step.began), step.ended)
                parts = [
                    (f"wait for {step.place}", "wait", step.began, came),
                    (step.place, "collective", came, step.ended),
                ]
            events += [_event(rank, *part, start) for part in parts]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(
    rank: int, name: str, kind: str, began: float, ended: float, start: float
) -> dict[str, Any]:
    microseconds = {"ts": (began - start) * 1e6, "dur": (ended - began) * 1e6}
    return {"ph": "X", "name": name, "cat": kind, "pid": 0, "tid": rank, **microseconds}
