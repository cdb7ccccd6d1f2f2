"""Split an ONNX model over n ranks by tensor parallelism, run it on any backend, prove it equal.

    import tpcore
    bundle = tpcore.shard("model.onnx", "bundle", tpcore.Options(tp=4))
    result = tpcore.verify(bundle, "model.onnx")
    assert result.equal

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpcore.bundle import Bundle, open_bundle
    from tpcore.partition import Options, plan_model
    from tpcore.shard import shard
    from tpcore.verify import verify

__all__ = ["Bundle", "Options", "open_bundle", "plan_model", "shard", "verify"]

_HOMES = {
    "Bundle": "tpcore.bundle",
    "open_bundle": "tpcore.bundle",
    "Options": "tpcore.partition",
    "plan_model": "tpcore.partition",
    "shard": "tpcore.shard",
    "verify": "tpcore.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tpcore' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
