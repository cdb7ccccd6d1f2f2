"""Inputs for a model nobody gave any for: the right shapes, and values the graph can work with.

Floats are normal, booleans true. Integers that look something up (a token id) stay below the size of
the table; a mask is all ones, positions count up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graph.dims import Dim, Expr, bind
from graph.errors import PlanError
from graph.shapes import Shapes

DEFAULT_SIZE = 8
KEEPS_VALUES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand"}


def make_inputs(
    graph: ir.Graph, shapes: Shapes, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs for `graph`; `sizes` binds symbolic dims, those missing get a small size."""
    random = np.random.default_rng(seed)
    bound = _bind_symbols(graph, shapes, sizes)
    return {
        value.name or "": _contents(value, _shape(value, shapes, bound), shapes, random)
        for value in graph.inputs
    }


def _bind_symbols(
    graph: ir.Graph, shapes: Shapes, sizes: Mapping[str, int]
) -> dict[str, int]:
    symbols = {
        name
        for value in graph.inputs
        for size in shapes.dims.get(value, ())
        if isinstance(size, Expr)
        for name in size.symbols
    }
    bound = {name: sizes.get(name, shapes.equal.get(name, _default(name))) for name in symbols}
    for name in symbols - sizes.keys():
        if "total" in name:
            past = next((bound[other] for other in symbols if "past" in other), 0)
            bound[name] = past + next(
                (bound[o] for o in symbols if "seq" in o and "past" not in o and "total" not in o),
                DEFAULT_SIZE,
            )
    return bound


def _default(name: str) -> int:
    """One sequence, no past: what every decoder accepts."""
    if "past" in name:
        return 0
    return 1 if "batch" in name else DEFAULT_SIZE


def _shape(value: ir.Value, shapes: Shapes, bound: Mapping[str, int]) -> tuple[int, ...]:
    if value not in shapes.dims:
        raise PlanError(
            f"cannot make up input '{value.name}': the model does not declare its shape. "
            "Give the inputs with --inputs x.npz."
        )
    return tuple(bind(size, bound, DEFAULT_SIZE) for size in shapes.dims[value])


def _contents(
    value: ir.Value, shape: tuple[int, ...], shapes: Shapes, random: np.random.Generator
) -> np.ndarray:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind not in "iu":
        return random.standard_normal(shape).astype(dtype)
    rows = _table_rows(value, shapes)
    if "position" in (value.name or "") and shape:
        positions = np.broadcast_to(np.arange(shape[-1]), shape)
        return np.minimum(positions, (rows or shape[-1]) - 1).astype(dtype)
    if rows is None:
        return np.ones(shape, dtype)
    return random.integers(0, rows, shape).astype(dtype)


def _table_rows(value: ir.Value, shapes: Shapes) -> int | None:
    """Rows of the smallest table that `value` is an index into, or None."""
    found: list[int] = []
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        for node, index in current.uses():
            data = node.inputs[0]
            if node.op_type == "Gather" and index == 1 and data in shapes.dims:
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                rows: Dim = shapes.dims[data][axis]
                found += [rows] if isinstance(rows, int) else []
            elif node.op_type in KEEPS_VALUES and index == 0:
                fresh = [out for out in node.outputs if out not in seen]
                seen.update(fresh)
                pending += fresh
    return min(found, default=None)
