"""Contents of the small integer tensors that shapes are computed with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dims import Dim, divide, product, symbol
from graph.shape_rules import slice_bounds
from graph.shapes import Contents, Context


def _array(entries: Sequence[Dim]) -> Contents:
    out = np.empty(len(entries), object)
    out[:] = entries
    return out


def _shape_contents(c: Context) -> Contents:
    dims = c.dims(0)
    return _array(dims[slice(c.attribute("start", 0), c.attribute("end"))])


def _gather_contents(c: Context) -> Contents:
    index = c.contents(1).astype(np.int64)
    return np.asarray(np.take(c.contents(0), index, axis=c.attribute("axis", 0)), object)


def _slice_contents(c: Context) -> Contents:
    data = c.contents(0)
    ((_, start, stop, step),) = slice_bounds(c)
    return data[start:stop:step] if data.ndim == 1 else _unknown()


def _unknown() -> Contents:
    raise KeyError("contents")


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Context], Contents]:
    def rule(c: Context) -> Contents:
        return np.asarray(np.frompyfunc(function, 2, 1)(c.contents(0), c.contents(1)), object)

    return rule


def _floor_divide(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b) if b else _raise(ZeroDivisionError())
        return quotient if (a < 0) == (b < 0) else -quotient  # ONNX rounds towards zero
    quotient = divide(a, b)
    return symbol(f"({a})//({b})") if quotient is None else quotient


def _raise(error: Exception) -> Any:
    raise ValueError(error)


def _larger(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return a if a == b else _raise(TypeError())


def _largest(c: Context) -> Contents:
    function = np.frompyfunc(_larger, 2, 1)
    total = c.contents(0)
    for index in range(1, len(c.node.inputs)):
        total = np.asarray(function(total, c.contents(index)), object)
    return total


def _squeeze_contents(c: Context) -> Contents:
    axes = c.attribute("axes")
    if c.operand(1) is not None:
        axes = [int(axis) for axis in c.contents(1).flat]
    return np.squeeze(c.contents(0), None if axes is None else tuple(axes))


def _unsqueeze_contents(c: Context) -> Contents:
    axes = [int(axis) for axis in c.contents(1).flat]
    return np.expand_dims(c.contents(0), tuple(axes))


def _reshape_contents(c: Context) -> Contents:
    return c.contents(0).reshape([int(size) for size in c.contents(1).flat])


def _concat_contents(c: Context) -> Contents:
    operands = [c.contents(i) for i in range(len(c.node.inputs))]
    return np.concatenate(operands, axis=c.attribute("axis", 0))


def _same_contents(c: Context) -> Contents:
    return c.contents(0)


def _cast_contents(c: Context) -> Contents:
    target = ir.DataType(c.attribute("to"))
    return c.contents(0) if target.is_integer() else _unknown()


def _filled_contents(c: Context) -> Contents:
    value = c.attribute("value")
    if value is None or not value.dtype.is_integer():
        _unknown()
    shape = [int(size) for size in c.contents(0).flat]
    return np.full(shape, int(value.numpy().reshape(-1)[0]), object)


def _is_equal(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal. KeyError where that depends on the input."""
    if a == b:
        return True
    fixed = [size for size in (a, b) if isinstance(size, int)]
    if len(fixed) == 2 or any(size < 0 for size in fixed):
        return False  # a size is never negative
    raise KeyError("equality of two sizes")


def _where_contents(c: Context) -> Contents:
    chosen = c.contents(0).astype(bool)
    return np.asarray(np.where(chosen, c.contents(1), c.contents(2)), object)


CONTENT_RULES: dict[str, Callable[[Context], Contents]] = {
    "Shape": _shape_contents,
    "Size": lambda c: np.asarray(product(c.dims(0)), object),
    "Gather": _gather_contents,
    "Slice": _slice_contents,
    "Concat": _concat_contents,
    "Squeeze": _squeeze_contents,
    "Unsqueeze": _unsqueeze_contents,
    "Reshape": _reshape_contents,
    "Identity": _same_contents,
    "Cast": _cast_contents,
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(_floor_divide),
    "Max": _largest,
    "ConstantOfShape": _filled_contents,
    "Equal": _binary(_is_equal),
    "Where": _where_contents,
}
