"""When every rank was in which step, as a file for Chrome's about:tracing or ui.perfetto.dev.

A collective ends for all ranks when the last one has come to it. What a rank spends before that it
waits, what it spends after that it exchanges; the first is told apart as a step of its own.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from graph.dialect import Collective

from .base import Communicator, Tensor
from .job import Job
from .run import Monitor, Silent

MESSAGES = "an exchange of messages"
"""What ranks tell each other beside a program's collectives: candidates for a token."""
_PROCESS, _FIRST_TRACK = 1, 1
"""Numbers from 1, as viewers take process 0 and thread 0 for the idle one."""


class Tracer:
    """A monitor that notes when every step began and ended, and tells another monitor as well."""

    def __init__(self, inner: Monitor | None = None) -> None:
        self._inner = inner or Silent()
        self._places = [MESSAGES]
        self._exchanges = [True]
        self._inner_steps = [-1]
        """Of each step its number by the other monitor, who is not told of messages."""
        self._steps: list[tuple[int, float, float]] = []
        self._runs: list[tuple[str, float, float]] = []
        self._began = 0.0
        self._exchanged: tuple[float, float] | None = None
        """When the exchange of this step began and ended, tensors handed over before and after."""

    def watch(self, job: Job) -> Job:
        """The same job; steps and messages of programs that are given it are noted here."""
        self._inner = job.monitor
        return replace(job, monitor=self, communicator=_Noted(job.communicator, self))

    def register(self, places: Sequence[str], exchanges: Sequence[bool]) -> int:
        """Name a program's steps; returns the first one's number."""
        first = len(self._places)
        self._places += places
        self._exchanges += exchanges
        numbers = count(self._inner.register(places, exchanges))
        self._inner_steps += [next(numbers) for _ in places]
        return first

    def enter(self, step: int) -> None:
        """Note that a step begins."""
        self._inner.enter(self._inner_steps[step])
        self._began = time.perf_counter()

    def leave(self, step: int) -> None:
        """Note that a step has ended."""
        began, ended = self._exchanged or (self._began, time.perf_counter())
        self._steps.append((step, began, ended))
        self._exchanged = None
        self._inner.leave(self._inner_steps[step])

    def note_exchange(self, began: float, ended: float) -> None:
        """Note when the collective of this step ran."""
        self._exchanged = (began, ended)

    def note_messages(self, began: float, ended: float) -> None:
        """Note an exchange of messages."""
        self._steps.append((0, began, ended))

    def note_run(self, name: str, began: float, ended: float) -> None:
        """Note a run, which the steps in this time belong to; by `time.perf_counter`."""
        self._runs.append((name, began, ended))

    def forget(self) -> None:
        """Begin anew: what has run so far was to warm up."""
        self._steps.clear()
        self._runs.clear()

    def gather(self, communicator: Communicator) -> dict[str, Any]:
        """The trace of all ranks; every rank must call it."""
        steps = [
            (self._places[step], self._exchanges[step], began, ended)
            for step, began, ended in self._steps
        ]
        runs = list(self._runs)
        communicator.exchange(b"")
        now = time.perf_counter()
        mine = {"host": socket.gethostname(), "now": now, "steps": steps, "runs": runs}
        texts = communicator.exchange(json.dumps(mine).encode())
        return _trace(_on_one_clock([json.loads(text) for text in texts]))


class _Noted:
    """A communicator that notes when it exchanges; which step that is, a program tells."""

    def __init__(self, inner: Communicator, tracer: Tracer) -> None:
        self._inner, self._tracer = inner, tracer
        self.rank, self.size = inner.rank, inner.size
        self.asynchronous = inner.asynchronous
        self.takes, self.abort = inner.takes, inner.abort

    def run(self, op: Collective, operand: Tensor, *, keep: bool = False) -> Tensor:
        """Run one collective."""
        began = time.perf_counter()
        result = self._inner.run(op, operand, keep=keep)
        self._tracer.note_exchange(began, time.perf_counter())
        return result

    def exchange(self, message: bytes) -> list[bytes]:
        """Every rank's message, in rank order."""
        began = time.perf_counter()
        messages = self._inner.exchange(message)
        self._tracer.note_messages(began, time.perf_counter())
        return messages


@dataclass(frozen=True)
class _Span:
    name: str
    kind: str
    """`segment`, `collective` or `run`, and of what is shown besides `wait`."""
    began: float
    ended: float
    """Seconds."""


@dataclass(frozen=True)
class _Rank:
    runs: list[_Span]
    steps: list[_Span]


def _on_one_clock(ranks: Sequence[dict[str, Any]]) -> list[_Rank]:
    """What every rank has noted, by the first rank's clock.

    Ranks of one host read one clock. Others have just left an exchange together.
    """
    first = ranks[0]
    found = []
    for rank in ranks:
        ahead = 0.0 if rank["host"] == first["host"] else rank["now"] - first["now"]
        runs = [_Span(name, "run", a - ahead, b - ahead) for name, a, b in rank["runs"]]
        steps = [
            _Span(place, "collective" if exchange else "segment", a - ahead, b - ahead)
            for place, exchange, a, b in rank["steps"]
        ]
        found.append(_Rank(runs, steps))
    return found


def _trace(ranks: Sequence[_Rank]) -> dict[str, Any]:
    """The file's contents: one track per rank."""
    start = min((span.began for rank in ranks for span in (*rank.runs, *rank.steps)), default=0.0)
    complete = _last_comers(ranks)
    events = [_about("process_name", 0, name="tpcore")]
    for number, rank in enumerate(ranks):
        events.append(_about("thread_name", number, name=f"rank {number}"))
        events.append(_about("thread_sort_index", number, sort_index=number))
        shown = [*rank.runs, *_with_waits(rank.steps, complete)]
        shown.sort(key=lambda span: (span.began, span.kind != "run"))  # a run before its steps
        events += [_event(number, span, start) for span in shown]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _last_comers(ranks: Sequence[_Rank]) -> list[float]:
    """When the last rank came to each exchange: all run the same ones in the same order."""
    exchanges = ([step for step in rank.steps if step.kind == "collective"] for rank in ranks)
    return [max(step.began for step in together) for together in zip(*exchanges)]


def _with_waits(steps: Sequence[_Span], complete: Sequence[float]) -> list[_Span]:
    """The steps, each exchange parted where the last rank came to it."""
    shown: list[_Span] = []
    last_came = iter(complete)
    for step in steps:
        if step.kind == "collective":
            came = min(max(next(last_came), step.began), step.ended)
            shown.append(_Span(f"wait for {step.name}", "wait", step.began, came))
            step = replace(step, began=came)
        shown.append(step)
    return shown


def _about(what: str, rank: int, **args: str | int) -> dict[str, Any]:
    """What a viewer shows beside a track."""
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": _FIRST_TRACK + rank, "args": args}


def _event(rank: int, span: _Span, start: float) -> dict[str, Any]:
    began, ended = (round((time - start) * 1e9) for time in (span.began, span.ended))
    return {
        "ph": "X", "name": span.name, "cat": span.kind, "pid": _PROCESS, "tid": _FIRST_TRACK + rank,
        "ts": began / 1e3, "dur": (ended - began) / 1e3,
    }  # fmt: skip
