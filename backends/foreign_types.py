"""Views of onnxruntime's values whose element types ONNX has and numpy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

BYTE = 8
"""Bits; onnxruntime packs elements of fewer than these, numpy does not."""

FOREIGN_TYPES = frozenset(
    dtype
    for dtype in ir.DataType
    if dtype.name.startswith(("BFLOAT16", "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
)
"""Types with an ONNX name and no numpy name."""


class _Memory:
    """Lets numpy view an OrtValue's memory and keeps the OrtValue alive meanwhile."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.__array_interface__ = {
            "data": (value.data_ptr(), False),
            "shape": (value.tensor_size_in_bytes(),),
            "typestr": "|u1",
            "version": 3,
        }


def bytes_of(value: Any) -> np.ndarray:
    """An OrtValue's memory."""
    return np.asarray(_Memory(value))


def view_of(value: Any) -> np.ndarray:
    """View an OrtValue whose type numpy lacks as its ml_dtypes type.

    Below eight bits it is a copy, one element a byte, and read-only: what somebody wrote into it
    would be lost.
    """
    dtype, shape = ir.DataType(value.element_type()), tuple(value.shape())
    if dtype.bitwidth >= BYTE:
        return bytes_of(value).view(dtype.numpy()).reshape(shape)
    array = ir.PackedTensor(bytes_of(value), dtype, shape=ir.Shape(shape)).numpy()
    array.flags.writeable = False
    return array
