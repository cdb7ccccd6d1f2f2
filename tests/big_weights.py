"""Weights of a model that is too big to be held: random, written to a file as they are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

ALIGNMENT = 4096
CHUNK = 1 << 20
"""Elements drawn at a time, so memory stays flat."""


class Weights:
    """Random float32 weights, appended to the data file as they are made."""

    def __init__(self, data: BinaryIO, model: Path, random: np.random.Generator | None) -> None:
        self.data = data
        self.model = model
        self.random = random

    def normal(self, name: str, shape: Sequence[int], scale: float, mean: float = 0.0) -> ir.Value:
        """A stored weight of normally distributed values."""
        offset = self.data.seek(-(-self.data.tell() // ALIGNMENT) * ALIGNMENT)
        size = int(np.prod(shape))
        self._fill(size, scale, mean)
        location, folder = self.model.name + ".data", self.model.parent
        dims, dtype = ir.Shape(shape), ir.DataType.FLOAT
        tensor = ir.ExternalTensor(
            location, offset, 4 * size, dtype, name=name, shape=dims, base_dir=folder
        )
        return ir.Value(name=name, shape=dims, type=ir.TensorType(dtype), const_value=tensor)

    def _fill(self, size: int, scale: float, mean: float) -> None:
        if self.random is None:
            self.data.seek(self.data.truncate(self.data.tell() + 4 * size))
            return
        for start in range(0, size, CHUNK):
            values = self.random.standard_normal(min(CHUNK, size - start), np.float32)
            self.data.write((values * np.float32(scale) + np.float32(mean)).data)


def typed(name: str, dtype: ir.DataType, dims: Sequence[int]) -> ir.Value:
    """A value of known type and shape."""
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def cache_names(layer: int, prefix: str) -> tuple[str, str]:
    """Names of a layer's cached keys and values, `past` or `present`."""
    names = {"past": "past_key_values", "present": "present"}
    return f"{names[prefix]}.{layer}.key", f"{names[prefix]}.{layer}.value"
