"""The contract of a backend: who exchanges, who computes, and whether they can run here.

A backend receives one rank's graph (plain ONNX ops and collectives of the `tpcore` dialect) and
runs it. It knows nothing of sharding rules or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from graph.dialect import Collective
from graph.errors import PlanError

Tensor = Any
"""A tensor in an executor's own form (an OrtValue, a torch tensor); `Executor` converts."""


class Communicator(Protocol):
    """Exchanges between the ranks of one mesh axis. A communicator of size one is the identity.

    Every communicator takes numpy arrays. One that works where an executor's tensors lie takes
    those as well, so that nothing is copied to the host; `takes` says which.
    """

    rank: int
    """This process, 0 <= rank < size."""
    size: int
    """Number of ranks."""
    asynchronous: bool
    """Whether `run` may return before the exchange is done; whoever reads the result waits."""

    def takes(self, tensor: Tensor) -> bool:
        """Whether `run` takes this tensor of an executor as it is."""
        ...

    def run(self, op: Collective, operand: Tensor, *, keep: bool = False) -> Tensor:
        """Run one collective on a numpy array or a tensor it takes; the result is of that kind.

        `operand` may serve as the buffer, and is lost afterwards, unless `keep` says that somebody
        still reads it.
        """
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


@runtime_checkable
class WritesInto(Protocol):
    """A step that can put outputs into tensors that are there already."""

    def write_into(self, outputs: Mapping[str, Tensor]) -> None:
        """From now on put these outputs into these tensors, which may be its inputs as well."""
        ...


class Executor(Protocol):
    """Computes the segments between collectives."""

    def prepare(self, segment: ir.Model, threads: int) -> Step:
        """Make a plain ONNX model (no collectives) ready to run with `threads` threads."""
        ...

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Hand a numpy array to the executor, without a copy where it can."""
        ...

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """View an executor's tensor as numpy, or copy it where numpy cannot reach its memory.

        A copy is read-only: what somebody wrote into it would be lost.
        """
        ...


@runtime_checkable
class RunsNative(Protocol):
    """An executor whose segments may hold the ops of `native.c`."""

    runs_native: bool


@runtime_checkable
class HoldsCaches(Protocol):
    """An executor with wishes for the caches of a decoder."""

    fixed_shapes: bool
    """Whether steps of the same shapes follow each other faster than steps on growing masks."""

    def to_cache(self, array: np.ndarray) -> Tensor:
        """Hand it a cache that it will write into: as `to_tensor`, in the type it computes in."""
        ...


class RankLauncher(Protocol):
    """What starts a program on n ranks of this machine."""

    def command(self, argv: Sequence[str], ranks: int) -> list[str]:
        """The command that starts `argv` on `ranks` ranks."""
        ...

    def environment(self) -> dict[str, str]:
        """Variables that the command needs."""
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
class BackendOptions:
    """What a run asks of its backend; None and False leave it as it is."""

    dtype: str | None = None
    """Compute in 'fp32', 'fp16' or 'bf16' instead of what the model says."""
    compile: bool = False
    """Whether the executor may spend time on compiling before the first run."""
    collectives: str | None = None
    """Exchange with 'gloo' or 'mpi', through the host's memory, whatever the device."""

    def check_only(self, backend: str, *allowed: str) -> None:
        """Refuse what `backend` has no use for. Raises PlanError."""
        default = BackendOptions()
        asked = [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]
        refused = [f"--{name}" for name in asked if name not in allowed]
        if refused:
            takes = ", ".join(f"--{name}" for name in allowed) or "none of these options"
            raise PlanError(
                f"backend '{backend}' does not take {' and '.join(refused)}: it takes {takes}. "
                "Leave it out, or choose another backend with --backend."
            )


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
    communicator: Callable[[Communicator], Communicator] | None
    """Makes the communicator of a job from the one through which its ranks have met; None where all
    ranks run in this one process."""
    launcher: Callable[[], RankLauncher] | None = None
    """Finds what starts a program on n ranks; None where no launch is needed."""
    exact_executor: Callable[[], Executor] | None = None
    """Makes an executor that computes every op as written, for proofs on quantised models; None
    where `executor` does."""
    reference_executor: Callable[[], Executor] | None = None
    """Makes the executor of the unsplit model in proofs, which shares no memory with files; None
    where `executor` does."""
    sharing_executor: Callable[[], Executor] | None = None
    """Makes an executor that reads mapped weights where they lie, so that several programs share
    one copy; None where `executor` does."""
    configure: Callable[[BackendOptions], Backend] | None = None
    """Makes the same backend with options, or raises PlanError; None where it takes none."""

    def find_launcher(self) -> RankLauncher | None:
        """What starts its ranks; None where it has none of its own."""
        return None if self.launcher is None else self.launcher()
