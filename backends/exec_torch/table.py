"""The table: what every op is in torch, one row each."""

from __future__ import annotations

import onnx_ir as ir

from . import (
    attention,
    casts,
    conv,
    elementwise,
    fused_attention,
    fused_elementwise,
    grouped,
    index,
    int4,
    matmul,
    mixers,
    moe,
    n_bits,
    norm,
    pool,
    qlinear,
    quant,
    recurrent,
    reduce,
    resize,
    shape,
    signal,
    vision,
)
from .row import Row, Rows

_FILES = (
    attention, casts, conv, elementwise, fused_attention, fused_elementwise, grouped, index, int4,
    matmul, mixers, moe, n_bits, norm, pool, qlinear, quant, recurrent, reduce, resize, shape,
    signal, vision,
)  # fmt: skip


def _table() -> dict[tuple[str, str], Row]:
    table: dict[tuple[str, str], Row] = {}
    for file in _FILES:
        for domain, rows in (("", file.STANDARD), ("com.microsoft", file.MICROSOFT)):
            _add(table, domain, rows)
    return table


def _add(table: dict[tuple[str, str], Row], domain: str, rows: Rows) -> None:
    for op_type, row in rows.items():
        table[domain, op_type] = row if isinstance(row, Row) else Row(row)


TABLE = _table()
"""By domain (empty for ai.onnx) and op type."""
LOWERED_ELSEWHERE = {("", op) for op in "Constant If Loop Scan Shape Size".split()}
"""Ops that `lower` and `control` treat themselves."""


def row_of(node: ir.Node) -> Row | None:
    """The row of a node's op."""
    return TABLE.get((node.domain, node.op_type))


def has_row(node: ir.Node) -> bool:
    """Whether a node can be lowered."""
    key = (node.domain, node.op_type)
    return key in TABLE or key in LOWERED_ELSEWHERE
