"""The ranks that this process runs, with their graphs prepared: one of a job, or all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Protocol

import numpy as np
import onnx_ir as ir

from backends import job
from backends.base import Backend, Executor, HoldsCaches, Tensor
from backends.handshake import RankInfo, collective_sequence, prepare_together
from backends.lockstep import Lockstep
from backends.placement import threads_per_rank
from backends.run import RankProgram
from backends.trace import Tracer
from graph.errors import VerifyError
from tpcore.distribute import cut_inputs, read_held
from tpcore.program import Program
from tpcore.target import Target

FIRST = 0
"""The rank that speaks for all where all hold the same."""
Held = Mapping[str, Tensor]
"""Tensors of an executor by name."""


class Ranks(Protocol):
    """Runs programs on the tensors of its ranks; outputs stay where they were made."""

    @property
    def target(self) -> Target:
        """What they run."""
        ...

    @property
    def here(self) -> Sequence[int]:
        """The ranks of this process; lists of the methods have an entry for each of them."""
        ...

    @property
    def models(self) -> Mapping[str, ir.Model]:
        """The graph of the first of them, by program."""
        ...

    @property
    def seconds(self) -> float:
        """Wall time of all runs and exchanges so far."""
        ...

    @property
    def exchange_seconds(self) -> float:
        """The part of it spent in exchanges."""
        ...

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Hand an array to the executor."""
        ...

    def to_cache(self, array: np.ndarray) -> Tensor:
        """Hand a cache to the executor, which will write into it."""
        ...

    @property
    def fixed_shapes(self) -> bool:
        """Whether the executor likes steps of the same shapes."""
        ...

    def run(self, program: str, inputs: Sequence[Held]) -> list[dict[str, Tensor]]:
        """Run a program on what every rank holds. Raises ExecutionError."""
        ...

    def read(self, program: str, tensors: Sequence[Held]) -> list[dict[str, np.ndarray]]:
        """Outputs of `run` as arrays."""
        ...

    def write_into(self, outputs: Sequence[Held]) -> bool:
        """From now on put these outputs of every program there; False where that cannot be."""
        ...

    def exchange(self, messages: Sequence[bytes]) -> list[bytes]:
        """The messages of all ranks of the job."""
        ...


