"""Ops on shapes, computed in Python: numbers, and tuples of them for tensors of one dim.

Nothing here touches a tensor, so that shape arithmetic never waits for a device and torch.compile
sees plain (symbolic) numbers. A value takes part where it has at most one dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import plain_dims

Number = Any
"""A Python number, which torch.compile may make symbolic."""


def _each(function: Callable[..., Number]) -> Callable[..., Any]:
    """Apply to numbers, and to tuples of them by the rules of broadcasting."""

    def run(*operands: Any) -> Any:
        lengths = [len(x) for x in operands if isinstance(x, tuple)]
        if not lengths:
            return function(*operands)
        count = max(lengths) if 0 not in lengths else 0
        columns = [_spread(x, count) for x in operands]
        return tuple(function(*row) for row in zip(*columns))

    run.__name__ = run.__qualname__ = f"each_{function.__name__.strip('<>_')}"
    return run


def _spread(x: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(x, tuple):
        return (x,) * count
    return x * count if len(x) == 1 else x


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _add(a: Number, b: Number) -> Number:
    return a + b


def _subtract(a: Number, b: Number) -> Number:
    return a - b


def _multiply(a: Number, b: Number) -> Number:
    return a * b


def _equal(a: Number, b: Number) -> Number:
    return a == b


def _greater(a: Number, b: Number) -> Number:
    return a > b


def _at_least(a: Number, b: Number) -> Number:
    return a >= b


def _less(a: Number, b: Number) -> Number:
    return a < b


def _at_most(a: Number, b: Number) -> Number:
    return a <= b


def _both(a: Number, b: Number) -> Number:
    return bool(a) and bool(b)


def _either(a: Number, b: Number) -> Number:
    return bool(a) or bool(b)


def _invert(a: Number) -> Number:
    return not a


def _choose(condition: Number, x: Number, y: Number) -> Number:
    return x if condition else y


def _negate(a: Number) -> Number:
    return -a


def _floor(a: Number) -> Number:
    return float(math.floor(a))


def _ceil(a: Number) -> Number:
    return float(math.ceil(a))


def same(x: Any) -> Any:
    """The value itself."""
    return x


def _power(a: Number, b: Number) -> Number:
    return a**b


def _modulo(a: Number, b: Number) -> Number:
    return a % b


def _largest(*numbers: Number) -> Number:
    return max(numbers)


def _smallest(*numbers: Number) -> Number:
    return min(numbers)


def cast(x: Any, *, to: Any, saturate: int = 1) -> Any:
    """Numbers of another kind."""
    kind = bool if to == torch.bool else float if to.is_floating_point else int
    return tuple(kind(one) for one in x) if isinstance(x, tuple) else kind(x)


def gather(x: tuple[Any, ...], indices: Any, *, axis: int = 0) -> Any:
    """Entries of a list."""
    return tuple(x[i] for i in indices) if isinstance(indices, tuple) else x[indices]


def concat(*parts: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """Lists one after another."""
    return sum(parts, ())


def slices(x: tuple[Any, ...], starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    """A range of a list."""
    return x[_one(starts) : _one(ends) : 1 if steps is None else _one(steps)]


def _one(x: Any) -> Any:
    return x[0] if isinstance(x, tuple) else x


def squeeze(x: Any, axes: Any = None) -> Any:
    """The one entry of a list."""
    return _one(x)


def unsqueeze(x: Any, axes: Any) -> Any:
    """A list of one."""
    return (x,)


def reshape(x: Any, shape: Any, *, allowzero: int = 0) -> Any:
    """A number as a list of one, or the other way round."""
    whole = x if isinstance(x, tuple) else (x,)
    return whole if len(shape) else whole[0]


def expand(x: Any, shape: Any) -> Any:
    """A number (or list of one) several times."""
    return _spread(x, shape[0]) if len(shape) else x


def constant_of_shape(shape: Any, *, value: tuple[Any, Any] = (0.0, torch.float32)) -> Any:
    """One number several times."""
    return (value[0],) * shape[0] if len(shape) else value[0]


def range_of(start: Any, limit: Any, delta: Any) -> Any:
    """Numbers in steps."""
    return tuple(range(_one(start), _one(limit), _one(delta)))


def _total(function: Callable[[Any], Any]) -> Callable[..., Any]:
    def run(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        made = function(x) if isinstance(x, tuple) else x
        return (made,) if isinstance(x, tuple) and keepdims else made

    run.__name__ = run.__qualname__ = f"total_{function.__name__}"
    return run


def split(x: Any, parts: Any = None, *, outputs: int, axis: int = 0, num_outputs: int = 0) -> Any:
    """Pieces of a list."""
    each = -(-len(x) // outputs)
    ends = [each * (i + 1) for i in range(outputs)]
    if parts is not None:
        ends = [sum(parts[: i + 1]) for i in range(outputs)]
    return tuple(x[start:end] for start, end in zip([0, *ends], ends))


def shape_of(x: Any, *, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """Sizes of a tensor's dims."""
    return tuple(x.shape[start:end])


