"""Send ONNX's own node tests through tpcore, from file to rank graphs, and compare with the whole.

    python -m bench.node_tests                  all of them on 2 and on 3 ranks: minutes
    python -m bench.node_tests --match conv     those whose name holds a text
    python -m bench.node_tests --json rows.jsonl

Every test runs as ONNX gives it (all operands are inputs), with its operands as weights, and once
more by a random plan that splits every node that can be. ONNX Runtime runs them; where it refuses
the unsplit model, graph.interpret runs both. The status is 1 if any result differs or is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import onnx_ir as ir

from backends.placement import usable_cores
from bench.node_cases import Array, NodeCase, node_cases, with_weights
from graph.errors import TpcoreError
from graph.interpret import interpret
from graph.reader import read_model
from tests.tpcore.random_plans import split_plan_of
from tpcore.compare import compare
from tpcore.distribute import cut_inputs, read_held
from tpcore.partition import Options
from tpcore.shard import Split, split_model, split_plan
from tpcore.verify import reference, run_ranks

RANKS = (2, 3)
SEEDS = 2
"""Random plans per test and number of ranks."""
CHUNK = 8
"""Tests that a process takes at a time."""

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Result:
    """One test in one form on a number of ranks."""

    name: str
    form: str
    """`given`, `weights` or `random plan`."""
    ranks: int
    state: str = "equal"
    """`equal`, `failed`, or what stands in the way: `random`, `does not run unsplit`."""
    reason: str = ""
    split: bool = False
    """Whether a node runs on parts."""
    by_reference: bool = False
    """Whether graph.interpret ran it, as ONNX Runtime refuses the unsplit model."""
    as_expected: bool = False
    """Whether the unsplit model gives what ONNX states."""

    def __str__(self) -> str:
        return f"{self.state}: {self.name} ({self.form}, {self.ranks} ranks): {self.reason}"


@dataclass(frozen=True)
class Unsplit:
    """A model file and what it computes."""

    case: NodeCase
    path: Path
    outputs: Arrays | None = None
    by_reference: bool = False
    reason: str = ""
    """Why there are no outputs."""
    draws: bool = False
    """Whether another run gives other outputs."""

    @classmethod
    def of(cls, case: NodeCase, path: Path) -> Unsplit:
        """Write the model and run it."""
        path.write_bytes(case.model.SerializeToString())
        refusals = []
        for run in (_whole_by_runtime, _whole_by_reference):
            try:
                outputs = run(path, case.inputs)
                draws = case.may_draw and _problem(run(path, case.inputs), outputs) != ""
            except Exception as error:  # whatever stops one test must not hide the others
                refusals.append(_one_line(error))
                continue
            return cls(case, path, outputs, run is _whole_by_reference, draws=draws)
        return cls(case, path, reason=" | ".join(refusals))

    def compare(self, form: str, ranks: int, make: Callable[[], Split]) -> Result:
        """Split, run all ranks, compare."""
        result = Result(self.case.name, form, ranks, by_reference=self.by_reference)
        try:
            split = make()
            result = replace(result, split=bool(split.sharded.chains))
            if self.outputs is None:
                return replace(result, state="does not run unsplit", reason=self.reason)
            run = _ranks_by_reference if self.by_reference else run_ranks
            got = run(split.ranks, split.shardings, self.case.inputs)
        except Exception as error:  # whatever stops one test must not hide the others
            return replace(result, state="failed", reason=_one_line(error))
        if self.draws:
            return replace(result, state="random")
        problem = _problem(got, self.outputs)
        as_expected = not _problem(self.outputs, self.case.expected)
        state = "failed" if problem else "equal"
        return replace(result, state=state, reason=problem, as_expected=as_expected)


def _whole_by_runtime(path: Path, inputs: Arrays) -> Arrays:
    return reference(path, inputs)


def _whole_by_reference(path: Path, inputs: Arrays) -> Arrays:
    return interpret([read_model(path)], [inputs])[0]


def _ranks_by_reference(
    ranks: Sequence[ir.Model], shardings: Mapping[str, str], inputs: Arrays
) -> Arrays:
    parts = [cut_inputs(inputs, shardings, rank) for rank in range(len(ranks))]
    results = interpret(ranks, parts)
    return {
        name: read_held(shardings.get(name, "R")).join([result[name] for result in results])
        for name in results[0]
    }


def _problem(got: Arrays, want: Arrays) -> str:
    """What differs, empty if nothing does."""
    found = [compare(name, np.asarray(got[name]), np.asarray(want[name])) for name in want]
    return "; ".join(f"'{x.name}' is off by {x.max_abs_diff:.2g}" for x in found if not x.equal)


def _one_line(error: Exception) -> str:
    kind = "" if isinstance(error, TpcoreError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]


def results_of(name: str, rank_counts: Sequence[int]) -> list[Result]:
    """A test in all forms on all numbers of ranks."""
    case, found = node_cases()[0][name], []
    with tempfile.TemporaryDirectory(prefix="tpcore-node-") as folder:
        given = Unsplit.of(case, Path(folder, "given.onnx"))
        for ranks in rank_counts:
            models, weighted = {"given": given}, with_weights(case, ranks)
            if weighted is not case:
                models["weights"] = Unsplit.of(weighted, Path(folder, f"weights{ranks}.onnx"))
            for form, model in models.items():
                make = partial(split_model, model.path, Options(ranks))
                found.append(model.compare(form, ranks, make))
            for seed in range(SEEDS):
                make = partial(_split_at_random, model.path, ranks, crc32(name.encode()) + seed)
                found.append(model.compare("random plan", ranks, make))
    return found


def _split_at_random(path: Path, ranks: int, seed: int) -> Split:
    return split_plan(split_plan_of(path, ranks, seed), Options(ranks))


def all_results(names: Sequence[str], rank_counts: Sequence[int]) -> Iterator[Result]:
    """Results of many tests, computed on all cores."""
    silent = partial(warnings.simplefilter, "ignore")  # numpy's, of tests about NaN and infinity
    with ProcessPoolExecutor(usable_cores(), initializer=silent) as pool:
        work = partial(results_of, rank_counts=rank_counts)
        for found in pool.map(work, names, chunksize=CHUNK):
            yield from found


def summary(results: Sequence[Result], ranks: int) -> str:
    """The figures of one number of ranks in a line."""
    here = [r for r in results if r.ranks == ranks]
    states = Counter(r.state for r in here)
    equal = [r for r in here if r.state == "equal"]
    tests = {r.name for r in here}
    split = {r.name for r in equal if r.split}
    failed = {r.name for r in here if r.state == "failed"}
    return (
        f"{ranks} ranks: {len(tests)} tests in {len(here)} runs: {states['equal']} equal, of those "
        f"{sum(r.split for r in equal)} split and {sum(not r.split for r in equal)} left whole; "
        f"{states['failed']} failed, {states['random']} random, {states['does not run unsplit']} "
        f"do not run unsplit. Tests: {len(split)} split in some run, {len(failed)} failed; "
        f"{sum(r.by_reference for r in equal)} runs by reference"
    )


def notes(results: Sequence[Result]) -> Iterator[str]:
    """Tests that could not be compared, a line each."""
    for state in ("random", "does not run unsplit"):
        reasons = {r.name: r.reason for r in results if r.state == state}
        for name, reason in sorted(reasons.items()):
            yield f"{state}: {name}" + (f": {reason}" if reason else "")


def main() -> int:
    """Print every failure, then the figures; the status is 1 if any test failed."""
    args = _arguments()
    cases, others = node_cases()
    names = [name for name in cases if args.match in name]
    results = []
    for result in all_results(names, args.ranks):
        results.append(result)
        if result.state == "failed":
            print(result, flush=True)
    for line in notes(results):
        print(line)
    for kind, count in sorted(others.items()):
        print(f"not tried, {kind}: {count}")
    stated = {r.name for r in results if r.form == "given" and r.as_expected}
    print(f"{len(stated)} of {len(names)} unsplit results are as ONNX states them")
    for ranks in args.ranks:
        print(summary(results, ranks))
    if args.json is not None:
        args.json.write_text("".join(json.dumps(asdict(r)) + "\n" for r in results))
    return 1 if not results or any(r.state == "failed" for r in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--match", default="", help="text that names of tests hold")
    parser.add_argument("--json", type=Path, help="file for the results, one object a line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
