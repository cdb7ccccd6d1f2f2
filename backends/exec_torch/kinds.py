"""Which type a value is computed in, where the user asks for one that is not the model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from .tensors import CARRIED, FLOATS, torch_dtype


@dataclass(frozen=True)
class Types:
    """The rule from a model's types to those computed in."""

    dtype: Any = None
    """torch's type for all floats of the model; None keeps the model's own."""

    def of(self, dtype: ir.DataType, wide: bool = False) -> Any:
        """torch's type of an ONNX type, or the name of one whose codes travel in bytes."""
        if dtype in CARRIED:
            return dtype.name.lower()
        found = torch_dtype(dtype)
        if self.dtype is None or found not in FLOATS:
            return found
        return torch.float32 if wide else self.dtype

    def float_of(self, wide: bool) -> Any:
        """The type that floats are computed in, for a value that stays in float32 or not."""
        return torch.float32 if wide else self.dtype

    def number(self, value: Any, wide: bool) -> Any:
        """A Python number; a float as a finite one of the type computed in."""
        if self.dtype is None or not isinstance(value, float) or math.isinf(value):
            return value
        largest = torch.finfo(self.float_of(wide)).max
        return max(-largest, min(largest, value))
