"""What an ONNX value is in a lowered graph, and how its forms are turned into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from graph.errors import ExecutionError

from .kinds import Types
from .plain_dims import Dims
from .tensors import FLOATS, Tensor, to_torch, torch_dtype

UNSET: Any = object()
MAX_PLAIN = 64
"""Constants of more elements stay tensors."""
KEPT_BYTES = 1 << 16
"""Larger weights are not kept in memory while a graph is lowered."""


@dataclass
class Held:
    """One value."""

    tensor: Any = None
    """The node that makes the tensor, once somebody has asked for it."""
    plain: Any = UNSET
    """A Python number, a tuple, or the node that makes one."""
    dims: Dims | None = None
    """Of the plain form, where there is one."""
    contents: Tensor = None
    """Known before the run, in host memory; None of a large weight, which stays where it lies."""
    source: ir.TensorProtocol | None = None
    """The weight that it is; None of what is computed."""
    dtype: Any = None
    """torch's type, None where it is not known."""
    wide: bool = False
    """Whether it stays in float32 where floats are of another type."""
    other: Any = None
    """The tensor cast to the other of the two types."""

    @classmethod
    def of(cls, contents: Tensor, dtype: Any, wide: bool) -> Held:
        """A constant; a short one is plain as well."""
        held = cls(contents=contents, dtype=dtype, wide=wide)
        if contents.numel() <= MAX_PLAIN and contents.ndim <= 1 and not contents.is_complex():
            held.plain = plain_of(contents)
            held.dims = Dims(contents.ndim, contents.numel() if contents.ndim else None)
        return held

    @classmethod
    def of_weight(cls, source: ir.TensorProtocol, dtype: Any, wide: bool) -> Held:
        """A weight, which is read each time that it is asked for unless it is small."""
        if source.nbytes > KEPT_BYTES:
            return cls(source=source, dtype=dtype, wide=wide)
        held = cls.of(contents_of(source), dtype, wide)
        held.source = source
        return held

    @property
    def is_constant(self) -> bool:
        """Whether the contents are known before the run."""
        return self.contents is not None or self.source is not None

    @property
    def kind(self) -> Any:
        """torch's type of a constant's contents."""
        return self.contents.dtype if self.source is None else torch_dtype(self.source.dtype)

    @property
    def nbytes(self) -> int:
        """Of a constant."""
        return int(self.source.nbytes if self.source is not None else self.contents.nbytes)

    def read(self) -> Tensor:
        """A constant's contents."""
        if self.contents is None and self.source is not None:
            return contents_of(self.source)
        return self.contents


def contents_of(source: ir.TensorProtocol) -> Tensor:
    """A weight in host memory, or the mapped file itself."""
    return to_torch(source.numpy().reshape(source.shape.numpy()))


def tensor_of(value: Any, dtype: Any, device: Any) -> Tensor:
    """A plain value as a tensor."""
    return torch.tensor(value, dtype=dtype, device=device)


def plain_of(tensor: Tensor) -> Any:
    """A tensor as Python numbers, for which the device must have finished."""
    return _tuples(tensor.tolist())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def cast_floats(tensor: Tensor, dtype: Any) -> Tensor:
    """Floats in another type; other tensors as they are."""
    return tensor.to(dtype) if tensor.dtype in FLOATS else tensor


def within(tensor: Tensor, dtype: Any) -> Tensor:
    """Finite numbers as finite ones of a type: the lowest float32, as masks have it, is no -inf."""
    largest = torch.finfo(dtype).max
    if largest >= torch.finfo(tensor.dtype).max:
        return tensor
    return torch.where(torch.isinf(tensor), tensor, tensor.clamp(-largest, largest))


def item(results: Any, index: int) -> Any:
    """One of several results."""
    return results[index]


TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name an element type."""


def attributes_of(node: ir.Node, types: Types, wide: bool = False) -> dict[str, Any]:
    """Attributes as Python has them; element types as torch has them."""
    found = {n: _read(n, attribute, types, wide) for n, attribute in node.attributes.items()}
    return {name: value for name, value in found.items() if value is not None}


def _read(name: str, attribute: ir.Attr, types: Types, wide: bool) -> Any:
    value = attribute.value
    if name in TYPES:
        return types.of(ir.DataType(value), wide) if value else None
    if attribute.type == ir.AttributeType.TENSOR:
        array = value.numpy().reshape(-1)
        return array[0].item(), types.of(value.dtype, wide)
    return tuple(value) if isinstance(value, (list, tuple)) else value


def constant_of(node: ir.Node) -> ir.TensorProtocol:
    """Contents of a Constant. Raises ExecutionError where it holds no numbers."""
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        raise ExecutionError(f"{describe(node)} holds no numbers, and torch has no strings.")
    return tensor


def describe(node: ir.Node) -> str:
    """`node 'name' (ai.onnx:Op)`."""
    return f"node '{node.name}' ({node.domain or 'ai.onnx'}:{node.op_type})"
