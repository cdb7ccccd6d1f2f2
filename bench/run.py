"""What a split costs on this machine: a Llama of 200 M parameters, fp32, on n ranks of one thread.

    python -m bench.run [--ranks 2] [--rounds 5] [--layers 16]

Prints wall time and peak memory of `shard`, then seconds per run of one process with one thread,
one process with n threads and n ranks with one thread each, interleaved round by round; minimum
and median over the rounds. Timings of a shared machine are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backends.launcher import find_launcher
from tests.big_model import make
from tpcore.units import human_bytes

RUNS = 5
TIMEOUT_SECONDS = 600


def main() -> int:
    """Run all measurements and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as scratch:
        model, bundle = Path(scratch, "model.onnx"), Path(scratch, "bundle")
        make(model, layers=args.layers)
        _time_shard(model, bundle, args.ranks)
        commands = {
            "1 process × 1 thread": _child(model, 1),
            f"1 process × {args.ranks} threads": _child(model, args.ranks),
            f"{args.ranks} ranks × 1 thread": find_launcher().command(
                _child(bundle, 1), args.ranks
            ),
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                found[name].append(_measure(command))
    _print_table(found)
    return 0


def _child(target: Path, threads: int) -> list[str]:
    return [sys.executable, "-m", "bench.child", str(target), str(RUNS), str(threads)]


def _measure(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _time_shard(model: Path, bundle: Path, ranks: int) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "tpcore", "shard", str(model), "--tp", str(ranks)]
    subprocess.run([*command, "-o", str(bundle)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = sum(path.stat().st_size for path in model.parent.glob("model.onnx*"))
    print(f"shard: {human_bytes(size)} in {seconds:.1f} s, peak memory {human_bytes(peak)}")


def _print_table(found: dict[str, list[dict[str, Any]]]) -> None:
    base = list(found)[1]
    print(f"{'':22}{'min ms':>9}{'median ms':>11}{'exchange':>10}{'peak/rank':>12}  against {base}")
    for name, results in found.items():
        seconds = [result["seconds"] for result in results]
        ratios = [b["seconds"] / r["seconds"] for b, r in zip(found[base], results, strict=True)]
        exchange = statistics.median(r["exchange_seconds"] / r["seconds"] for r in results)
        peak = statistics.median(result["peak_bytes"] for result in results)
        print(
            f"{name:22}{min(seconds) * 1e3:>9.1f}{statistics.median(seconds) * 1e3:>11.1f}"
            f"{exchange:>10.1%}{human_bytes(peak):>12}  {statistics.median(ratios):.2f}x"
        )


if __name__ == "__main__":
    sys.exit(main())
