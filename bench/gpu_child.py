"""The timed runs of bench.gpu: `python -m bench.gpu_child FOLDER WORKS BACKEND RANKS WAY...`.

Starts its ranks itself. Of every work there is a model in FOLDER, split in memory; all of them read
the same weights. Prints a JSON object per way and work: the median seconds of a run, whose tensors
stay on the device but for the logits of the last token.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from backends import job, registry
from backends.base import BackendOptions
from backends.exec_torch import TorchExecutor
from backends.launch import launch
from backends.placement import detect_environment, threads_per_rank
from backends.rank_main import rank_main
from backends.run import RankProgram
from tests.big_model import make_inputs
from tests.big_weights import cache_names
from tpcore.distribute import cut_inputs
from tpcore.partition import Options
from tpcore.shard import split_model

RUNS, WARM_UP = 20, 3
COMPILED = "compiled"


def main() -> int:
    """Start the ranks, or time one of them."""
    folder, works, name, ranks, *ways = sys.argv[1:]
    backend = registry.get(name, BackendOptions("bf16"))
    if int(ranks) > 1 and detect_environment().size == 1:
        line = [sys.executable, "-m", "bench.gpu_child", *sys.argv[1:]]
        return launch(line, int(ranks), launcher=backend.find_launcher())
    joined = job.join(joining=backend.communicator)
    executor = backend.executor()
    assert isinstance(executor, TorchExecutor)
    kept = []  # or the next way would load the weights again
    for way in ways:
        chosen = _compiling(executor) if way == COMPILED else executor
        for work, sizes in json.loads(works).items():
            program, found = measure(Path(folder, f"{work}.onnx"), sizes, chosen, joined)
            kept.append(program)
            if joined.rank == 0:
                print(json.dumps({"way": way, "work": work, **found}), flush=True)
    return 0


def measure(
    path: Path, sizes: dict[str, int], executor: TorchExecutor, joined: job.Job
) -> tuple[RankProgram, dict[str, Any]]:
    """The program of one work, and what its runs take."""
    began = time.perf_counter()
    split = split_model(path, Options(joined.size))
    program = RankProgram(
        split.ranks[joined.rank], executor, joined.communicator, threads=threads_per_rank()
    )
    loaded = time.perf_counter() - began
    inputs = cut_inputs(make_inputs(**sizes), split.shardings, joined.rank)
    caches = {
        past: present
        for layer in range(sizes["layers"])
        for past, present in zip(*(cache_names(layer, w) for w in ("past", "present")))
    }
    tensors = {
        name: (executor.to_cache if name in caches else executor.to_tensor)(array)
        for name, array in inputs.items()
    }
    if sizes["in_place"]:
        program.write_into({caches[name]: tensors[name] for name in tensors if name in caches})
    seconds = []
    for _ in range(RUNS + WARM_UP):
        joined.communicator.exchange(b"")
        began = time.perf_counter()
        made = program.run_held(tensors)
        program.read({"logits": made["logits"][:, -1:]})
        seconds.append(time.perf_counter() - began)
    times = seconds[WARM_UP:]
    return program, {
        "seconds": statistics.median(times), "least": min(times), "load_seconds": loaded,
        "first_seconds": seconds[0],
    }  # fmt: skip


def _compiling(executor: TorchExecutor) -> TorchExecutor:
    """An executor that compiles and shares the weights of another one."""
    return TorchExecutor(str(executor.device), "bf16", compile=True, loader=executor.loader)


if __name__ == "__main__":
    sys.exit(rank_main(main))
