"""The backend `xpu`: Intel's devices through torch and oneCCL (xccl)."""

from __future__ import annotations

from .base import Backend, BackendOptions
from .torch_backend import Vendor, torch_backend

VENDOR = Vendor(
    name="xpu",
    summary="one process per Intel GPU, torch computes, oneCCL exchanges",
    device="xpu",
    library="xccl",
    drivers=("/sys/module/xe", "/sys/module/i915"),
    driver="the driver of Intel GPUs",
    build="xpu",
    install="pip install torch --index-url https://download.pytorch.org/whl/xpu",
)


def backend(options: BackendOptions = BackendOptions()) -> Backend:  # noqa: B008 (it is frozen)
    """The backend, as `options` say."""
    return torch_backend(VENDOR, options, backend)
