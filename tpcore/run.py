"""Run a target once: all ranks in this process, or as one rank of a job."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from backends import job
from backends.base import Backend
from backends.launch import launch
from backends.lockstep import Lockstep
from backends.placement import detect_environment, threads_per_rank
from backends.run import RankProgram
from backends.trace import Tracer
from graph.errors import BundleError, ExecutionError, PlanError
from tpcore.distribute import cut_inputs, read_held
from tpcore.inputs import check_sizes, make_inputs, violations
from tpcore.ranks import load_together
from tpcore.target import Target

Arrays = Mapping[str, np.ndarray]
OpenTarget = Callable[[], Target]


def needs_launch(backend: Backend, target: Target) -> bool:
    """Whether this process must start the ranks, being none of them.

    Raises:
        BundleError: a launcher started this process as the only rank of several.
    """
    placement = detect_environment()
    if backend.communicator is None or target.world_size == 1 or placement.size > 1:
        return False
    if placement.launcher:
        raise BundleError(
            f"'{target.name}' is for {target.world_size} ranks but the launcher started 1. "
            f"Start {target.world_size} ranks with it, or run tpcore without it."
        )
    return True


def start_ranks(argv: Sequence[str], backend: Backend, ranks: int, timeout_seconds: float) -> int:
    """Start `tpcore argv` on `ranks` ranks of a backend; returns the exit status of the job."""
    command = tpcore_command(argv)
    return launch(command, ranks, timeout_seconds, launcher=backend.find_launcher())


def tpcore_command(argv: Sequence[str]) -> list[str]:
    """The command that runs `tpcore argv` as another process."""
    return python_command("tpcore", *argv)


def python_command(module: str, *argv: str) -> list[str]:
    """The command that runs a module of ours as another process.

    Modules are not looked for in the working directory, where a user may have a `graph.py`, unless
    this process was started so.
    """
    started_there = {"", os.getcwd()} & set(sys.path)
    return [sys.executable, *([] if started_there else ["-P"]), "-m", module, *argv]


def run_here(target: Target, backend: Backend, inputs: Arrays) -> dict[str, np.ndarray]:
    """Run all ranks in lockstep in this process; global outputs."""
    program = target.program_for(inputs)
    ranks = [target.load_rank(rank, program.name) for rank in range(target.world_size)]
    parts = [cut_inputs(inputs, program.shardings, rank) for rank in range(target.world_size)]
    results = Lockstep(ranks, backend.executor(), threads=threads_per_rank(1)).run(parts)
    return {
        name: read_held(program.shardings.get(name, "R")).join([r[name] for r in results])
        for name in results[0]
    }


def run_as_rank(
    opened: OpenTarget,
    backend: Backend,
    inputs: Callable[[Target], Arrays],
    timeout_seconds: float,
    trace: Path | None = None,
) -> dict[str, np.ndarray]:
    """Run this process's rank and gather the outputs, whole on every rank.

    With `trace` it runs twice, and rank 0 writes when every rank was in which step the second time.
    """
    ranks = job.join(timeout_seconds, backend.communicator)
    given: dict[str, np.ndarray] = {}

    def wanted(target: Target) -> list[str]:
        given.update(inputs(target))
        return [target.program_for(given).name]

    target, models = load_together(ranks, opened, wanted)
    program = target.program_for(given)
    parts = cut_inputs(given, program.shardings, ranks.rank)
    tracer = Tracer() if trace is not None else None
    model = models[program.name]
    outputs = _run_model(model, backend, ranks, parts, program.shardings, tracer)
    if trace is not None and tracer is not None:
        write_trace(trace, tracer, ranks)
    return outputs


def write_trace(path: Path, tracer: Tracer, ranks: job.Job) -> None:
    """Let rank 0 write what all ranks have noted; every rank must call it."""
    found = tracer.gather(ranks.communicator)
    if ranks.rank == 0:
        path.write_text(json.dumps(found))


def refuse_trace(target: Target, backend: Backend) -> None:
    """Raise PlanError: all ranks of `target` are in this process."""
    raise PlanError(
        f"a run of '{target.name}' on backend '{backend.name}' is one process, in which no "
        "rank waits. Trace several ranks on a backend that starts them, such as cpu."
    )


def _run_model(
    model: ir.Model,
    backend: Backend,
    ranks: job.Job,
    parts: Arrays,
    shardings: Mapping[str, str],
    tracer: Tracer | None,
) -> dict[str, np.ndarray]:
    watched = tracer.watch(ranks) if tracer is not None else ranks
    program = RankProgram(
        model,
        backend.executor(),
        watched.communicator,
        threads=threads_per_rank(),
        monitor=watched.monitor,
    )
    results = _traced(program, parts, tracer) if tracer is not None else program.run(parts)
    outputs = {
        name: _gathered(ranks, shardings.get(name, "R"), array) for name, array in results.items()
    }
    ranks.communicator.exchange(b"")  # outputs count only if no rank fails behind the last exchange
    return outputs


def _traced(program: RankProgram, parts: Arrays, tracer: Tracer) -> dict[str, np.ndarray]:
    """Run twice, since the first run allocates what later ones reuse; the second one is noted."""
    program.run(parts)
    tracer.forget()
    began = time.perf_counter()
    results = program.run(parts)
    tracer.note_run("run", began, time.perf_counter())
    return results


def _gathered(ranks: job.Job, text: str, array: np.ndarray) -> np.ndarray:
    held = read_held(text)
    if held.is_replicated or ranks.size == 1:
        return array
    whole: np.ndarray = ranks.communicator.run(held.gather, np.asarray(array, order="C"))
    return whole


def load_inputs(
    path: Path | None, target: Target, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Inputs from an .npz file, or made up where there is none.

    Raises:
        PlanError: the file cannot be read, or its arrays are not the inputs of the target.
    """
    if path is None:
        return make_inputs(target.inputs, sizes)
    check_sizes(target.inputs, sizes)
    arrays = read_npz(path)
    wrong = violations(target.inputs, arrays)
    if wrong:
        raise PlanError(
            f"'{path}' does not hold the inputs of '{target.name}': {'; '.join(wrong)}. "
            f"Inputs: {', '.join(spec.name for spec in target.inputs)}."
        )
    return arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Raises PlanError; never unpickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _read_array(archive, name) for name in archive.namelist()
            }
    except zipfile.BadZipFile as error:
        damage = str(error) if zipfile.is_zipfile(path) else "it is not an .npz file"
        raise _unreadable(path, damage) from error
    except (OSError, ValueError, EOFError, zlib.error, RuntimeError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unreadable(path, reason) from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"its part '{name}' is no array of numbers ({error})") from error


def _unreadable(path: Path, reason: str) -> PlanError:
    return PlanError(
        f"arrays '{path}' cannot be read: {reason.rstrip('.')}. "
        "Write them with numpy.savez(path, name=array, …)."
    )


def check_writable(path: Path) -> None:
    """Raise PlanError, before anything runs, if `path` cannot be written."""
    folder = path.parent
    if path.is_dir():
        reason = "it is a directory"
    elif not folder.is_dir():
        reason = f"'{folder}' is no directory"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"nobody may write to '{folder}' but its owner"
    else:
        return
    raise PlanError(f"outputs cannot be written to '{path}': {reason}. Choose another path.")


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write an .npz file beside its final name and rename it: it is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, _storable(name, array), allow_pickle=False)
        draft.replace(path)
    except OSError as error:
        raise ExecutionError(f"outputs cannot be written to '{path}': {error.strerror}.") from error
    finally:
        draft.unlink(missing_ok=True)


def _storable(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray | np.generic):
        raise ExecutionError(
            f"output '{name}' is a {type(value).__name__}, of which an .npz file can hold none. "
            "Leave --outputs out, or run the model from Python."
        )
    array = np.asanyarray(value)
    return array.astype(str) if array.dtype.kind == "O" else array
