"""Run a target once: all ranks in this process, or as one rank of a job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from backends import job
from backends.base import Backend
from backends.handshake import RankInfo, collective_sequence, handshake
from backends.launch import launch
from backends.placement import detect_environment, threads_per_rank
from backends.run import Lockstep, RankProgram
from graph.errors import BundleError, ExecutionError, PlanError, TpcoreError
from tpcore.distribute import cut_inputs, read_held
from tpcore.inputs import make_inputs
from tpcore.target import Target

Arrays = Mapping[str, np.ndarray]
OpenTarget = Callable[[], Target]


def needs_launch(backend: Backend, world_size: int) -> bool:
    """Whether this process must start the ranks, being none of them."""
    return backend.communicator is not None and world_size > 1 and detect_environment().size == 1


def start_ranks(argv: Sequence[str], ranks: int, timeout_seconds: float) -> int:
    """Start `python -m tpcore argv` on `ranks` ranks; returns the exit status of the job."""
    return launch([sys.executable, "-m", "tpcore", *argv], ranks, timeout_seconds)


def run_here(target: Target, backend: Backend, inputs: Arrays) -> dict[str, np.ndarray]:
    """Run all ranks in lockstep in this process; global outputs."""
    ranks = [target.load_rank(rank) for rank in range(target.world_size)]
    parts = [cut_inputs(inputs, target.shardings, rank) for rank in range(target.world_size)]
    results = Lockstep(ranks, backend.executor(), threads=threads_per_rank(1)).run(parts)
    return {
        name: read_held(target.shardings.get(name, "R")).join([r[name] for r in results])
        for name in results[0]
    }


def run_as_rank(
    opened: OpenTarget,
    backend: Backend,
    inputs: Callable[[Target], Arrays],
    timeout_seconds: float,
) -> dict[str, np.ndarray]:
    """Run this process's rank and gather the outputs, whole on every rank.

    Every rank takes part in the handshake even if it could not open its files, so that no other
    rank waits for it.
    """
    ranks = job.join(timeout_seconds)
    info, model, parts = RankInfo(world_size=ranks.size), None, {}
    try:
        target = opened()
        info = RankInfo(target.id, target.format, target.world_size)
        if target.world_size == ranks.size:
            model = target.load_rank(ranks.rank)
            parts = cut_inputs(inputs(target), target.shardings, ranks.rank)
    except TpcoreError as error:
        info = RankInfo(world_size=ranks.size, error=str(error), error_status=error.exit_status)
    sequence = collective_sequence(model) if model is not None else []
    handshake(ranks.communicator, info, sequence)
    if model is None:
        raise BundleError(
            f"'{info.bundle}' is for {info.world_size} ranks but {ranks.size} were started. "
            f"Start {info.world_size} ranks, or split the model again with --tp {ranks.size}."
        )
    return _run_model(model, backend, ranks, parts, target.shardings)


def _run_model(
    model: ir.Model,
    backend: Backend,
    ranks: job.Job,
    parts: Arrays,
    shardings: Mapping[str, str],
) -> dict[str, np.ndarray]:
    program = RankProgram(
        model,
        backend.executor(),
        ranks.communicator,
        threads=threads_per_rank(),
        monitor=ranks.monitor,
    )
    results = program.run(parts)
    return {
        name: _gathered(ranks, shardings.get(name, "R"), array) for name, array in results.items()
    }


def _gathered(ranks: job.Job, text: str, array: np.ndarray) -> np.ndarray:
    held = read_held(text)
    if held.is_replicated or ranks.size == 1:
        return array
    return ranks.communicator.run(held.gather, np.asarray(array, order="C"))


def load_inputs(
    path: Path | None, target: Target, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Inputs from an .npz file, or made up where there is none.

    Raises:
        PlanError: the file cannot be read, or its arrays are not the inputs of the target.
    """
    if path is None:
        return make_inputs(target.inputs, sizes)
    arrays = read_npz(path)
    known = {spec.name: spec for spec in target.inputs}
    wrong = [f"'{name}' is missing" for name in known if name not in arrays]
    wrong += [f"'{name}' is no input" for name in arrays if name not in known]
    wrong += [
        f"'{name}' is {arrays[name].dtype} where the model has {ir.DataType[spec.dtype].numpy()}"
        for name, spec in known.items()
        if name in arrays and arrays[name].dtype != ir.DataType[spec.dtype].numpy()
    ]
    if wrong:
        raise PlanError(
            f"'{path}' does not hold the inputs of '{target.name}': {'; '.join(wrong)}. "
            f"Inputs: {', '.join(known)}."
        )
    return arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Raises PlanError; never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PlanError(
            f"inputs '{path}' cannot be read: {reason}. "
            "Write them with numpy.savez(path, name=array, …)."
        ) from error


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write an .npz file beside its final name and rename it: it is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ExecutionError(f"outputs cannot be written to '{path}': {error.strerror}.") from error
