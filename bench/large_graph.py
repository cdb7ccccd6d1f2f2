"""How long the split of a large graph takes: a Llama of 31 layers, more than 2 000 nodes, op by op.

    python -m bench.large_graph [--layers 31] [--ranks 2 4 8]

Prints per number of ranks the seconds from the file to the written bundle. The weights are small,
so that what is measured is the work on the graph.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from graph.reader import read_model
from tests.big_model import make
from tpcore.partition import Options
from tpcore.shard import shard

SIZES = {"hidden": 64, "intermediate": 160, "heads": 8, "kv_heads": 8, "vocabulary": 512}


def main() -> int:
    """Make the model, split it, print one line per number of ranks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=31)
    parser.add_argument("--ranks", nargs="*", type=int, default=[2, 4, 8])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as scratch:
        model = make(Path(scratch, "model.onnx"), layers=args.layers, **SIZES)
        nodes = len(read_model(model).graph)
        print(f"{'nodes':>8}{'tp':>4}{'seconds':>9}  collectives")
        for ranks in args.ranks:
            start = time.perf_counter()
            bundle = shard(model, Path(scratch, f"tp{ranks}"), Options(ranks))
            seconds = time.perf_counter() - start
            counts = bundle.manifest["report"]["collectives"]
            text = ", ".join(f"{n} {op}" for op, n in sorted(counts.items()))
            print(f"{nodes:>8}{ranks:>4}{seconds:>9.2f}  {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
