"""The backend `rocm`: AMD's devices through torch and RCCL, which torch calls cuda and nccl."""

from __future__ import annotations

from .base import Backend, BackendOptions
from .torch_backend import Vendor, torch_backend

VENDOR = Vendor(
    name="rocm",
    summary="one process per AMD GPU, torch computes, RCCL exchanges",
    device="cuda",
    library="nccl",
    drivers=("/dev/kfd",),
    driver="the driver of AMD",
    build="hip",
    install="pip install torch --index-url https://download.pytorch.org/whl/rocm7.0",
)


def backend(options: BackendOptions = BackendOptions()) -> Backend:  # noqa: B008 (it is frozen)
    """The backend, as `options` say."""
    return torch_backend(VENDOR, options, backend)
