"""The backend `echo-numpy`: numpy computes node by node, MPI exchanges as in tpcore's own `cpu`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from backends.base import Backend, Step
from backends.exchanges import EXCHANGES
from graph.interpret import interpret


class NumpyExecutor:
    """Computes segments with the oracle of tpcore's own tests; its tensors are numpy arrays."""

    def prepare(self, segment: ir.Model, threads: int) -> Step:
        """Return a function of values by name."""
        names = [value.name or "" for value in segment.graph.inputs]

        def step(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            (outputs,) = interpret([segment], [{name: values[name] for name in names}])
            # Copies: a collective may write into a result.
            return {name: np.array(array, order="C") for name, array in outputs.items()}

        return step

    def to_tensor(self, array: np.ndarray) -> np.ndarray:
        """Return the array."""
        return array

    def to_array(self, tensor: np.ndarray) -> np.ndarray:
        """Return the array."""
        return tensor


def make_backend() -> Backend:
    """What the entry point names."""
    mpi = EXCHANGES["mpi"]
    return Backend(
        name="echo-numpy",
        summary="one process per rank, numpy computes node by node, MPI exchanges",
        probe=mpi.probe,
        executor=NumpyExecutor,
        communicator=mpi.joining,
        launcher=mpi.launcher,
    )
