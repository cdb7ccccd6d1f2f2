"""What a split costs on this machine: a Llama of 200 M parameters, fp32, on n ranks of one thread.

    python -m bench.run [--ranks 2] [--rounds 5] [--layers 16] [--only decode] [--save]

A decode step reads a cache of 512 positions; a prefill has 512 tokens. For each it prints wall time
and peak memory of `shard`, then the time of one process with one thread, one process with n threads
and n ranks with one thread each, interleaved round by round: minimum and median over all runs, how
fast it is against n threads (the median over the rounds), the share of a run that is not
onnxruntime's own time (exchanges, waits for slower ranks, Python), and memory per process, which
includes some 70 MiB of Python. Timings of a shared machine are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.launcher import find_launcher
from bench import history
from tests.big_model import make
from tpcore.units import human_bytes

TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Work:
    """What is timed."""

    sizes: dict[str, int]
    """Fields of `tests.big_model.LlamaShape`."""
    runs: int
    """Of one process."""
    plan: str
    """For prefill the layout of the weights that decode steps share; the cheapest one for so many
    tokens keeps them whole on every rank."""


WORKS = {
    "decode": Work({"cache": 512, "sequence": 1}, 30, "auto"),
    "prefill": Work({"sequence": 512}, 4, "megatron"),
}


def main() -> int:
    """Run all measurements and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--only", choices=WORKS)
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/history")
    args = parser.parse_args()
    for name in [args.only] if args.only else WORKS:
        figures = _measure_all(name, args)
        if args.save:
            print(history.save(f"run {name}", {"ranks": args.ranks, "figures": figures}))
    return 0


def _measure_all(name: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    work, ranks = WORKS[name], args.ranks
    sizes = work.sizes | {"layers": args.layers}
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as scratch:
        model, bundle = Path(scratch, "model.onnx"), Path(scratch, "bundle")
        make(model, **sizes)
        print(f"{name}: {_time_shard(model, bundle, ranks, work.plan)}")
        tail = [str(work.runs), "1", json.dumps(sizes)]
        commands = {
            "1 process × 1 thread": _child(model, *tail),
            f"1 process × {ranks} threads": _child(model, tail[0], str(ranks), tail[2]),
            f"{ranks} ranks × 1 thread": find_launcher().command(_child(bundle, *tail), ranks),
        }
        found: dict[str, list[dict[str, Any]]] = {label: [] for label in commands}
        for _ in range(args.rounds):
            for label, command in commands.items():
                found[label].append(_measure(command))
    return _print_table(found)


def _child(target: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.child", str(target), *arguments]


def _measure(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _time_shard(model: Path, bundle: Path, ranks: int, plan: str) -> str:
    began = time.perf_counter()
    command = [sys.executable, "-m", "tpcore", "shard", str(model), "--tp", str(ranks)]
    command += ["--plan", plan, "-o", str(bundle)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = sum(path.stat().st_size for path in model.parent.glob("model.onnx*"))
    return f"{human_bytes(size)} split in {seconds:.1f} s, peak memory {human_bytes(peak)}"


def _print_table(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    one, many = list(found)[:2]
    print(
        f"{'':22}{'min ms':>8}{'median':>8}{'× 1 thread':>12}{'× threads':>11}{'not ORT':>9}"
        f"{'exchange':>10}{'held':>11}{'peak':>11}   load {os.getloadavg()[0]:.1f}"
    )
    figures = {}
    for name, results in found.items():
        row = figures[name] = _figures(results, found[one], found[many])
        print(
            f"{name:22}{row['min_ms']:>8.1f}{row['median_ms']:>8.1f}{row['against_one']:>12.2f}"
            f"{row['against_threads']:>11.2f}{row['not_ort']:>9.1%}{row['exchange']:>10.1%}"
            f"{human_bytes(int(row['held_bytes'])):>11}{human_bytes(int(row['peak_bytes'])):>11}"
        )
    return figures


def _figures(
    results: list[dict[str, Any]], one: list[dict[str, Any]], many: list[dict[str, Any]]
) -> dict[str, float]:
    """What is printed of one row."""
    runs = [
        run
        for r in results
        for run in zip(r["seconds"], r["exchange_seconds"], r["ort_seconds"], strict=True)
    ]
    return {
        "min_ms": min(run[0] for run in runs) * 1e3,
        "median_ms": statistics.median(run[0] for run in runs) * 1e3,
        "against_one": _ratio(one, results),
        "against_threads": _ratio(many, results),
        "not_ort": statistics.median(1 - ort / whole for whole, _, ort in runs),
        "exchange": statistics.median(exchange / whole for whole, exchange, _ in runs),
        "held_bytes": statistics.median(r["held_bytes"] for r in results),
        "peak_bytes": statistics.median(r["peak_bytes"] for r in results),
    }


def _ratio(base: list[dict[str, Any]], results: list[dict[str, Any]]) -> float:
    """How many times as fast, by the medians of each round."""
    medians = [[statistics.median(r["seconds"]) for r in rows] for rows in (base, results)]
    return float(statistics.median(b / r for b, r in zip(*medians, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
