"""A row of the table: the function that an op is, and how it wants its operands.

The function takes the node's operands by position (None where left out) and its attributes by name.
It may also ask, by the name of a parameter, for what `EXTRAS` lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

EXTRAS = ("opset", "outputs", "operand_dtype", "made", "device")
"""Version of ai.onnx; number of outputs; types of the first operand and of the first result, None
where unknown; the device."""


@dataclass(frozen=True)
class Prepacked:
    """Another function for a node whose weights are known, on weights in an order of its own."""

    function: Callable[..., Any]
    operands: dict[int, Any]
    """Tensors (or None) in the place of the operands at these positions."""
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One op."""

    function: Callable[..., Any]
    plain: tuple[int, ...] = ()
    """Operands that it takes as Python numbers, or tuples of them: shapes, axes, counts."""
    scalar: tuple[int, ...] = ()
    """Operands that it takes as a Python number where that is at hand, else as a tensor."""
    many: bool = False
    """Whether it returns a tuple of results, however many are read."""
    prepack: Callable[..., Prepacked | None] | None = None
    """Given constant operands (None for others), attributes, device and type, what to call instead.
    """

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What the function takes, by name."""
        return parameters_of(self.function)

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """The parameters that are no operands and no attributes."""
        return tuple(name for name in EXTRAS if name in self.parameters)


Rows = dict[str, Row | Callable[..., Any]]
"""By op type; a bare function is a row that takes tensors and returns one."""


def plain(function: Callable[..., Any], *positions: int, many: bool = False) -> Row:
    """A row with operands that are Python numbers."""
    return Row(function, plain=positions, many=many)


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name; torch's own functions, which take operands only, have none."""
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError:
        return {}


def unknown(function: Callable[..., Any], attributes: dict[str, Any]) -> list[str]:
    """Attributes that a function has no parameter for."""
    parameters = parameters_of(function)
    if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return []
    return [name for name in attributes if name not in parameters]


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in parameters_of(function)


def many(function: Callable[..., Any]) -> Row:
    """A row with several results."""
    return Row(function, many=True)


def sizes(value: Any) -> tuple[int, ...]:
    """A plain operand as a tuple, a single number being a tuple of one."""
    return value if isinstance(value, tuple) else (value,)


def number(value: Any, default: Any = None) -> Any:
    """A plain operand as a number; a tuple of one is that one."""
    if value is None:
        return default
    return value[0] if isinstance(value, tuple) else value
