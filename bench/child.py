"""One timed process of bench.run: `python -m bench.child TARGET RUNS THREADS`, alone or as a rank.

Prints one JSON object: median seconds per run, seconds of that spent in exchanges, peak memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path

from backends import job, registry
from backends.rank_main import rank_main
from backends.run import RankProgram
from graph.reader import read_model
from tests.big_model import make_inputs
from tpcore.bundle import open_bundle
from tpcore.distribute import cut_inputs


def main() -> int:
    """Time the runs of this process's part of the model."""
    target, runs, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ranks = job.join()
    inputs = make_inputs()
    if target.is_dir():
        bundle = open_bundle(target)
        model = bundle.load_rank(ranks.rank)
        inputs = cut_inputs(inputs, bundle.programs[0].shardings, ranks.rank)
    else:
        model = read_model(target)
    executor = registry.get("cpu").executor()
    program = RankProgram(model, executor, ranks.communicator, threads=threads)
    program.run(inputs)
    program.exchange_seconds = 0.0
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        program.run(inputs)
        seconds.append(time.perf_counter() - began)
    if ranks.rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {
            "seconds": statistics.median(seconds),
            "exchange_seconds": program.exchange_seconds / runs,
            "peak_bytes": peak,
        }
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(main))
