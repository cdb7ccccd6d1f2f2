"""The contract of a backend: who exchanges, who computes, and whether they can run here.

A backend receives one rank's graph (plain ONNX ops and collectives of the `tpcore` dialect) and
runs it. It knows nothing of sharding rules or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graph.dialect import Collective

Tensor = Any
"""A tensor in an executor's own form (an OrtValue, a torch tensor); `Executor` converts."""


class Communicator(Protocol):
    """Exchanges between the ranks of one mesh axis. A communicator of size one is the identity."""

    rank: int
    """This process, 0 <= rank < size."""
    size: int
    """Number of ranks."""

    def run(self, op: Collective, operand: np.ndarray) -> np.ndarray:
        """Run one collective; may use `operand` as its buffer, which is lost afterwards."""
        ...

    def exchange(self, message: bytes) -> list[bytes]:
        """Every rank's message, in rank order (control plane; every rank must call it)."""
        ...

    def abort(self, status: int) -> None:
        """End every rank of the job with a non-zero status. Does not return."""
        ...


class Step(Protocol):
    """One prepared segment: values by name in, values by name out."""

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class Executor(Protocol):
    """Computes the segments between collectives."""

    def prepare(self, segment: ir.Model, threads: int) -> Step:
        """Make a plain ONNX model (no collectives) ready to run with `threads` threads."""
        ...

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Hand a numpy array to the executor, without a copy where it can."""
        ...

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """View (or copy) an executor's tensor as numpy."""
        ...


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here."""

    ok: bool
    reason: str = ""
    """Why not, as half a sentence: 'mpi4py is not installed'."""
    hint: str = ""
    """What to do: "Install it with pip install 'tpcore[mpi]'."."""


@dataclass(frozen=True)
class Backend:
    """A named pair of communicator and executor."""

    name: str
    """Name on the command line."""
    summary: str
    """One line for `tpcore doctor`."""
    probe: Callable[[], Availability]
    """Says, without importing anything heavy, whether it can run here."""
    executor: Callable[[], Executor]
    """Makes the executor."""
    communicator: Callable[[], Communicator] | None
    """Joins the job this process was started in; None where all ranks run in this one process."""
    launcher: Callable[[Sequence[str], int], Sequence[str]] | None = None
    """The command that starts a program on n ranks; None where no launch is needed."""
    exact_executor: Callable[[], Executor] | None = None
    """Makes an executor that computes every op as written, for proofs on quantised models; None
    where `executor` does."""
