"""A rank program that goes wrong as told: `python -m tests.backends.fault_program FAULT TIMEOUT`.

Prints one line per rank that finishes; rank 0 on stdout. MPI's ranks exchange through shared memory
unless FAULT_APART is set.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from backends.comm_window import through_shared_memory
from backends.exec_ort import OrtExecutor
from backends.handshake import RankInfo, collective_sequence, handshake
from backends.job import join
from backends.placement import detect_environment
from backends.rank_main import rank_main
from backends.run import RankProgram
from graph.dialect import AllReduce
from graph.errors import GraphError
from tests.backends.toys import HIDDEN, Maker, mlp_rank

UNDER_WAY_SECONDS = 0.4
RUNS, FAULTY_RUN = int(os.environ.get("FAULT_RUNS", 400)), 200
X = np.ones((2, HIDDEN), np.float32)


def main() -> int:
    fault, timeout_seconds = sys.argv[1], float(sys.argv[2])
    if fault == "early" and detect_environment().rank == 1:
        raise ValueError("before MPI starts")
    if fault == "earlyexit" and detect_environment().rank == 1:
        sys.exit(3)
    shares = detect_environment().speaks_mpi and "FAULT_APART" not in os.environ
    job = join(timeout_seconds, through_shared_memory if shares else None)
    if fault == "order":
        refuse(job.rank, job.size)
    model = mlp_rank(job.rank, job.size)
    program = RankProgram(model, OrtExecutor(), job.communicator, monitor=job.monitor)
    info = RankInfo("toy", "1", job.size + (fault == "world"))
    handshake(job.communicator, info, collective_sequence(model))
    for number in range(RUNS):
        if number == FAULTY_RUN and job.rank == job.size - 1:
            go_wrong(fault)
        result = program.run({"x": X})
    print(f"finished with {result['y'].sum():.4f} on {job.size} ranks")
    return 0


def refuse(rank: int, size: int) -> None:
    """Offer ranks with their collectives in another order."""
    maker = Maker()
    parts = [maker.op("Neg", maker.input("x", (2,))), maker.op("Abs", maker.inputs[0])]
    order = [1, 0] if rank == 1 else [0, 1]
    model = maker.model(
        [maker.collective(AllReduce("tp"), parts[i], ["neg", "abs"][i]) for i in order]
    )
    handshake(join().communicator, RankInfo("toy", "1", size), collective_sequence(model))


def go_wrong(fault: str) -> None:
    """Kill, stop or fail this rank, in a job that its watcher has had the time to find."""
    time.sleep(UNDER_WAY_SECONDS)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "raise":
        raise ValueError("a bug in one rank")
    if fault == "refuse":
        raise GraphError("one rank does not like its graph. Give it another.")
    if fault == "exit":
        os._exit(5)
    if fault == "sysexit":
        sys.exit(3)


if __name__ == "__main__":
    sys.exit(rank_main(main))
