"""The conformance suites for `simulate`: collectives by their meaning, onnxruntime as executor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from backends.base import Executor
from backends.comm_local import run_together
from backends.conformance import CollectiveSuite, ExecutorSuite
from backends.exec_ort import OrtExecutor
from graph.dialect import Collective


class TestCollectives(CollectiveSuite):
    @pytest.fixture(autouse=True, params=[2, 4])
    def _world(self, request: pytest.FixtureRequest) -> None:
        self._ranks = request.param

    def ranks(self) -> int:
        return self._ranks

    def run(self, op: Collective, operands: list[np.ndarray]) -> Mapping[int, np.ndarray]:
        return dict(enumerate(run_together(op, operands)))


class TestExecutor(ExecutorSuite):
    def executor(self) -> Executor:
        return OrtExecutor()
