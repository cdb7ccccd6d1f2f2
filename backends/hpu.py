"""The backend `hpu`: Intel's Gaudi devices through habana_frameworks and HCCL."""

from __future__ import annotations

from .base import Backend, BackendOptions
from .torch_backend import Vendor, torch_backend

VENDOR = Vendor(
    name="hpu",
    summary="one process per Gaudi, torch computes, HCCL exchanges",
    device="hpu",
    library="hccl",
    drivers=("/sys/module/habanalabs",),
    driver="the driver of Gaudi",
    extensions=("habana_frameworks.torch.core", "habana_frameworks.torch.distributed.hccl"),
    install="the installer of Gaudi software, which brings habana_frameworks",
)


def backend(options: BackendOptions = BackendOptions()) -> Backend:  # noqa: B008 (it is frozen)
    """The backend, as `options` say."""
    return torch_backend(VENDOR, options, backend)
