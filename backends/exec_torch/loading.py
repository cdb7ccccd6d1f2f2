"""Weights from where they lie to the device, once however many segments read them."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import onnx_ir as ir

from .tensors import Tensor


class Loader:
    """Hands out weights on the device; one that a step still holds is not loaded again."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self._loaded: weakref.WeakValueDictionary[Hashable, Tensor] = weakref.WeakValueDictionary()

    def load(self, contents: Tensor, dtype: Any, source: ir.TensorProtocol | None) -> Tensor:
        """`contents` on the device: on CPU and in its own type the mapped memory itself."""
        key = None
        if isinstance(source, ir.ExternalTensor):
            key = (str(source.path), source.offset, source.length, contents.dtype,
                   tuple(contents.shape), dtype)  # fmt: skip
            if key in self._loaded:
                return self._loaded[key]
        made = contents.to(self.device, dtype)
        if key is not None:
            self._loaded[key] = made
        return made
