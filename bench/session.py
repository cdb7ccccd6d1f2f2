"""What a session adds to a call: `python -m bench.session [--calls 1000] [--ranks 1 2]`.

Per number of ranks: time per call as the script sees it, the slowest rank's own time in it, and the
difference, medians over the calls. The model is the test Llama with a KV cache, a step on 8 tokens.

The machine has a part in the difference: as many processes that sleep, are told by a byte to
compute as long as the ranks do, and answer with a byte, take `machine` longer than they compute.
What is ours is the rest. Where there is no core for every rank and one for the script, or others
use them, `machine` is most of it. `processor` is what the script's process computes in a call.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from tests.models import GENAI, Inputs, model_inputs, model_path
from tpcore.partition import Options
from tpcore.session import InferenceSession

WARM_UP = 10
STARTED = b"started"


@dataclass
class Times:
    """Seconds of every call."""

    call: list[float] = field(default_factory=list)
    rank: list[float] = field(default_factory=list)
    """Of the slowest rank."""
    processor: list[float] = field(default_factory=list)
    """Of the script's process."""

    @property
    def added(self) -> list[float]:
        """What the ranks do not account for."""
        return [call - rank for call, rank in zip(self.call, self.rank)]


def main() -> None:
    """Print one line per number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    inputs = model_inputs(GENAI, "decode")
    heads = ("call", "rank", "added", "machine", "processor")
    print("ranks", *(f"{head:>10}" for head in heads), f"  of {args.calls} calls, median")
    for ranks in args.ranks:
        options = Options(ranks, split_outputs=["logits"])
        with InferenceSession(model_path(GENAI), options=options) as session:
            times = measure(session, inputs, args.calls)
        machine = wakes(ranks, statistics.median(times.rank), args.calls) if ranks > 1 else [0.0]
        columns = (times.call, times.rank, times.added, machine, times.processor)
        shown = (f"{1e6 * statistics.median(column):7.0f} µs" for column in columns)
        print(f"{ranks:5}", *shown)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def measure(session: InferenceSession, inputs: Inputs, calls: int) -> Times:
    """Time calls of a session."""
    times = Times()
    for call in range(calls + WARM_UP):
        if call == WARM_UP:
            times = Times()
        before, used, began = session.rank_seconds, time.process_time(), time.perf_counter()
        session.run(["logits"], inputs)
        times.call.append(time.perf_counter() - began)
        times.processor.append(time.process_time() - used)
        times.rank.append(session.rank_seconds - before)
    return times


def wakes(processes: int, busy_seconds: float, calls: int) -> list[float]:
    """What waking that many processes and being woken adds to the time that they compute."""
    added = []
    with ExitStack() as stack:
        links = [stack.enter_context(_started(busy_seconds)) for _ in range(processes)]
        for _ in range(calls):
            began = time.perf_counter()
            for link in links:
                link.send_bytes(b"\0")
            for link in links:
                link.recv_bytes()
            added.append(time.perf_counter() - began - busy_seconds)
    return added


@contextmanager
def _started(busy_seconds: float) -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(theirs, busy_seconds), daemon=True)
    process.start()
    theirs.close()
    assert mine.recv_bytes() == STARTED
    yield mine
    mine.close()
    process.join()


def _answer(link: Connection, busy_seconds: float) -> None:
    """Be one of those processes."""
    link.send_bytes(STARTED)
    while True:
        try:
            link.recv_bytes()
        except EOFError:
            return
        until = time.perf_counter() + busy_seconds
        while time.perf_counter() < until:
            pass
        link.send_bytes(b"\0")


if __name__ == "__main__":
    main()
