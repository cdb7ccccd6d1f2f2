"""Weights from where they lie to the device, once however many segments read them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import onnx_ir as ir

from graph.weights import identity

from .tensors import Tensor


class Loader:
    """Hands out weights on the device; one that a step still holds is not loaded again."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self._loaded: weakref.WeakValueDictionary[Hashable, Tensor] = weakref.WeakValueDictionary()

    def load(
        self, read: Callable[[], Tensor], dtype: Any, source: ir.TensorProtocol | None
    ) -> Tensor:
        """What `read` returns on the device: on CPU and in its own type that memory itself."""
        known = None if source is None else identity(source)
        if known is None:
            return read().to(self.device, dtype)
        made = self._loaded.get((known, dtype))
        if made is None:
            made = self._loaded[known, dtype] = read().to(self.device, dtype)
        return made
