"""Whether the planner tells the truth: predicted against measured time of a 200 M-parameter Llama.

    python -m bench.predict [--ranks 1 2] [--rounds 5] [--threads 1] [--topology FILE]

Calibrates this machine unless a topology is given, then runs decode (one token, a cache of 512) and
prefill (128 tokens) in fp32 on every number of ranks, interleaved round by round. Prints the
predicted time, the median over the rounds of each round's median run, and their ratio; status 1 if
one lies outside 0.7 to 1.4. A machine that does other work besides is slower than it was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from backends.launcher import find_launcher
from tests.big_model import make

CASES = {"decode": {"sequence": 1, "cache": 512}, "prefill": {"sequence": 128}}
RUNS = 5
TIMEOUT_SECONDS = 600
LEAST, MOST = 0.7, 1.4


def main() -> int:
    """Calibrate, run all cases, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--topology", help="file written by tpcore calibrate")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as scratch:
        topology = args.topology or _calibrate(Path(scratch, "topology.json"), args)
        commands = {}
        for case, sizes in CASES.items():
            sizes = {**sizes, "layers": args.layers}
            model = make(Path(scratch, f"{case}.onnx"), **sizes)
            for ranks in args.ranks:
                commands[case, ranks] = _child(model, topology, args.threads, sizes, ranks)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in commands}
        for _ in range(args.rounds):
            for key, command in commands.items():
                found[key].append(_measure(command))
    return _print_table(found)


def _calibrate(path: Path, args: argparse.Namespace) -> str:
    """Measure this machine with the numbers of ranks that are asked for."""
    ranks = ",".join(map(str, sorted({*args.ranks, 2})))
    command = [sys.executable, "-m", "tpcore", "calibrate", "-o", str(path), "--ranks", ranks]
    subprocess.run([*command, "--threads", str(args.threads)], check=True, stdout=sys.stderr)
    return str(path)


def _child(
    model: Path, topology: str, threads: int, sizes: dict[str, int], ranks: int
) -> list[str]:
    arguments = [str(model), topology, str(RUNS), str(threads), json.dumps(sizes)]
    command = [sys.executable, "-m", "bench.predict_child", *arguments]
    return command if ranks == 1 else find_launcher().command(command, ranks)


def _measure(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _print_table(found: dict[tuple[str, int], list[dict[str, Any]]]) -> int:
    print(
        f"{'':10}{'tp':>3}{'predicted ms':>14}{'measured ms':>13}{'ratio':>7}{'least ms':>10}"
        f"{'exchange':>10}"
    )
    ratios = []
    for (case, ranks), rounds in found.items():
        predicted = rounds[0]["predicted"]
        measured = statistics.median(statistics.median(r["seconds"]) for r in rounds)
        least = min(min(r["seconds"]) for r in rounds)
        exchange = statistics.median(r["exchange"] for r in rounds)
        ratios.append(predicted / measured)
        counts = ", ".join(f"{n} {op}" for op, n in sorted(rounds[0]["collectives"].items()))
        print(
            f"{case:10}{ranks:>3}{predicted * 1e3:>14.1f}{measured * 1e3:>13.1f}"
            f"{ratios[-1]:>7.2f}{least * 1e3:>10.1f}{exchange:>10.1%}  {counts}"
        )
    return 0 if all(LEAST <= ratio <= MOST for ratio in ratios) else 1


if __name__ == "__main__":
    sys.exit(main())
