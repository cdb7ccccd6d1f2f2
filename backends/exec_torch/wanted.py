"""Which integers are read as Python numbers: shapes, axes, counts, and what they come from."""

from __future__ import annotations

import onnx_ir as ir

from .plain_dims import Dims
from .plain_rows import PLAIN_ROWS
from .table import row_of


def wanted_plain(graph: ir.Graph) -> set[ir.Value]:
    """Values that reach an operand of which a row wants Python numbers through ops on shapes."""
    wanted: set[ir.Value] = set()
    for node in reversed(graph):
        row = row_of(node)
        if row is not None:
            wanted.update(v for i, v in enumerate(node.inputs) if i in row.plain and v is not None)
        is_plain = node.domain == "" and node.op_type in PLAIN_ROWS
        if is_plain and any(value in wanted for value in node.outputs):
            wanted.update(v for v in node.inputs if v is not None)
    return wanted


_LISTS = {("Reshape", 1), ("Expand", 1), ("Tile", 1), ("ConstantOfShape", 0), ("Split", 1)}
_LISTS |= {(op, place) for op, last in (("Slice", 4), ("Pad", 1)) for place in range(1, last + 1)}
"""Operands that have one dim by the definition of their op."""


def plain_dims(value: ir.Value) -> Dims | None:
    """Dims of an integer that can pass as Python numbers: at most one; None for others."""
    if value.dtype is None or not value.dtype.is_integer():
        return None
    if value.shape is not None:
        return Dims(len(value.shape)) if len(value.shape) <= 1 else None
    users = ((node.op_type, place) for node, place in value.uses() if node.domain == "")
    return Dims(1) if any(use in _LISTS for use in users) else None
