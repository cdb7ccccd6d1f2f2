"""Split an ONNX model over n ranks by tensor parallelism, run it on any backend, prove it equal.

    import tpcore
    plan = tpcore.plan("model.onnx", tp=4, memory="16GiB")
    bundle = tpcore.shard("model.onnx", "bundle", plan=plan)
    assert tpcore.verify(bundle, "model.onnx").equal

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import graph  # noqa: F401  says how onnx_ir is imported, so it comes first

if TYPE_CHECKING:
    from tpcore.api import PlannedModel, plan, shard, verify
    from tpcore.bundle import Bundle, open_bundle
    from tpcore.onnxruntime_names import (
        ExecutionMode,
        GraphOptimizationLevel,
        RunOptions,
        SessionOptions,
        get_available_providers,
    )
    from tpcore.partition import Options
    from tpcore.session import InferenceSession

__all__ = ["Bundle", "InferenceSession", "Options", "PlannedModel", "open_bundle", "plan"]
__all__ += ["shard", "verify"]
__all__ += ["ExecutionMode", "GraphOptimizationLevel", "RunOptions", "SessionOptions"]
__all__ += ["get_available_providers"]

_HOMES = {
    "Bundle": "tpcore.bundle",
    "open_bundle": "tpcore.bundle",
    "InferenceSession": "tpcore.session",
    "Options": "tpcore.partition",
    "PlannedModel": "tpcore.api",
    "plan": "tpcore.api",
    "shard": "tpcore.api",
    "verify": "tpcore.api",
    "ExecutionMode": "tpcore.onnxruntime_names",
    "GraphOptimizationLevel": "tpcore.onnxruntime_names",
    "RunOptions": "tpcore.onnxruntime_names",
    "SessionOptions": "tpcore.onnxruntime_names",
    "get_available_providers": "tpcore.onnxruntime_names",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tpcore' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """Keeps `tpcore.shard` the function: importing a module of that name would take its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
