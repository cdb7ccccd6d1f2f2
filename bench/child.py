"""The part that every timed process shares, in whatever interpreter: it imports only numpy.

    if __name__ == "__main__":
        child.main(load, prepare)

A peer's `load` returns its `Ready`. `turn` then makes two runs to warm up and the case's number of
timed ones, and leaves `rank-<n>.json` in the folder it was given: seconds of each run, of loading
(from the start of the process, imports included), and memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case

WARM_UP = 2
SAMPLE_SECONDS = 0.1
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """What a process is to do."""

    case: Case
    folder: Path
    threads: int
    """Of this process."""
    arguments: tuple[str, ...] = ()
    """`Peer.arguments`: which of a module's peers this is."""

    @property
    def shared(self) -> Path:
        """The folder of what all cases of one form share, such as the checkpoint `hf`."""
        return self.folder.parent

    @property
    def checkpoint(self) -> Path:
        """The weights as transformers saves them."""
        form = self.case.form.removesuffix("-int4")
        return self.folder.parents[1] / f"{form}-{self.case.layers}" / "hf"

    def inputs(self) -> Arrays:
        """Of model.onnx."""
        with np.load(self.folder / "inputs.npz") as file:
            return dict(file)

    def prompt(self) -> np.ndarray:
        """i64[past + tokens], of a Llama."""
        return np.asarray(np.load(self.folder / "prompt.npy"))


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Ready:
    """A loaded model."""

    run: Callable[[], Any]
    """What is timed; must not return before the result is there."""
    logits: Callable[[Any], np.ndarray]
    """Logits from what `run` returns, of the last token or of all."""
    reset: Callable[[], None] = _nothing
    """Called before every run, not timed: puts the cache back."""
    rank: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    """More that `run` appends to, one number per run, by name."""


def main(load: Callable[[Work], Ready], prepare: Callable[[Work], None] | None = None) -> int:
    """Do what the command line says."""
    verb, folder, out, threads, *arguments = sys.argv[1:]
    case = Case(**json.loads(Path(folder, "case.json").read_text()))
    work = Work(case, Path(folder), int(threads), tuple(arguments))
    if verb == "prepare":
        assert prepare is not None
        prepare(work)
    else:
        _turn(load, work, Path(out))
    return 0


def _turn(load: Callable[[Work], Ready], work: Work, out: Path) -> None:
    with Peak() as peak:
        ready = load(work)
        loaded = _age_seconds()
        for _ in range(WARM_UP):
            result = None
            ready.reset()
            result = ready.run()
    for found in ready.figures.values():
        found.clear()
    seconds = []
    for _ in range(work.case.runs):
        result = None  # so that nobody holds the results of two runs
        ready.reset()
        began = time.perf_counter()
        result = ready.run()
        seconds.append(time.perf_counter() - began)
    left: dict[str, Any] = {
        "seconds": seconds,
        "load_seconds": loaded,
        "held_bytes": memory("Pss", "smaps_rollup"),
        "peak_bytes": peak.bytes,
        "peak_rss_bytes": memory("VmHWM", "status"),
        **ready.figures,
    }
    if ready.rank == 0:
        row = np.asarray(ready.logits(result), np.float32)
        np.save(out / "logits.npy", row.reshape(-1, work.case.outputs)[-1])
    (out / f"rank-{ready.rank}.json").write_text(json.dumps(left))


class Peak:
    """Samples this process's proportional memory while it loads and makes its first runs.

    A short peak between two samples is missed; the kernel's own highest mark counts every page of
    a file that two ranks map twice, so it is kept beside and not shown.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, memory("Pss", "smaps_rollup"))


def memory(field_name: str, file: str) -> int:
    """Bytes that /proc/self tells under a name; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self", file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{field_name}:")), 0)


def _age_seconds() -> float:
    """Since this process began; where there is no /proc, since Python did its first work."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def given(arrays: Mapping[str, np.ndarray], make: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Every array as a library's tensor."""
    return {name: make(array) for name, array in arrays.items()}
