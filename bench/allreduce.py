"""What an AllReduce of float32 costs between ranks of this machine, ours against the libraries'.

    python -m bench.allreduce [--ranks 2] [--rounds 5] [--save]

Prints microseconds per call, minimum and median: ours as backend `cpu` does it, on what a segment
has made and on arrays of numpy; MPI's own Allreduce in place; gloo's where torch is installed. All
take turns in the same processes, every rank writes its operand anew before a call, and every call
begins together. Read the ratios: other work on the machine shows in the medians first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from backends import job, registry
from backends.exec_ort import OrtExecutor
from backends.launcher import find_launcher
from backends.rank_main import rank_main
from bench import history
from graph.dialect import AllReduce
from tpcore.measure import made_by_a_segment
from tpcore.units import human_bytes

SIZES = {4 << 10: 50, 64 << 10: 20, 256 << 10: 10, 1 << 20: 5, 16 << 20: 1}
"""Bytes of the operand → tens of calls per round."""
_TENTHS = {"gloo": 1}
"""What is slow is called less often."""
TIMEOUT_SECONDS = 600
Call = Callable[[np.ndarray], object]
OURS, ANYWHERE = "ours", "of numpy's"


def main() -> int:
    """Start the ranks and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/history")
    args = parser.parse_args()
    launcher = find_launcher()
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as folder:
        child = [sys.executable, "-m", "bench.allreduce", "--rank", str(args.rounds), folder]
        done = subprocess.run(
            launcher.command(child, args.ranks),
            check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    rows = json.loads(done.stdout)
    _print_table(rows)
    if args.save:
        print(history.save("allreduce", {"ranks": args.ranks, "microseconds": rows}))
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name != "bytes"]
    columns = "".join(f"{f'{name} us':>18}" for name in names)
    print(f"{'':>8}{columns}" + "".join(f"{f'ours/{name}':>14}" for name in names[1:]))
    for row in rows:
        times = "".join(f"{f'{row[n][0]:.1f} / {row[n][1]:.1f}':>18}" for n in names)
        best, middle = row[OURS]
        ratios = "".join(
            f"{f'{best / row[n][0]:.2f} / {middle / row[n][1]:.2f}':>14}" for n in names[1:]
        )
        print(f"{human_bytes(row['bytes']):>8}{times}{ratios}")


def rank() -> int:
    """Measure as one rank; rank 0 prints."""
    rounds, folder = int(sys.argv[2]), Path(sys.argv[3])
    joined = job.join(joining=registry.get("cpu").communicator)
    calls, executor = dict(_calls(folder, joined)), OrtExecutor()
    rows = []
    for size, tens in SIZES.items():
        made = executor.to_array(made_by_a_segment(executor, (size // 4,)))
        anywhere = np.zeros(size // 4, np.float32)
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                operand = made if name == OURS else anywhere
                found[name] += _times(call, operand, _TENTHS.get(name, 10) * tens)
        rows.append(
            {"bytes": size}
            | {n: (min(t) * 1e6, statistics.median(t) * 1e6) for n, t in found.items()}
        )
    if "gloo" in calls:
        _leave_gloo()
    if joined.rank == 0:
        print(json.dumps(rows))
    return 0


def _calls(folder: Path, joined: job.Job) -> Iterator[tuple[str, Call]]:
    """What to measure, by name."""
    op, communicator = AllReduce("tp"), joined.communicator
    yield OURS, lambda operand: communicator.run(op, operand)
    yield ANYWHERE, lambda operand: communicator.run(op, operand)
    from mpi4py import MPI

    yield "MPI", lambda operand: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, operand)
    if find_spec("torch") is not None:
        import torch
        import torch.distributed as dist

        store = f"file://{folder}/gloo"
        dist.init_process_group("gloo", store, rank=joined.rank, world_size=joined.size)
        yield "gloo", lambda operand: dist.all_reduce(torch.from_numpy(operand))


def _leave_gloo() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


def _times(call: Call, operand: np.ndarray, repeats: int) -> list[float]:
    from mpi4py import MPI

    call(operand)
    times = []
    for _ in range(repeats):
        operand.fill(1)
        MPI.COMM_WORLD.Barrier()
        began = time.perf_counter()
        call(operand)
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    sys.exit(rank_main(rank) if sys.argv[1:2] == ["--rank"] else main())
