"""Run the graph of one rank of a job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from .base import Communicator, Executor, RunsNative, Tensor, WritesInto
from .base import Step as Prepared
from .input_check import input_check
from .native import Link, native_op
from .segments import Exchange, NativeOp, Program, Segment, cut, exchanges_of


class Monitor(Protocol):
    """Told where a rank is, before and after every step; must take less than a microsecond."""

    def register(self, places: Sequence[str], exchanges: Sequence[bool]) -> int:
        """Name a program's steps and say which are exchanges; returns the first one's number."""
        ...

    def enter(self, step: int) -> None: ...

    def leave(self, step: int) -> None: ...


class Silent:
    """A monitor that keeps nothing."""

    def register(self, places: Sequence[str], exchanges: Sequence[bool]) -> int:
        """Number the steps from 0."""
        return 0

    def enter(self, step: int) -> None:
        """Note that a step begins."""

    def leave(self, step: int) -> None:
        """Note that a step has ended."""


class RankProgram:
    """One rank's graph, prepared once and run as often as wanted."""

    def __init__(
        self,
        model: ir.Model,
        executor: Executor,
        communicator: Communicator,
        *,
        threads: int = 1,
        monitor: Monitor | None = None,
    ) -> None:
        self.seconds = 0.0
        """Wall time of all runs so far."""
        self.exchange_seconds = 0.0
        """The part of it spent in collectives, waiting for slower ranks included."""
        self._executor = executor
        self._communicator = communicator
        recorder: Monitor | None = getattr(communicator, "recorder", None)
        self._monitor = monitor or recorder or Silent()
        self._is_recorded = self._monitor is recorder
        """Whether numbers of places are the recorder's, to which compiled collectives speak."""
        exchanges = exchanges_of(model)
        # What an asynchronous exchange waits for is seen only by who reads the results.
        self._first = self._monitor.register(
            [*places(exchanges), "the wait for the outputs"],
            [*([False, True] * len(exchanges)), False, communicator.asynchronous],
        )
        self._last = self._first + 2 * len(exchanges) + 1
        self._link: Link | None = getattr(communicator, "native", None)
        self.program = cut(model, inside=self._inside)
        self._check = input_check(self.program.inputs)
        self._steps = [
            (step, prepared, *self._numbers(step))
            for step, prepared in prepare_steps(self.program, executor, threads)
        ]
        self._constants = constants_of(self.program, executor)

    def _inside(self, exchange: Exchange) -> NativeOp | None:
        """How a segment runs a collective itself, where it can."""
        if self._link is None or not isinstance(self._executor, RunsNative):
            return None
        place = self._first + _number(exchange)
        return native_op(self._link, exchange, place if self._is_recorded else None)

    def _numbers(self, step: Segment | Exchange) -> tuple[int, int]:
        """What the monitor calls the first and the last place of a step."""
        if isinstance(step, Exchange):
            return (self._first + _number(step),) * 2
        return self._first + 2 * step.level, self._first + 2 * step.last_level

    @property
    def seconds_inside(self) -> float:
        """Time that segments have spent in collectives of their own, in all programs of a job."""
        return 0.0 if self._link is None else self._link.seconds

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on this rank's inputs; outputs by name.

        Raises:
            PlanError: an input is missing, unknown, or of another type or shape.
            ExecutionError: a node failed.
        """
        self._check(inputs)
        began = time.perf_counter()
        to_tensor = self._executor.to_tensor
        outputs = self.read(self._run({n: to_tensor(array) for n, array in inputs.items()}))
        self.seconds += time.perf_counter() - began
        return outputs

    def run_held(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors of the executor, unchecked, and leave the outputs where it made them.

        So an output can be the next run's input without a copy. Raises ExecutionError.
        """
        began = time.perf_counter()
        outputs = self._run(inputs)
        self.seconds += time.perf_counter() - began
        return outputs

    def write_into(self, outputs: Mapping[str, Tensor]) -> bool:
        """From now on put these outputs into these tensors; False where the executor cannot."""
        return write_into([(step, prepared) for step, prepared, *_ in self._steps], outputs)

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        enter, leave = self._monitor.enter, self._monitor.leave
        values = {**inputs, **self._constants}
        if self._link is not None:
            self._link.forget_signals()
        inside = self.seconds_inside
        for step, prepared, first, last in self._steps:
            enter(first)
            if prepared is not None:
                values.update(prepared(values))
            elif isinstance(step, Exchange):
                self._exchange(step, values)
            leave(last)
            for name in step.drop:
                values.pop(name, None)
        self.exchange_seconds += self.seconds_inside - inside
        return {name: values[name] for name in self.program.outputs}

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Outputs of `run_held` as arrays."""
        if self._communicator.asynchronous:
            self._monitor.enter(self._last)
        outputs = {name: self._executor.to_array(tensor) for name, tensor in tensors.items()}
        if self._communicator.asynchronous:
            self._monitor.leave(self._last)
        return outputs

    def _exchange(self, step: Exchange, values: dict[str, Tensor]) -> None:
        tensor = values[step.operand]
        native = self._communicator.takes(tensor)
        operand = tensor if native else self._executor.to_array(tensor)
        began = time.perf_counter()
        result = self._communicator.run(step.op, operand, keep=step.keep)
        self.exchange_seconds += time.perf_counter() - began
        if result is operand:
            values[step.result] = tensor
        else:
            values[step.result] = result if native else self._executor.to_tensor(result)


def places(exchanges: Sequence[Exchange]) -> list[str]:
    """Every place a rank can be in, in words: level 0, the first collective, level 1, and so on.

    A level is named by the collective that follows it.
    """
    texts: list[str] = []
    for exchange in exchanges:
        text = f"{exchange.op.op_type} #{exchange.tag} at node '{exchange.node}'"
        texts += [f"the segment before {text}", text]
    return [*texts, "the segment after the last collective"]


def _number(exchange: Exchange) -> int:
    """Which of the places a collective is."""
    return 2 * exchange.level + 1


PreparedStep = tuple[Segment | Exchange, Prepared | None]
Steps = Iterator[PreparedStep]


def prepare_steps(program: Program, executor: Executor, threads: int) -> list[PreparedStep]:
    """The steps of a program, each segment made ready to run."""
    return [
        (step, executor.prepare(step.model, threads) if isinstance(step, Segment) else None)
        for step in program.steps
    ]


def write_into(steps: Sequence[PreparedStep], outputs: Mapping[str, Tensor]) -> bool:
    """Have every step put its share of `outputs` there; none does unless all can."""
    found: list[tuple[WritesInto, dict[str, Tensor]]] = []
    for step, prepared in steps:
        names = outputs.keys() & set(step.outputs if isinstance(step, Segment) else ())
        if names and isinstance(prepared, WritesInto):
            found.append((prepared, {name: outputs[name] for name in names}))
    if sum(len(share) for _, share in found) < len(outputs):
        return False
    for writer, share in found:
        writer.write_into(share)
    return True


def constants_of(program: Program, executor: Executor) -> dict[str, Tensor]:
    """The constants that steps and outputs read, on the executor."""
    return {
        name: executor.to_tensor(np.array(tensor.numpy()))
        for name, tensor in program.constants.items()
    }
