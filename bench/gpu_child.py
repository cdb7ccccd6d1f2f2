"""One timed run of bench.gpu: `python -m bench.gpu_child TARGET SIZES BACKEND RANKS WAY`.

Starts its ranks itself. Prints one JSON object with the median seconds of a run, whose tensors stay
on the device but for the logits of the last token.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from backends import job, registry
from backends.base import BackendOptions
from backends.launch import launch
from backends.placement import detect_environment, threads_per_rank
from backends.rank_main import rank_main
from backends.run import RankProgram
from graph.reader import read_model
from tests.big_model import make_inputs
from tpcore.bundle import open_bundle
from tpcore.distribute import cut_inputs

RUNS = 10


def main() -> int:
    """Start the ranks, or time one of them."""
    target, sizes, backend_name, ranks, way = sys.argv[1:]
    backend = registry.get(backend_name, BackendOptions("bf16", way == "compiled"))
    if int(ranks) > 1 and detect_environment().size == 1:
        launcher = backend.launcher() if backend.launcher is not None else None
        line = [sys.executable, "-m", "bench.gpu_child", *sys.argv[1:]]
        return launch(line, int(ranks), launcher=launcher)
    joined = job.join(joining=backend.communicator)
    inputs = make_inputs(**json.loads(sizes))
    if joined.size > 1:
        bundle = open_bundle(Path(target))
        model = bundle.load_rank(joined.rank)
        inputs = cut_inputs(inputs, bundle.programs[0].shardings, joined.rank)
    else:
        model = read_model(Path(target))
    executor = backend.executor()
    program = RankProgram(model, executor, joined.communicator, threads=threads_per_rank())
    tensors = {name: executor.to_tensor(array) for name, array in inputs.items()}
    seconds = []
    for _ in range(RUNS + 3):
        joined.communicator.exchange(b"")
        began = time.perf_counter()
        made = program.run_held(tensors)
        program.read({"logits": made["logits"][:, -1:]})
        seconds.append(time.perf_counter() - began)
    if joined.rank == 0:
        print(json.dumps({"seconds": statistics.median(seconds[3:])}))
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(main))