def shape_of_plain(x: Any, *, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """Sizes of a plain value's dims."""
    return ((len(x),) if isinstance(x, tuple) else ())[start:end]


def size_of(x: Any) -> int:
    """Number of a tensor's elements."""
    count = 1
    for size in x.shape:
        count = count * size
    return count


@dataclass(frozen=True)
class PlainRow:
    """How an op is computed in Python."""

    function: Callable[..., Any]
    rank_of: plain_dims.Rank = plain_dims.widest
    grows: bool = False
    """Whether it may make a long list: done in Python only where someone wants a Python list."""
    gives: Any = None
    """torch's type of the result, where it is not that of the operands."""


_BOOL = torch.bool
_EACH: dict[str, tuple[Callable[..., Any], Any]] = {
    "Abs": (abs, None), "Add": (_add, None), "And": (_both, _BOOL), "Ceil": (_ceil, None),
    "Div": (_divide, None), "Equal": (_equal, _BOOL), "Floor": (_floor, None),
    "Greater": (_greater, _BOOL), "GreaterOrEqual": (_at_least, _BOOL), "Less": (_less, _BOOL),
    "LessOrEqual": (_at_most, _BOOL), "Max": (_largest, None), "Min": (_smallest, None),
    "Mod": (_modulo, None), "Mul": (_multiply, None), "Neg": (_negate, None),
    "Not": (_invert, _BOOL), "Or": (_either, _BOOL), "Pow": (_power, None),
    "Sqrt": (math.sqrt, None), "Sub": (_subtract, None), "Where": (_choose, None),
}  # fmt: skip
PLAIN_ROWS: dict[str, PlainRow] = {
    **{op: PlainRow(_each(function), gives=gives) for op, (function, gives) in _EACH.items()},
    "Cast": PlainRow(cast, plain_dims.as_first),
    "Concat": PlainRow(concat, plain_dims.joined),
    "ConstantOfShape": PlainRow(constant_of_shape, plain_dims.shaped, grows=True),
    "Expand": PlainRow(expand, plain_dims.shaped, grows=True),
    "Gather": PlainRow(gather, plain_dims.picked),
    "Identity": PlainRow(same, plain_dims.as_first),
    "Range": PlainRow(range_of, plain_dims.counted, grows=True),
    "ReduceMax": PlainRow(_total(max), plain_dims.reduced),
    "ReduceMin": PlainRow(_total(min), plain_dims.reduced),
    "ReduceProd": PlainRow(_total(math.prod), plain_dims.reduced),
    "ReduceSum": PlainRow(_total(sum), plain_dims.reduced),
    "Reshape": PlainRow(reshape, plain_dims.shaped),
    "Slice": PlainRow(slices, plain_dims.list),
    "Split": PlainRow(split, plain_dims.list),
    "Squeeze": PlainRow(squeeze, plain_dims.squeezed),
    "Unsqueeze": PlainRow(unsqueeze, plain_dims.unsqueezed),
}
"""Ops of ai.onnx with a meaning in Python; Shape and Size, which read a tensor, stand apart."""
