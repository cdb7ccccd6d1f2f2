"""Which integers are read as Python numbers: shapes, axes, counts, and what they come from."""

from __future__ import annotations

import onnx_ir as ir

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
