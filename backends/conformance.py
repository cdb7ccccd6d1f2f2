"""What every backend must do: each collective and each executor against its meaning, bit for bit.

`python -m backends.conformance NAME --ranks 1,2,3,4` tries a backend, built in or plugged in, and
prints how many cases it has passed on each number of ranks; a test calls `check_backend`. The cases
are in `conformance_cases.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from graph.dialect import Collective
from graph.errors import ExecutionError

from . import job, registry
from .base import Backend, BackendOptions, Communicator, Executor
from .comm_local import SingleCommunicator, run_together
from .conformance_cases import Case, collective_cases
from .conformance_executor import executor_cases
from .launch import launch
from .rank_main import rank_main

TIMEOUT_SECONDS = 300.0
RANKS = (1, 2, 3, 4)
Run = Callable[[Collective, list[np.ndarray]], Mapping[int, np.ndarray]]
"""Runs a collective on all ranks' operands; results of the ranks that this process can see."""


def check_backend(name: str, ranks: int, collectives: str | None = None) -> int:
    """Try a backend on so many ranks, which are started if need be; the number of cases passed.

    `collectives` is what the ranks exchange by instead of the backend's own library.

    Raises:
        BackendUnavailable: it cannot run here.
        ExecutionError: a case failed; stderr says which and how.
    """
    backend = registry.get(name, BackendOptions(collectives=collectives))
    if ranks == 1 or backend.communicator is None:
        return _check_alone(backend, ranks)
    with tempfile.TemporaryDirectory(prefix="tpcore-conformance-") as folder:
        result = Path(folder, "passed.json")
        command = [sys.executable, "-m", __spec__.name, name, "--as-rank", str(result)]
        command += ["--collectives", collectives] if collectives else []
        status = launch(command, ranks, TIMEOUT_SECONDS, launcher=backend.find_launcher())
        if status or not result.is_file():
            raise ExecutionError(
                f"backend '{name}' fails the conformance suite on {ranks} ranks (status {status}). "
                "The first case that fails stands above."
            )
        return int(json.loads(result.read_text()))


def _check_alone(backend: Backend, ranks: int) -> int:
    """Try all ranks in this process."""
    executor = backend.executor()
    for check in executor_cases():
        check(executor)
    communicator = SingleCommunicator()
    for case in (cases := collective_cases(ranks)):
        if ranks == 1:
            check_between(case, communicator, executor)
        else:
            check_case(case, lambda op, parts: dict(enumerate(run_together(op, parts))))
    return len(executor_cases()) + len(cases)


def check_rank(backend: Backend, communicator: Communicator) -> int:
    """Try a backend as one rank of a job; the number of cases passed."""
    executor = backend.executor()
    for check in executor_cases():
        check(executor)
    cases = collective_cases(communicator.size)
    for case in cases:
        check_between(case, communicator, executor)
    return len(executor_cases()) + len(cases)


def check_between(case: Case, communicator: Communicator, executor: Executor) -> None:
    """Run a case as a program does, in the executor's tensors where the communicator takes them,
    and once more on arrays that must not change."""
    rank = communicator.rank

    def natively(op: Collective, operands: list[np.ndarray]) -> Mapping[int, np.ndarray]:
        tensor = executor.to_tensor(operands[rank])
        if not communicator.takes(tensor):
            return {rank: communicator.run(op, operands[rank])}
        return {rank: executor.to_array(communicator.run(op, tensor))}

    def keeping(op: Collective, operands: list[np.ndarray]) -> Mapping[int, np.ndarray]:
        before = operands[rank].tobytes()
        result = communicator.run(op, operands[rank], keep=True)
        _expect(operands[rank].tobytes() == before, f"{case.name}: the operand has changed")
        return {rank: result}

    check_case(case, natively)
    if case.again:
        check_case(case, keeping)


def check_case(case: Case, run: Run) -> None:
    """Compare the results with the meaning, bitwise. Raises ExecutionError."""
    op, operands = case.make()
    expected = op.meaning(operands)
    for rank, result in run(op, [_writable(array) for array in operands]).items():
        want = expected[rank]
        _expect(
            result.dtype == want.dtype and result.shape == want.shape,
            f"{case.name}: rank {rank} has {result.dtype}{list(result.shape)} where "
            f"{want.dtype}{list(want.shape)} is expected",
        )
        _expect(result.tobytes() == want.tobytes(), f"{case.name}: rank {rank} has other values")


def _writable(array: np.ndarray) -> np.ndarray:
    """A copy with the same strides, as far as they matter."""
    if array.flags.c_contiguous:
        return array.copy()
    return np.asarray(array.T.copy(order="C").T)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ExecutionError(f"{otherwise}.")


def main(words: Sequence[str] | None = None) -> int:
    """Try a backend on some numbers of ranks, or as one rank of a job."""
    parser = argparse.ArgumentParser(prog="python -m backends.conformance", description=__doc__)
    parser.add_argument("name", help="name of the backend")
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)), help="numbers of ranks")
    parser.add_argument("--collectives", help="exchange by gloo or mpi instead, through the host")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.as_rank is None:
        for ranks in map(int, args.ranks.split(",")):
            passed = check_backend(args.name, ranks, args.collectives)
            print(f"{args.name} on {ranks} ranks: {passed} cases passed", flush=True)
        return 0
    backend = registry.get(args.name, BackendOptions(collectives=args.collectives))
    joined = job.join(TIMEOUT_SECONDS, backend.communicator)
    passed = check_rank(backend, joined.communicator)
    if all(int(text) == passed for text in joined.communicator.exchange(str(passed).encode())):
        args.as_rank.write_text(json.dumps(passed))
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(main))
