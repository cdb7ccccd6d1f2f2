"""The backends that come with tpcore. Libraries are looked for here and imported only when used."""

from __future__ import annotations

from importlib.util import find_spec

from graph.errors import BackendUnavailable

from .base import Availability, Backend, Communicator, Executor
from .launcher import launch_command


def simulate() -> Backend:
    """All ranks in lockstep in one process: what the program means."""
    return Backend(
        name="simulate",
        summary="all ranks in lockstep in one process, collectives in numpy, onnxruntime computes",
        probe=_probe_onnxruntime,
        executor=_ort_executor,
        communicator=None,
        exact_executor=_exact_executor,
    )


def cpu() -> Backend:
    """One process per rank: onnxruntime computes, MPI exchanges."""
    return Backend(
        name="cpu",
        summary="one process per rank, onnxruntime computes, MPI exchanges",
        probe=_probe_cpu,
        executor=_ort_executor,
        communicator=_mpi_communicator,
        launcher=launch_command,
        exact_executor=_exact_executor,
    )


def _ort_executor() -> Executor:
    from .exec_ort import OrtExecutor

    return OrtExecutor()


def _exact_executor() -> Executor:
    from .exec_ort import OrtExecutor

    return OrtExecutor(as_written=True)


def _mpi_communicator() -> Communicator:
    from .job import communicator

    return communicator()


def _probe_onnxruntime() -> Availability:
    return _probe_module("onnxruntime", "pip install onnxruntime")


def _probe_cpu() -> Availability:
    for found in (_probe_onnxruntime(), _probe_module("mpi4py", "pip install 'tpcore[mpi]'")):
        if not found.ok:
            return found
    try:
        launch_command([], 1)
    except BackendUnavailable as error:
        reason, _, hint = str(error).partition(". ")
        return Availability(False, reason, hint)
    return Availability(True)


def _probe_module(module: str, install: str) -> Availability:
    if find_spec(module) is None:
        return Availability(False, f"{module} is not installed", f"Install it with {install}.")
    return Availability(True)
