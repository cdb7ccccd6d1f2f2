"""Element types, and numpy arrays as torch tensors on the same memory."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from graph.errors import ExecutionError

Tensor = Any
"""A torch tensor: torch is untyped here, so that every machine checks the same."""

_NAMES = """FLOAT=float32 DOUBLE=float64 FLOAT16=float16 BFLOAT16=bfloat16 INT8=int8 INT16=int16
INT32=int32 INT64=int64 UINT8=uint8 UINT16=uint16 UINT32=uint32 UINT64=uint64 BOOL=bool
COMPLEX64=complex64 COMPLEX128=complex128 FLOAT8E4M3FN=float8_e4m3fn FLOAT8E5M2=float8_e5m2
FLOAT8E4M3FNUZ=float8_e4m3fnuz FLOAT8E5M2FNUZ=float8_e5m2fnuz FLOAT8E8M0=float8_e8m0fnu"""
DTYPES = {
    ir.DataType[onnx]: getattr(torch, name)
    for onnx, _, name in (item.partition("=") for item in _NAMES.split())
}
"""torch's type of an ONNX element type."""
CARRIED = {
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
}
"""Types that torch lacks: a code of one travels in a byte of its own."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types that models compute in, and that another one may take the place of."""
UNSIGNED = {torch.uint16: 16, torch.uint32: 32, torch.uint64: 64}
"""Types that torch keeps but hardly computes in, and their bits."""

_FOREIGN: dict[str, tuple[Any, Any]] = {
    "bfloat16": (np.uint16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
    "float8_e8m0fnu": (np.uint8, torch.float8_e8m0fnu),
}
"""Types that numpy has from ml_dtypes: what their bytes pass as, and torch's type."""
_BACK = {
    kind: (getattr(torch, carrier.__name__), getattr(ml_dtypes, name))
    for name, (carrier, kind) in _FOREIGN.items()
}
_CODES = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}


def to_torch(array: np.ndarray) -> Tensor:
    """A tensor on the memory of `array`; codes below eight bits are copied to a byte each."""
    name = array.dtype.name
    if name in _CODES:
        return torch.from_numpy(array.astype(_CODES[name]))
    if array.dtype.kind in "OSU":
        raise ExecutionError(
            "torch has no tensors of strings. Run a model that reads or makes text with the "
            "backend 'cpu'."
        )
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # a weight mapped from disk
        if name not in _FOREIGN:
            return torch.from_numpy(array)
        carrier, kind = _FOREIGN[name]
        # A view as other bytes needs a last dim of one element after another.
        array = array if array.flags.c_contiguous else array.copy()
        return torch.from_numpy(array.view(carrier)).view(kind)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A view of a tensor's memory; a copy, which is read-only, where numpy cannot view it."""
    kind = getattr(tensor, "carries", None)
    held = tensor.detach().cpu()
    if tensor.dtype in _BACK:
        carrier, name = _BACK[tensor.dtype]
        array = held.view(carrier).numpy().view(name)
    else:
        array = held.numpy() if kind is None else held.numpy().astype(kind)
    if kind is not None or tensor.device.type != "cpu":
        array.flags.writeable = False
    return np.asarray(array)


def carry(tensor: Tensor, dtype: ir.DataType | None) -> Tensor:
    """Note on an output which type its bytes stand for, where torch lacks that type."""
    if dtype in CARRIED and dtype is not None:
        tensor = tensor.view(tensor.shape)
        tensor.carries = dtype.numpy()
    return tensor


def torch_dtype(dtype: ir.DataType) -> Any:
    """torch's type. Raises ExecutionError where there is none."""
    found = DTYPES.get(dtype) or CARRIED.get(dtype)
    if found is None:
        raise ExecutionError(
            f"torch has no element type {dtype.name}. Run the model with the backend 'cpu'."
        )
    return found
