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
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backends import registry
from backends.base import Backend, BackendOptions
from backends.placement import detect_environment
from graph.errors import ExecutionError, PlanError
from tpcore.inputs import violations
from tpcore.onnxruntime_names import (
    REFUSED,
    ModelMetadata,
    NodeArg,
    SessionOptions,
    Unsupported,
    check_options,
)
from tpcore.partition import Options
from tpcore.ranks import FIRST, AllRanks, gathered, run_arrays
from tpcore.session_ranks import Outside
from tpcore.target import Target, open_target

Arrays = Mapping[str, np.ndarray]


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
        check_options(sess_options, None, providers, provider_options)
        if isinstance(path, bytes):
            raise PlanError(
                "a session is made from the path of a bundle or model, not from its contents: "
                "every rank reads its own part of the files. Write the model to a file."
            )
        if options is None and tp is not None:
            options = Options(tp)
        asked = backend_options or BackendOptions()
        found = registry.get(backend, asked)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._ended_by = ""
        """What has closed it, if not its user."""
        self._backend = backend
        self._sess_options = sess_options or SessionOptions()
        self._target = open_target(Path(path), options)
        self._runner: Runner = (
            Outside(self._target, found, asked, options, timeout_seconds)
            if _needs_ranks(found, self._target)
            else Inside(self._target, found)
        )
        self._end = weakref.finalize(self, _end, self._runner, self._owner)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: object = None,
    ) -> list[np.ndarray]:
        """The outputs of these names, or all in the model's order, for whole inputs by name.

        Raises:
            PlanError: an input or output is missing, unknown, or of another type or shape.
            ExecutionError: a rank failed, and the session is closed then, as it is by Ctrl-C (not
                where all ranks run in this process); or another process has forked this one.
        """
        if os.getpid() != self._owner:
            raise ExecutionError(
                f"the session of '{self._target.name}' belongs to process {self._owner}, which has "
                "forked this one. Make one here."
            )
        if run_options is not None:
            check_options(None, run_options, None, None)
        known = [spec.name for spec in self._target.outputs]
        names = list(output_names or known)
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
                    f"the session of '{self._target.name}' is closed{self._ended_by}. "
                    "Make a new one."
                )
            try:
                outputs = self._runner.run(inputs, list(dict.fromkeys(names)))
            except BaseException as error:
                if not isinstance(self._runner, Inside):  # ranks may be anywhere in the graph
                    self._ended_by = f", since a call of it ended with {_short(error)}"
                    self._end()
                raise
        return [outputs[name] for name in names]

    def get_inputs(self) -> list[NodeArg]:
        """What every input must look like."""
        return [NodeArg.of(spec) for spec in self._target.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """What every output looks like."""
        return [NodeArg.of(spec) for spec in self._target.outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """None: what has a value in the model is a weight."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """What the model says of itself."""
        return ModelMetadata.of(self._target.load_rank(FIRST, self._target.programs[0].name))

    def get_session_options(self) -> object:
        """What the session was given."""
        return self._sess_options

    def get_providers(self) -> list[str]:
        """The name of the backend."""
        return [self._backend]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """None, of the backend."""
        return {self._backend: {}}

    def disable_fallback(self) -> None:
        """Nothing to do: a session never changes its backend."""

    enable_fallback = disable_fallback

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise Unsupported(f"a session of tpcore has no {name}. {REFUSED[name]}.")
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

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


def _short(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says."""
    said = str(error).partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


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
