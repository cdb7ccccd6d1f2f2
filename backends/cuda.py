"""The backend `cuda`: NVIDIA's devices through torch and NCCL."""

from __future__ import annotations

from .base import Backend, BackendOptions
from .torch_backend import Vendor, torch_backend

VENDOR = Vendor(
    name="cuda",
    summary="one process per NVIDIA GPU, torch computes, NCCL exchanges",
    device="cuda",
    library="nccl",
    drivers=("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"),
    driver="the driver of NVIDIA",
    build="cuda",
    install="pip install torch --index-url https://download.pytorch.org/whl/cu130",
)


def backend(options: BackendOptions = BackendOptions()) -> Backend:  # noqa: B008 (it is frozen)
    """The backend, as `options` say."""
    return torch_backend(VENDOR, options, backend)
