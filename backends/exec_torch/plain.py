"""Lowering of shape arithmetic to Python numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import fx

from .held import Held, attributes_of, item
from .plain_dims import Dims
from .plain_rows import PLAIN_ROWS, PlainRow, shape_of, shape_of_plain, size_of
from .row import unknown

if TYPE_CHECKING:
    from .lower import Lowering


def lower_plain(lowering: Lowering, node: ir.Node) -> bool:
    """Compute in Python if all operands are plain; whether that was done."""
    if node.domain != "":
        return False
    if node.op_type in ("Shape", "Size"):
        _measure(lowering, node)
        return True
    row = PLAIN_ROWS.get(node.op_type)
    operands = [None if value is None else lowering.find(value) for value in node.inputs]
    given = [held for held in operands if held is not None]
    if row is None or not given or any(held.dims is None for held in given):
        return False
    attributes = attributes_of(node, lowering.types)
    dims = row.rank_of([held.dims for held in given if held.dims], attributes)
    is_wanted = not row.grows or any(lowering.is_wanted(value) for value in node.outputs)
    if dims is None or not is_wanted or unknown(row.function, attributes):
        return False
    dtype = _dtype(node, row, given, attributes)
    if not isinstance(dtype, torch.dtype):
        return False
    if dtype.is_floating_point:  # a factor may be made of sizes; a list is a weight, not a shape
        if row.grows or dims.rank:
            return False
        dtype = lowering.types.dtype or dtype
    _emit(lowering, node, row, [held and held.plain for held in operands], attributes, dims, dtype)
    return True


def _dtype(node: ir.Node, row: PlainRow, given: list[Held], attributes: dict[str, Any]) -> Any:
    """torch's type of the result."""
    if node.op_type == "ConstantOfShape":
        return attributes.get("value", (0.0, torch.float32))[1]
    return attributes.get("to") or row.gives or given[node.op_type == "Where"].dtype


def _emit(
    lowering: Lowering, node: ir.Node, row: PlainRow, operands: list[Any],
    attributes: dict[str, Any], dims: Dims, dtype: Any,
) -> None:  # fmt: skip
    several = node.op_type == "Split"
    if several:
        attributes["outputs"] = len(node.outputs)
    if any(isinstance(operand, fx.Node) for operand in operands):
        made = lowering.call(row.function, operands, attributes)
    else:
        made = row.function(*operands, **attributes)
    for index, value in enumerate(node.outputs):
        one = made
        if several:
            one = lowering.call(item, (made, index)) if isinstance(made, fx.Node) else made[index]
        known = Dims(1, len(one)) if isinstance(one, tuple) and dims.rank == 1 else dims
        lowering.hold(value, Held(plain=one, dims=known, dtype=dtype))


def _measure(lowering: Lowering, node: ir.Node) -> None:
    """Shape and Size, which read no contents."""
    value = node.inputs[0]
    held = lowering.find(value) if value is not None else Held()
    attributes = attributes_of(node, lowering.types)
    is_list = node.op_type == "Shape"
    rank = len(value.shape) if value is not None and value.shape is not None else None
    if held.dims is not None and is_list:
        made = lowering.call(shape_of_plain, (held.plain,), attributes)
        rank = held.dims.rank
    else:
        measure = shape_of if is_list else size_of
        made = lowering.call(measure, (lowering.tensor(held, held.wide),), attributes)
    dims = Dims(1, None if attributes else rank) if is_list else Dims(0)
    lowering.hold(node.outputs[0], Held(plain=made, dims=dims, dtype=torch.int64))
