"""How long a plan takes for graphs shaped like Llama 8B, 70B and 405B, from the file to the plan.

    python -m bench.plan_time

The weights are holes in a file and never read. Written out op by op, as torch.onnx does; and for
8B as onnxruntime-genai writes it, its prefill and decode steps planned together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench import open_decoder
from tests.big_model import LlamaShape, make
from tpcore.partition import Options, plan_models, shard_plan
from tpcore.report import count_collectives

VOCABULARY = 128_256
SHAPES: dict[str, tuple[float, int, dict[str, int]]] = {
    "8B": (2.0, 8, dict(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8)),
    "70B": (5.0, 8, dict(layers=80, hidden=8192, intermediate=28672, heads=64, kv_heads=8)),
    "405B": (10.0, 16, dict(layers=126, hidden=16384, intermediate=53248, heads=128, kv_heads=8)),
}
"""Name -> seconds allowed, number of ranks, sizes."""
TOPOLOGY = "h100-nvlink-ndr"
TOKENS = {"prefill": 2048, "decode": 256}
PLENTY = 1 << 50
"""Memory is not what is measured here."""


def main() -> int:
    """Print a line per graph; the status is 1 if one took longer than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default=TOPOLOGY)
    args = parser.parse_args()
    late = 0
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as scratch:
        print(f"{'graph':14}{'nodes':>7}{'tp':>4}{'seconds':>9}{'allowed':>9}  collectives")
        for name, (allowed, ranks, sizes) in SHAPES.items():
            path = Path(scratch, f"{name}.onnx")
            make(path, seed=None, vocabulary=VOCABULARY, sequence=1, **sizes)
            late += _show(
                name, path, allowed, Options(ranks, topology=args.topology, memory=PLENTY)
            )
            path.with_name(path.name + ".data").unlink()
        path = Path(scratch, "joint.onnx")
        open_decoder.make(path, LlamaShape(vocabulary=VOCABULARY, **SHAPES["8B"][2]))
        options = Options(8, topology=args.topology, memory=PLENTY, tokens=TOKENS)
        _show("8B, jointly", path, float("inf"), options)
    return int(late > 0)


def _show(name: str, path: Path, allowed: float, options: Options) -> bool:
    start = time.perf_counter()
    plans = plan_models(path, options)
    seconds = time.perf_counter() - start
    nodes = len(plans[0].model.graph)
    counts = {plan.work.name: _counts(plan, options) for plan in plans}
    text = "; ".join(f"{work}: {c}" if len(plans) > 1 else c for work, c in counts.items())
    print(f"{name:14}{nodes:>7}{options.tp:>4}{seconds:>9.2f}{allowed:>9.0f}  {text}", flush=True)
    return seconds > allowed


def _counts(plan: Any, options: Options) -> str:
    found = Counter(count_collectives(shard_plan(plan, options).model))
    return ", ".join(f"{count} {op}" for op, count in sorted(found.items()))


if __name__ == "__main__":
    sys.exit(main())
