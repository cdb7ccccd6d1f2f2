"""Run ONNX's own node tests, unsplit, through the torch executor and compare with what ONNX states.

    python -m bench.torch_nodes                  all of them on CPU: a minute
    python -m bench.torch_nodes --match conv     those whose name holds a text
    python -m bench.torch_nodes --device cuda

Every case is run by ONNX Runtime on CPU as well. The status is 1 if torch is equal on fewer than
95 % of the cases that onnxruntime passes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime

from backends.base import Executor
from backends.exec_torch import TorchExecutor, missing_ops
from bench.node_cases import Array, NodeCase, node_cases
from tpcore.compare import compare

SHARE = 0.95
QUIET = 4


@dataclass(frozen=True)
class Outcome:
    """One case in torch and in onnxruntime."""

    name: str
    state: str
    """`equal`, `failed`, `no row`, or `random`."""
    reason: str
    runtime_passes: bool


def outcome_of(case: NodeCase, executor: Executor) -> Outcome:
    """Run one case both ways."""
    passes = _runtime_problem(case) == ""
    if case.may_draw:
        return Outcome(case.name, "random", "", passes)
    try:
        model = ir.serde.deserialize_model(case.model)
        missing = missing_ops(model)
        if missing:
            return Outcome(case.name, "no row", "; ".join(missing), passes)
        step = executor.prepare(model, 1)
        made = step({name: executor.to_tensor(array) for name, array in case.inputs.items()})
        arrays = {name: executor.to_array(made[name]) for name in case.expected}
        reason = problem(arrays, case)
    except Exception as error:  # whatever stops one case must not hide the others
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Outcome(case.name, "failed" if reason else "equal", reason, passes)


def problem(got: dict[str, Array], case: NodeCase) -> str:
    """What differs from what ONNX states, empty if nothing does."""
    found = [compare(name, np.asarray(got[name]), case.expected[name]) for name in case.expected]
    wrong = [
        f"'{x.name}' is off by {x.max_abs_diff:.2g}, {got[x.name].dtype}{list(got[x.name].shape)} "
        f"for {case.expected[x.name].dtype}{list(case.expected[x.name].shape)}"
        for x in found
        if not x.equal
    ]
    return "; ".join(wrong)


def _runtime_problem(case: NodeCase) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), options)
        names = list(case.expected)
        return problem(dict(zip(names, session.run(names, dict(case.inputs)))), case)
    except Exception as error:  # a type that numpy lacks, an op without a kernel
        return str(error) or "failed"


def summary(outcomes: Sequence[Outcome]) -> str:
    """The figures in a few lines."""
    states = Counter(o.state for o in outcomes)
    able = [o for o in outcomes if o.runtime_passes and o.state != "random"]
    return (
        f"{len(outcomes)} cases: {states['equal']} equal, {states['failed']} failed, "
        f"{states['no row']} without a row, {states['random']} random\n"
        f"of {len(able)} that onnxruntime passes {share(outcomes):.1%} are equal; "
        f"{sum(o.state == 'equal' and not o.runtime_passes for o in outcomes)} more are equal that "
        "it does not pass"
    )


def share(outcomes: Sequence[Outcome]) -> float:
    """Share of the cases that onnxruntime passes in which torch is equal."""
    able = [o for o in outcomes if o.runtime_passes and o.state != "random"]
    return sum(o.state == "equal" for o in able) / max(1, len(able))


def main() -> int:
    """Print every failure, every op without a row, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--match", default="", help="text that names of cases hold")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    cases, others = node_cases()
    warnings.simplefilter("ignore")
    executor = TorchExecutor(args.device)
    outcomes = [outcome_of(case, executor) for name, case in cases.items() if args.match in name]
    for one in outcomes:
        if one.state == "failed":
            mark = "" if one.runtime_passes else " (nor does onnxruntime pass)"
            print(f"failed: {one.name}{mark}: {one.reason}")
    rows = Counter(o.reason for o in outcomes if o.state == "no row")
    for reason, count in sorted(rows.items()):
        print(f"no row: {count} cases: {reason}")
    for kind, count in sorted(others.items()):
        print(f"not tried, {kind}: {count}")
    print(summary(outcomes))
    return 0 if share(outcomes) >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
