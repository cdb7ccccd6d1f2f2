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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models import MODELS, Inputs, model_cases, model_inputs, model_path
from tpcore.partition import Options
from tpcore.run import read_npz, write_npz
from tpcore.shard import Split, shard, split_model
from tpcore.verify import Difference, compare, reference, run_ranks

RANKS = {"simulate": (1, 2, 3, 4, 8), "cpu": (1, 2, 4)}
RUN_TIMEOUT_SECONDS = 300
HEADER = (
    f"{'model':24}{'backend':10}{'tp':>3}  {'equal':6}{'max diff':>10}{'of scale':>10}"
    f"{'split':>8}{'largest':>9}  collectives"
)


@dataclass(frozen=True)
class Row:
    """One model on one number of ranks."""

    model: str
    backend: str
    ranks: int
    differences: Sequence[Difference]
    report: dict[str, Any]

    @property
    def equal(self) -> bool:
        """Whether all outputs of all input sets agree."""
        return all(found.equal for found in self.differences)

    def __str__(self) -> str:
        report = self.report
        largest = max(report["weight_bytes_per_rank"]) * self.ranks / report["weight_bytes_total"]
        collectives = ", ".join(f"{n} {op}" for op, n in sorted(report["collectives"].items()))
        return (
            f"{self.model:24}{self.backend:10}{self.ranks:>3}  {'yes' if self.equal else 'NO':6}"
            f"{max(d.max_abs_diff for d in self.differences):>10.1e}"
            f"{max(d.max_rel_diff for d in self.differences):>10.1e}"
            f"{report['split_fraction']:>8.3f}{largest:>9.3f}  {collectives or 'none'}"
        )


def rows(models: Sequence[str], backends: Sequence[str]) -> Iterator[Row]:
    """All rows, each computed when it is asked for."""
    for model in models:
        path = model_path(model)
        cases = [model_inputs(model, case) for case in model_cases(model)]
        expected = [reference(path, inputs) for inputs in cases]
        for backend in backends:
            for ranks in RANKS[backend]:
                split = split_model(path, Options(ranks))
                if backend == "cpu":
                    results = _run_on_mpi(path, ranks, cases)
                else:
                    results = [run_ranks(split.ranks, split.shardings, x, backend) for x in cases]
                yield _row(model, backend, split, results, expected)


def _row(
    model: str, backend: str, split: Split, results: Sequence[Inputs], expected: Sequence[Inputs]
) -> Row:
    differences = [
        compare(name, got[name], want[name])
        for got, want in zip(results, expected, strict=True)
        for name in want
    ]
    return Row(model, backend, split.sharded.mesh.size, differences, dict(split.report))


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
