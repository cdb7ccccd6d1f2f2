"""A split model from the outside: one session, with the methods of onnxruntime's.

    with tpcore.InferenceSession("bundle") as session:
        logits, = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})

Its ranks are started by the session, wait without using a core between calls, and end with it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from backends import registry
from backends.base import Backend, BackendOptions
from backends.placement import detect_environment
from graph.errors import ExecutionError, PlanError
from tpcore.inputs import InputSpec, violations
from tpcore.partition import Options
from tpcore.ranks import AllRanks, gathered, run_arrays
from tpcore.session_ranks import Outside
from tpcore.target import Target, open_target

Arrays = Mapping[str, np.ndarray]
ANY_PROVIDER = "CPUExecutionProvider"
"""What a script asks for that leaves the choice to us: the last of every list of providers."""


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as onnxruntime describes it."""

    name: str
    shape: list[int | str]
    """Sizes; symbolic ones by name."""
    type: str
    """`tensor(float)`."""


class InferenceSession:
    """A bundle, or a model file split over `tp` ranks in memory, ready to be run.

    Raises:
        PlanError, BundleError, GraphError: the files or the request are not usable.
        BackendUnavailable: the backend cannot run here.
        ExecutionError: the ranks could not start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sess_options: object = None,
        providers: Sequence[Any] | None = None,
        provider_options: object = None,
        *,
        backend: str = "cpu",
        tp: int | None = None,
        options: Options | None = None,
        backend_options: BackendOptions | None = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        _refuse_options(sess_options, providers, provider_options)
        if options is None and tp is not None:
            options = Options(tp)
        asked = backend_options or BackendOptions()
        found = registry.get(backend, asked)
        self._lock = threading.Lock()
        self._backend = backend
        self._target = open_target(Path(path), options)
        self._runner: Runner = (
            Outside(self._target, found, asked, options, timeout_seconds)
            if _needs_ranks(found, self._target)
            else Inside(self._target, found)
        )
        self._end = weakref.finalize(self, _end, self._runner, os.getpid())

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: object = None,
    ) -> list[np.ndarray]:
        """The outputs of these names, or all in the model's order, for whole inputs by name.

        Raises:
            PlanError: an input or output is missing, unknown, or of another type or shape.
            ExecutionError: a rank failed; the session is closed then.
        """
        known = [spec.name for spec in self._target.outputs]
        names = list(known if output_names is None else output_names)
        inputs = {name: np.asarray(array) for name, array in input_feed.items()}
        wrong = violations(self._target.inputs, inputs)
        wrong += [f"'{name}' is no output" for name in names if name not in known]
        if wrong:
            raise PlanError(
                f"'{self._target.name}' cannot be run: {'; '.join(wrong)}. "
                f"Inputs: {', '.join(spec.name for spec in self._target.inputs)}; "
                f"outputs: {', '.join(known)}."
            )
        with self._lock:
            if not self._end.alive:
                raise ExecutionError(
                    f"the session of '{self._target.name}' is closed. Make a new one."
                )
            try:
                outputs = self._runner.run(inputs, list(dict.fromkeys(names)))
            except BaseException:
                self._end()  # the ranks may be anywhere in the graph
                raise
        return [outputs[name] for name in names]

    def get_inputs(self) -> list[NodeArg]:
        """What every input must look like."""
        return [_node_arg(spec) for spec in self._target.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """What every output looks like."""
        return [_node_arg(spec) for spec in self._target.outputs]

    def get_providers(self) -> list[str]:
        """The name of the backend."""
        return [self._backend]

    @property
    def rank_seconds(self) -> float:
        """Time that the slowest rank has spent in runs so far."""
        return self._runner.seconds

    def close(self) -> None:
        """End the ranks. A closed session cannot be run."""
        self._end()

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Runner(Protocol):
    """What runs a target's ranks."""

    @property
    def seconds(self) -> float:
        """Time that the slowest rank has spent in runs so far."""
        ...

    def run(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole outputs of these names from whole inputs."""
        ...

    def close(self) -> None:
        """End the ranks."""
        ...


class Inside:
    """All ranks in this process."""

    def __init__(self, target: Target, backend: Backend) -> None:
        self._target = target
        self._ranks = AllRanks(target, backend, [program.name for program in target.programs])

    @property
    def seconds(self) -> float:
        """Time in runs so far."""
        return self._ranks.seconds

    def run(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole outputs of these names from whole inputs."""
        program = self._target.program_for(inputs)
        return gathered(program, run_arrays(self._ranks, program, inputs, names))

    def close(self) -> None:
        """Nothing is left to end."""


def _end(runner: Runner, owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked off has no ranks of its own
        runner.close()


def _needs_ranks(backend: Backend, target: Target) -> bool:
    placement = detect_environment()
    if backend.communicator is None or target.world_size == 1:
        return False
    if placement.launcher:
        raise PlanError(
            f"this process is one of {placement.size} that a launcher started, and a session "
            "starts its own ranks. Start the script without the launcher, or use tpcore run."
        )
    return True


def _refuse_options(sess_options: object, providers: Sequence[Any] | None, more: object) -> None:
    """Refuse what would have no effect, rather than ignore it."""
    names = [p if isinstance(p, str) else p[0] for p in providers or [ANY_PROVIDER]]
    if sess_options is not None or more is not None or ANY_PROVIDER not in names:
        raise PlanError(
            f"a session of tpcore runs on the backend that backend= names: sess_options and "
            f"provider_options have no effect, and providers must leave room for "
            f"{ANY_PROVIDER}. Leave them out."
        )


def _node_arg(spec: InputSpec) -> NodeArg:
    name = _ONNX_NAMES.get(spec.dtype, spec.dtype.lower())
    return NodeArg(spec.name, list(spec.shape or ()), f"tensor({name})")


_ONNX_NAMES = {ir.DataType.FLOAT.name: "float", ir.DataType.DOUBLE.name: "double"}
