"""One timed process of bench.predict, alone or as one rank of several.

    python -m bench.predict_child MODEL TOPOLOGY RUNS THREADS '{"sequence": 128}'

Plans the model for the topology and as many ranks as there are, runs this rank's part of it, and
prints one JSON object: predicted seconds, seconds of every run, collectives.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from backends import job, registry
from backends.rank_main import rank_main
from backends.run import RankProgram
from graph.canonicalize import canonicalize
from graph.reader import read_model
from tests.big_model import make_inputs
from tpcore.distribute import cut_inputs
from tpcore.localize import localize
from tpcore.partition import Options, shard_plan
from tpcore.planner.plans import Request, make_plans
from tpcore.planner.topology_files import load_topology
from tpcore.shard import program_of
from tpcore.workload import Work


def main() -> int:
    """Plan, run and report."""
    path, topology, runs, threads = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5])
    ranks = job.join(joining=registry.get("cpu").communicator)
    model, shapes = canonicalize(read_model(path))
    request = Request(ranks.size, topology=load_topology(topology))
    (plan,) = make_plans(model, shapes, [Work()], request)
    sharded = shard_plan(plan, Options(ranks.size))
    inputs = make_inputs(**json.loads(sys.argv[5]))
    parts = cut_inputs(inputs, program_of(sharded).shardings, ranks.rank)
    local = localize(sharded, ranks.rank)
    executor = registry.get("cpu").executor()
    program = RankProgram(local, executor, ranks.communicator, threads=threads)
    seconds = []
    for _ in range(runs + 1):
        ranks.communicator.exchange(b"")
        began = time.perf_counter()
        program.run(parts)
        seconds.append(time.perf_counter() - began)
    if ranks.rank == 0:
        found = {
            "predicted": plan.choices.seconds,
            "seconds": seconds[1:],
            "exchange": program.exchange_seconds / program.seconds,
            "collectives": Counter(e.op.op_type for e in program.program.exchanges),
        }
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(main))
