"""Print, for every test model and number of ranks, whether the split model equals the unsplit one.

    python -m bench.table                        all models, tp 1 2 3 4 8 on simulate, 1 2 4 on cpu
    python -m bench.table --models llama gpt2    those whose name begins so
    python -m bench.table --backend simulate

Columns: largest absolute difference, and as a share of the output's scale (allowed 1e-4); share of
the weight bytes that is split; largest rank's bytes over 1/tp of the whole; collectives.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.rows import HEADER, Row, compare_all, simulated_row
from tests.models import MODELS, Inputs, model_cases, model_inputs, model_path
from tpcore.partition import Options
from tpcore.run import read_npz, write_npz
from tpcore.shard import shard, split_model
from tpcore.verify import reference

RANKS = {"simulate": (1, 2, 3, 4, 8), "cpu": (1, 2, 4)}
RUN_TIMEOUT_SECONDS = 300


def rows(models: Sequence[str], backends: Sequence[str]) -> Iterator[Row]:
    """All rows, each computed when it is asked for."""
    for model in models:
        path = model_path(model)
        cases = [model_inputs(model, case) for case in model_cases(model)]
        expected = [reference(path, inputs) for inputs in cases]
        for backend in backends:
            for ranks in RANKS[backend]:
                if backend == "simulate":
                    yield simulated_row(model, path, ranks, cases, expected)[0]
                else:
                    report = split_model(path, Options(ranks)).report
                    differences = compare_all(_run_on_mpi(path, ranks, cases), expected)
                    yield Row(model, backend, ranks, differences, report)


def _run_on_mpi(path: Path, ranks: int, cases: Sequence[Inputs]) -> list[Inputs]:
    """Run a bundle with `tpcore run --backend cpu`, as a user would."""
    found = []
    with tempfile.TemporaryDirectory(prefix="tpcore-table-") as scratch:
        bundle, given, made = (Path(scratch, name) for name in ("bundle", "x.npz", "y.npz"))
        shard(path, bundle, Options(ranks))
        for inputs in cases:
            write_npz(given, inputs)
            command = [sys.executable, "-m", "tpcore", "run", str(bundle), "--backend", "cpu"]
            command += ["--inputs", str(given), "--outputs", str(made)]
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, timeout=RUN_TIMEOUT_SECONDS
            )
            found.append(read_npz(made))
    return found


def main() -> int:
    """Print the table; the status is 1 if any row is not equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[""], help="beginnings of model names")
    parser.add_argument("--backend", nargs="*", default=list(RANKS), choices=list(RANKS))
    args = parser.parse_args()
    chosen = [model for model in MODELS if any(model.startswith(m) for m in args.models)]
    print(HEADER)
    wrong = count = 0
    for row in rows(chosen, args.backend):
        print(row, flush=True)
        count += 1
        wrong += not row.equal
    print(f"{count} rows, {count - wrong} equal, {wrong} wrong")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
