"""The backends that need no device: `simulate`, `cpu` and `torch`. Each device has a file more."""

from __future__ import annotations

from dataclasses import replace

from .base import Availability, Backend, BackendOptions, Executor
from .exchanges import exchange_named, first_refusal, probe_module
from .torch_backend import Vendor, torch_backend

_DEFAULT = BackendOptions()


def simulate() -> Backend:
    """All ranks in lockstep in one process: what the program means."""
    return Backend(
        name="simulate",
        summary="all ranks in lockstep in one process, collectives in numpy, onnxruntime computes",
        probe=_probe_onnxruntime,
        executor=_ort_executor,
        communicator=None,
        exact_executor=_exact_executor,
        reference_executor=_reference_executor,
        sharing_executor=_sharing_executor,
    )


def cpu(options: BackendOptions = _DEFAULT) -> Backend:
    """One process per rank: onnxruntime computes, MPI exchanges."""
    options.check_only("cpu", "collectives")
    exchange = exchange_named(options.collectives or "mpi")
    return replace(
        simulate(),
        name="cpu",
        summary="one process per rank, onnxruntime computes, MPI exchanges",
        probe=lambda: first_refusal(_probe_onnxruntime, exchange.probe),
        communicator=exchange.joining,
        launcher=exchange.launcher,
        configure=cpu,
    )


TORCH = Vendor(
    name="torch",
    summary="one process per rank, torch computes on CPU, gloo exchanges",
    device="cpu",
    library="gloo",
)


def torch(options: BackendOptions = _DEFAULT) -> Backend:
    """The same lowering and exchanges as the accelerators have, on any machine."""
    return torch_backend(TORCH, options, torch)


def _ort_executor() -> Executor:
    from .exec_ort import OrtExecutor

    return OrtExecutor()


def _exact_executor() -> Executor:
    from .exec_ort import OrtExecutor

    return OrtExecutor(as_written=True)


def _reference_executor() -> Executor:
    from .exec_ort import OrtExecutor

    return OrtExecutor(copies=True)


def _sharing_executor() -> Executor:
    from .exec_ort import OrtExecutor

    return OrtExecutor(packs=False)


def _probe_onnxruntime() -> Availability:
    return probe_module("onnxruntime", "pip install onnxruntime")
