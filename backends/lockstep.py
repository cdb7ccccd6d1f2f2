"""Run the graphs of all ranks in lockstep in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graph.errors import ExecutionError, TpcoreError

from .base import Executor, Tensor
from .comm_local import run_together
from .handshake import check_sequences, collective_sequence
from .input_check import input_check
from .run import Steps, constants_of, prepare_steps, write_into
from .segments import Exchange, cut

Hook = Callable[[int, str, np.ndarray], None]
"""Called with (rank, value name, contents) for every value of every rank, in program order."""


def run_lockstep(
    models: Sequence[ir.Model],
    inputs: Sequence[Mapping[str, np.ndarray]],
    executor: Executor,
    *,
    threads: int = 1,
    hook: Hook | None = None,
) -> list[dict[str, np.ndarray]]:
    """Run the graphs of all ranks in this process, one step of every rank at a time.

    With a `hook`, every value of every rank is computed as an output of its own and shown to it.
    Raises BundleError if the ranks' collectives differ, and what `RankProgram.run` raises.
    """
    return Lockstep(models, executor, threads=threads, expose_all=hook is not None).run(
        inputs, hook
    )


class Lockstep:
    """The graphs of all ranks, prepared once to be run in this process."""

    def __init__(
        self,
        models: Sequence[ir.Model],
        executor: Executor,
        *,
        threads: int = 1,
        expose_all: bool = False,
    ) -> None:
        check_sequences([collective_sequence(model) for model in models])
        self.seconds = 0.0
        """Wall time of all runs so far."""
        self.exchange_seconds = 0.0
        """The part of it spent in collectives."""
        self._executor = executor
        self._programs = [cut(model, expose_all=expose_all) for model in models]
        self._checks = [input_check(program.inputs) for program in self._programs]
        self._steps = [prepare_steps(program, executor, threads) for program in self._programs]
        self._constants = [constants_of(program, executor) for program in self._programs]

    def run(
        self, inputs: Sequence[Mapping[str, np.ndarray]], hook: Hook | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Run all ranks on their inputs; outputs by name, per rank."""
        to_tensor = self._executor.to_tensor
        for check, given in zip(self._checks, inputs):
            check(given)
        tensors = [{n: to_tensor(array) for n, array in given.items()} for given in inputs]
        return [self.read(outputs) for outputs in self.run_held(tensors, hook)]

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Outputs of `run_held` as arrays, of one rank."""
        return {name: self._executor.to_array(tensor) for name, tensor in tensors.items()}

    def write_into(self, outputs: Sequence[Mapping[str, Tensor]]) -> bool:
        """As `RankProgram.write_into`, for every rank."""
        return all([write_into(*pair) for pair in zip(self._steps, outputs)])

    def run_held(
        self, inputs: Sequence[Mapping[str, Tensor]], hook: Hook | None = None
    ) -> list[dict[str, Tensor]]:
        """As `RankProgram.run_held`, for every rank."""
        began = time.perf_counter()
        values = [{**given, **held} for given, held in zip(inputs, self._constants)]
        queues = [iter(steps) for steps in self._steps]
        while True:
            waiting = [
                self._until_exchange(rank, queue, held, hook)
                for rank, (queue, held) in enumerate(zip(queues, values))
            ]
            if waiting[0] is None:
                break
            self._exchange([step for step in waiting if step is not None], values, hook)
        self.seconds += time.perf_counter() - began
        return [
            {name: held[name] for name in program.outputs}
            for program, held in zip(self._programs, values)
        ]

    def _until_exchange(
        self, rank: int, queue: Steps, values: dict[str, Tensor], hook: Hook | None
    ) -> Exchange | None:
        """Run a rank's segments up to its next collective, which is returned."""
        for step, prepared in queue:
            if isinstance(step, Exchange):
                return step
            if prepared is not None:
                try:
                    made = prepared(values)
                except TpcoreError as error:
                    raise ExecutionError(f"rank {rank}: {error}") from error
                values.update(made)
                self._show(rank, made, hook)
            for name in step.drop:
                values.pop(name, None)
        return None

    def _exchange(
        self, steps: Sequence[Exchange], values: list[dict[str, Tensor]], hook: Hook | None
    ) -> None:
        operands = [
            self._executor.to_array(held[step.operand]) for step, held in zip(steps, values)
        ]
        began = time.perf_counter()
        results = run_together(steps[0].op, operands)
        self.exchange_seconds += time.perf_counter() - began
        for rank, (step, held, result) in enumerate(zip(steps, values, results)):
            held[step.result] = self._executor.to_tensor(result)
            self._show(rank, {step.result: held[step.result]}, hook)
            for name in step.drop:
                held.pop(name, None)

    def _show(self, rank: int, values: Mapping[str, Tensor], hook: Hook | None) -> None:
        if hook is not None:
            for name, tensor in values.items():
                hook(rank, name, self._executor.to_array(tensor))
