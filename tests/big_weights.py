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

    def __init__(
        self,
        file: Path,
        data: BinaryIO | None,
        random: np.random.Generator | None,
        repeat: bool = False,
    ) -> None:
        """`data` is `file` opened for writing, None where the weights are there already."""
        self.file = file
        self.data = data
        self.random = random
        self.drawn = random.standard_normal(CHUNK, np.float32) if random and repeat else None
        self.end = 0

    def normal(self, name: str, shape: Sequence[int], scale: float, mean: float = 0.0) -> ir.Value:
        """A stored weight of normally distributed values."""
        offset, size = -(-self.end // ALIGNMENT) * ALIGNMENT, int(np.prod(shape))
        self.end = offset + 4 * size
        if self.data is not None:
            self.data.truncate(self.end)
            self.data.seek(offset)
            self._fill(self.data, size, scale, mean)
        dims, dtype = ir.Shape(shape), ir.DataType.FLOAT
        tensor = ir.ExternalTensor(
            self.file.name, offset, 4 * size, dtype, name=name, shape=dims,
            base_dir=self.file.parent,
        )  # fmt: skip
        return ir.Value(name=name, shape=dims, type=ir.TensorType(dtype), const_value=tensor)

    def _fill(self, data: BinaryIO, size: int, scale: float, mean: float) -> None:
        if self.random is None:
            return
        scaled = None if self.drawn is None else self.drawn * np.float32(scale) + np.float32(mean)
        for start in range(0, size, CHUNK):
            count = min(CHUNK, size - start)
            if scaled is not None:
                data.write(scaled[:count].data)
                continue
            values = self.random.standard_normal(count, np.float32)
            data.write((values * np.float32(scale) + np.float32(mean)).data)


def typed(name: str, dtype: ir.DataType, dims: Sequence[int]) -> ir.Value:
    """A value of known type and shape."""
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def cache_names(layer: int, prefix: str) -> tuple[str, str]:
    """Names of a layer's cached keys and values, `past` or `present`."""
    names = {"past": "past_key_values", "present": "present"}
    return f"{names[prefix]}.{layer}.key", f"{names[prefix]}.{layer}.value"
