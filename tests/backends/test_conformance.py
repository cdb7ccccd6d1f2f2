"""Every backend that can run here passes the conformance suite on 1 to 4 ranks, and who is wrong
fails it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from backends import registry
from backends.base import Executor
from backends.comm_local import SingleCommunicator
from backends.conformance import RANKS, check_backend, check_between, check_case
from backends.conformance_cases import BIG_RANKS, collective_cases
from backends.conformance_executor import executor_cases
from backends.exec_ort import OrtExecutor
from backends.ort_binding import OrtTensor
from graph.dialect import Collective
from graph.errors import ExecutionError

CASES = {1: 512, 2: 553, 3: 566, 4: 584}
"""Known, so that no case gets lost unseen."""


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ["simulate", "cpu", "torch"])
def test_a_backend_does_what_it_must(name: str, ranks: int) -> None:
    if name not in registry.available():
        pytest.skip(registry.all_backends()[name].probe().reason)
    assert check_backend(name, ranks) == CASES[ranks]


def test_the_cases_are_what_they_say() -> None:
    cases = collective_cases(BIG_RANKS)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for op in ("AllReduce", "AllGather", "ReduceScatter", "AllToAll", "Broadcast"):
        mine = [name for name in names if name.startswith(op)]
        for word in ("float32", "float16", "bfloat16", "int32", "int64", "bool"):
            assert sum(f" {word}" in name for name in mine) >= 5, (op, word)
        for word in (" 0 B", " 1 B", " 1001 B", " 1 MiB", " 64 MiB", "transposed"):
            assert any(word in name for name in mine), (op, word)
    (transposed,) = [case for case in cases if case.name == "Broadcast of transposed operands"]
    assert not transposed.make()[1][0].flags.c_contiguous


def broken(op: Collective, operands: list[np.ndarray]) -> Mapping[int, np.ndarray]:
    """Forgets the last rank."""
    return dict(enumerate(op.meaning([*operands[:-1], operands[0]])))


def test_a_wrong_communicator_fails() -> None:
    failed = 0
    for case in collective_cases(2):
        if "64 MiB" in case.name:
            continue
        try:
            check_case(case, broken)
        except ExecutionError:
            failed += 1
    assert failed > 300


class Spoiling(SingleCommunicator):
    """Writes into operands that somebody still reads."""

    def run(self, op: Collective, operand: np.ndarray, *, keep: bool = False) -> np.ndarray:
        result = operand.copy()
        operand[...] = 0
        return result


def test_a_communicator_that_spoils_its_operand_fails() -> None:
    (case,) = [c for c in collective_cases(1) if c.name == "AllReduce sum float32 1001 B"]
    with pytest.raises(ExecutionError, match="1001 B: the operand has changed"):
        check_between(case, Spoiling(), OrtExecutor())


class Copying(OrtExecutor):
    """Hands out copies that can be written into."""

    def to_array(self, tensor: OrtTensor) -> np.ndarray:
        return super().to_array(tensor).copy()


def passes(executor: Executor) -> list[bool]:
    """Which cases an executor passes."""
    passed = []
    for check in executor_cases():
        try:
            check(executor)
            passed.append(True)
        except ExecutionError:
            passed.append(False)
    return passed


def test_an_executor_whose_copies_can_be_written_fails() -> None:
    assert all(passes(OrtExecutor()))
    assert passes(Copying()) == [*passes(OrtExecutor())[:-1], False]
