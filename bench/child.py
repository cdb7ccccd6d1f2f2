"""One timed process of bench.run, alone or as a rank: `python -m bench.child TARGET RUNS THREADS`
and the sizes of the model as JSON.

Prints one JSON object: per run the seconds of the whole, of exchanges and of onnxruntime alone (of
ranks the mean), and of this process the memory it holds and held at most.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backends import job, registry
from backends.exec_ort import OrtStep
from backends.rank_main import rank_main
from backends.run import RankProgram
from graph.reader import read_model
from tests.big_model import make_inputs
from tpcore.bundle import open_bundle
from tpcore.distribute import cut_inputs

WARM_UP = 2


class Clock:
    """Sums the time that calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time counted."""

        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = call(*arguments)
            self.seconds += time.perf_counter() - began
            return result

        return run


def main() -> int:
    """Time the runs of this process's part of the model."""
    target, runs, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    backend = registry.get("cpu")
    ranks = job.join(joining=backend.communicator)
    inputs = make_inputs(**json.loads(sys.argv[4]))
    if target.is_dir():
        bundle = open_bundle(target)
        model = bundle.load_rank(ranks.rank)
        inputs = cut_inputs(inputs, bundle.programs[0].shardings, ranks.rank)
    else:
        model = read_model(target)
    program = RankProgram(
        model, backend.executor(), ranks.communicator, threads=threads, monitor=ranks.monitor
    )
    found = _time(program, inputs, runs) | _memory()
    gathered = [json.loads(m) for m in ranks.communicator.exchange(json.dumps(found).encode())]
    if ranks.rank == 0:
        means = {name: np.mean([rank[name] for rank in gathered], axis=0) for name in found}
        print(json.dumps({name: mean.tolist() for name, mean in means.items()}))
    return 0


def _time(program: RankProgram, inputs: dict[str, np.ndarray], runs: int) -> dict[str, Any]:
    for _ in range(WARM_UP):
        program.run(inputs)
    clock = Clock()
    for _, step in program._steps:
        if isinstance(step, OrtStep):
            step._run = clock.timed(step._run)
    found: dict[str, list[float]] = {"seconds": [], "exchange_seconds": [], "ort_seconds": []}
    for _ in range(runs):
        clock.seconds = program.exchange_seconds = 0.0
        began = time.perf_counter()
        program.run(inputs)
        found["seconds"].append(time.perf_counter() - began)
        found["exchange_seconds"].append(program.exchange_seconds)
        found["ort_seconds"].append(clock.seconds)
    return found


def _memory() -> dict[str, float]:
    """Bytes this process holds, shared pages in proportion, and the most it ever held."""
    rollup = Path("/proc/self/smaps_rollup")
    lines = rollup.read_text().splitlines() if rollup.exists() else []
    held = [int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"held_bytes": float(held[0] if held else peak), "peak_bytes": float(peak)}


if __name__ == "__main__":
    sys.exit(rank_main(main))