def run_arrays(
    ranks: Ranks, program: Program, inputs: Mapping[str, np.ndarray], names: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """What each rank here holds of the outputs of these names, from whole inputs.

    Of an output that every rank holds only the first rank tells.
    """
    shardings = program.shardings
    given = [
        {n: ranks.to_tensor(a) for n, a in cut_inputs(inputs, shardings, rank).items()}
        for rank in ranks.here
    ]
    made = ranks.run(program.name, given)
    wanted = [
        {n: held[n] for n in names if rank == FIRST or shardings.get(n, "R") != "R"}
        for rank, held in zip(ranks.here, made)
    ]
    return ranks.read(program.name, wanted)


def gathered(program: Program, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Whole outputs from what `run_arrays` gives of every rank; in memory of their own."""
    shardings = program.shardings
    return {
        name: read_held(shardings[name]).join([part[name] for part in parts])
        if shardings.get(name, "R") != "R"
        else copy(array)
        for name, array in parts[FIRST].items()
    }


def _executor(backend: Backend, programs: Sequence[str]) -> Executor:
    """One that shares weights between programs, where there are several."""
    shares = backend.sharing_executor if len(programs) > 1 else None
    return (shares or backend.executor)()


class _OnExecutor:
    """What ranks ask their executor."""

    _executor: Executor

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Hand an array to the executor."""
        return self._executor.to_tensor(array)

    def to_cache(self, array: np.ndarray) -> Tensor:
        """Hand a cache to the executor, which will write into it."""
        if isinstance(self._executor, HoldsCaches):
            return self._executor.to_cache(array)
        return self._executor.to_tensor(array)

    @property
    def fixed_shapes(self) -> bool:
        """Whether the executor likes steps of the same shapes."""
        return isinstance(self._executor, HoldsCaches) and self._executor.fixed_shapes


class AllRanks(_OnExecutor):
    """All ranks in lockstep in this process."""

    def __init__(self, target: Target, backend: Backend, programs: Sequence[str]) -> None:
        self.target = target
        self.here = range(target.world_size)
        self._executor = _executor(backend, programs)
        self._programs, self.models = {}, {}
        for name in programs:
            models = [target.load_rank(rank, name) for rank in self.here]
            self.models[name] = models[0]
            self._programs[name] = Lockstep(models, self._executor, threads=threads_per_rank(1))

    @property
    def seconds(self) -> float:
        """Wall time of all runs so far."""
        return sum(program.seconds for program in self._programs.values())

    @property
    def exchange_seconds(self) -> float:
        """The part of it spent in exchanges."""
        return sum(program.exchange_seconds for program in self._programs.values())

    def run(self, program: str, inputs: Sequence[Held]) -> list[dict[str, Tensor]]:
        """Run a program on what every rank holds."""
        return self._programs[program].run_held(inputs)

    def read(self, program: str, tensors: Sequence[Held]) -> list[dict[str, np.ndarray]]:
        """Outputs of `run` as arrays."""
        return [self._programs[program].read(held) for held in tensors]

    def write_into(self, outputs: Sequence[Held]) -> bool:
        """Put these outputs of every program there."""
        return all([program.write_into(outputs) for program in self._programs.values()])

    def exchange(self, messages: Sequence[bytes]) -> list[bytes]:
        """All ranks are here."""
        return list(messages)


class OneRank(_OnExecutor):
    """One rank of the job that this process was started in."""

    def __init__(
        self, target: Target, backend: Backend, joined: job.Job, models: Mapping[str, ir.Model]
    ) -> None:
        self.target = target
        self.here = [joined.rank]
        self.models = models
        self._job = joined
        self._executor = _executor(backend, list(models))
        self._exchanged = 0.0
        self._programs = {
            name: RankProgram(
                model,
                self._executor,
                joined.communicator,
                threads=threads_per_rank(),
                monitor=joined.monitor,
            )
            for name, model in models.items()
        }

    @property
    def seconds(self) -> float:
        """Wall time of all runs and exchanges so far."""
        return self._exchanged + sum(program.seconds for program in self._programs.values())

    @property
    def exchange_seconds(self) -> float:
        """The part of it spent in exchanges, waiting for slower ranks included."""
        programs = self._programs.values()
        return self._exchanged + sum(program.exchange_seconds for program in programs)

    def run(self, program: str, inputs: Sequence[Held]) -> list[dict[str, Tensor]]:
        """Run a program on what this rank holds."""
        return [self._programs[program].run_held(inputs[0])]

    def read(self, program: str, tensors: Sequence[Held]) -> list[dict[str, np.ndarray]]:
        """Outputs of `run` as arrays."""
        return [self._programs[program].read(tensors[0])]

    def write_into(self, outputs: Sequence[Held]) -> bool:
        """Put these outputs of every program there."""
        return all([program.write_into(outputs[0]) for program in self._programs.values()])

    def exchange(self, messages: Sequence[bytes]) -> list[bytes]:
        """The messages of all ranks of the job."""
        began = time.perf_counter()
        received = self._job.communicator.exchange(messages[0])
        self._exchanged += time.perf_counter() - began
        return received


def join_job(
    opened: Callable[[], Target],
    backend: Backend,
    wanted: Callable[[Target], Sequence[str]],
    timeout_seconds: float,
    tracer: Tracer | None = None,
) -> OneRank:
    """Join this process's job and prepare those of the target's programs that are `wanted`.

    What they do is noted by the `tracer`, if there is one.
    """
    joined = job.join(timeout_seconds, backend.communicator)
    target, models = load_together(joined, opened, wanted)
    return OneRank(target, backend, tracer.watch(joined) if tracer else joined, models)


def load_together(
    joined: job.Job, opened: Callable[[], Target], wanted: Callable[[Target], Sequence[str]]
) -> tuple[Target, dict[str, ir.Model]]:
    """This rank's graphs of the programs that are `wanted`, once all ranks agree on what they run.

    Every rank takes part in the handshake even if it could not open its files, so that no other
    rank waits for it; what `opened` and `wanted` raise ends all ranks with one message.
    """

    def prepare() -> tuple[tuple[Target, dict[str, ir.Model]], RankInfo, list[str]]:
        target = opened()
        info = RankInfo(target.id, target.format, target.world_size)
        if target.world_size != joined.size:
            return (target, {}), info, []  # what all ranks agree on is then refused
        models = {name: target.load_rank(joined.rank, name) for name in wanted(target)}
        sequences = [collective_sequence(model) for model in models.values()]
        return (target, models), info, [entry for sequence in sequences for entry in sequence]

    target, models = prepare_together(joined.communicator, prepare)
    if not models:
        raise VerifyError(f"'{target.name}' passed the handshake with {joined.size} ranks.")
    return target, models
