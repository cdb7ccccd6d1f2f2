"""The conformance suites for `cpu`: MPI between ranks, onnxruntime on each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.base import Executor
from backends.comm_mpi import MpiCommunicator
from backends.conformance import CollectiveSuite, ExecutorSuite
from backends.exec_ort import OrtExecutor
from graph.dialect import Collective

COMMUNICATOR = MpiCommunicator()


class TestCollectives(CollectiveSuite):
    def ranks(self) -> int:
        return COMMUNICATOR.size

    def run(self, op: Collective, operands: list[np.ndarray]) -> Mapping[int, np.ndarray]:
        rank = COMMUNICATOR.rank
        return {rank: COMMUNICATOR.run(op, operands[rank])}


class TestExecutor(ExecutorSuite):
    def executor(self) -> Executor:
        return OrtExecutor()
