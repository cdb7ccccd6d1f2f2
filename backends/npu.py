"""The backend `npu`: Huawei's Ascend devices through torch_npu and HCCL."""

from __future__ import annotations

from .base import Backend, BackendOptions
from .torch_backend import Vendor, torch_backend

VENDOR = Vendor(
    name="npu",
    summary="one process per Ascend NPU, torch_npu computes, HCCL exchanges",
    device="npu",
    library="hccl",
    drivers=("/dev/davinci_manager",),
    driver="the driver of Ascend",
    extensions=("torch_npu",),
    install="pip install torch_npu, of the version that fits torch and CANN",
)


def backend(options: BackendOptions = BackendOptions()) -> Backend:  # noqa: B008 (it is frozen)
    """The backend, as `options` say."""
    return torch_backend(VENDOR, options, backend)
