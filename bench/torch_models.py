"""Print whether every test model, split and computed by torch, equals the whole in onnxruntime.

    python -m bench.torch_models                       all test models at tp 1 2 4, and in 16 bits
    python -m bench.torch_models --models llama gpt2   those whose name begins so
    python -m bench.torch_models --families            the families at tp 2 instead
    python -m bench.torch_models --device cuda --compile

All ranks run in lockstep in this process. Columns: largest difference, and as a share of the
output's scale; allowed are 1e-4 in float32, 1e-2 in float16, 5e-2 in bfloat16. The status is 1 if
any row is not equal.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from backends.base import Executor
from backends.exec_torch import TorchExecutor
from backends.lockstep import Lockstep
from bench.rows import compare_all
from graph.reader import read_model
from tests.families import family_cases, family_inputs, family_path
from tests.family_table import FAMILIES, TABLE
from tests.models import MODELS, model_cases, model_inputs, model_path
from tpcore.compare import TOLERANCES
from tpcore.distribute import cut_inputs, read_held
from tpcore.partition import Options
from tpcore.shard import Split, split_model
from tpcore.verify import AS_RUN, reference, setting_for

Arrays = Mapping[str, np.ndarray]
RANKS = (1, 2, 4)
DTYPES = {None: "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What TorchExecutor takes, and the type whose tolerance holds."""


@dataclass(frozen=True)
class Row:
    """One model on one number of ranks in one type."""

    model: str
    ranks: int
    dtype: str
    max_abs_diff: float
    max_rel_diff: float
    tolerance: float
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether all outputs of all input sets agree."""
        return self.max_rel_diff <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.model:28}{self.ranks:>3}  {self.dtype:9}{'yes' if self.equal else 'NO':5}"
            f"{self.max_abs_diff:>9.1e}{self.max_rel_diff:>9.1e}{self.seconds:>7.2f} s"
        )


def run_split(split: Split, executor: Executor, cases: Sequence[Arrays]) -> list[Arrays]:
    """Global outputs of all ranks for every input set."""
    models: Sequence[ir.Model] = split.ranks
    lockstep = Lockstep(models, executor)
    found: list[Arrays] = []
    for inputs in cases:
        parts = lockstep.run([cut_inputs(inputs, split.shardings, r) for r in range(len(models))])
        found.append(
            {
                name: read_held(split.shardings.get(name, "R")).join([p[name] for p in parts])
                for name in parts[0]
            }
        )
    return found


def rows_of(
    model: str,
    path: Path,
    cases: Sequence[Arrays],
    rank_counts: Sequence[int],
    dtypes: Sequence[str | None],
    device: str = "cpu",
    compile: bool = False,
    tolerance: float | None = None,
) -> Iterator[Row]:
    """A model on all numbers of ranks, in all types."""
    setting = setting_for(read_model(path))
    expected = [reference(path, inputs, setting=setting) for inputs in cases]
    for ranks in rank_counts:
        split = split_model(path, Options(ranks))
        for dtype in dtypes:
            began = time.perf_counter()
            got = run_split(split, TorchExecutor(device, dtype, compile), cases)
            seconds = time.perf_counter() - began
            found = compare_all(got, expected)
            allowed = TOLERANCES[DTYPES[dtype]]
            if dtype is None and setting == AS_RUN and tolerance is not None:
                allowed = tolerance
            yield Row(
                model, ranks, DTYPES[dtype], max(d.max_abs_diff for d in found),
                max(d.max_rel_diff for d in found), allowed, seconds,
            )  # fmt: skip


def main() -> int:
    """Print a line per row; the status is 1 if any is not equal or fails."""
    args = _arguments()
    warnings.simplefilter("ignore")
    chosen = FAMILIES if args.families else MODELS
    count = equal = 0
    for model in (m for m in chosen if any(m.startswith(start) for start in args.models)):
        try:
            for row in _rows(model, args):
                print(row, flush=True)
                count, equal = count + 1, equal + row.equal
        except Exception as error:  # whatever stops one model must not hide the others
            print(f"{model:28}  ERROR {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            count += 1
    print(f"{count} rows, {equal} equal, {count - equal} not")
    return 0 if count and equal == count else 1


def _rows(model: str, args: argparse.Namespace) -> Iterator[Row]:
    if args.families:
        cases: list[Arrays] = [family_inputs(model, case) for case in family_cases(model)]
        path, dtypes, tolerance = family_path(model), (None,), TABLE[model].tolerance
        return rows_of(
            model, path, cases, args.ranks or (2,), dtypes, args.device, args.compile, tolerance
        )
    cases = [model_inputs(model, case) for case in model_cases(model)]
    path = model_path(model)
    return rows_of(
        model, path, cases, args.ranks or RANKS, tuple(DTYPES), args.device, args.compile
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--families", action="store_true", help="the families, in float32")
    parser.add_argument("--ranks", nargs="*", type=int, help="numbers of ranks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile with torch.compile")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
