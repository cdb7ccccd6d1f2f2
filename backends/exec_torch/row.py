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

EXTRAS = ("opset", "outputs", "operand_dtype", "device")
"""Version of the op's domain; number of outputs; torch's type of the first operand; the device."""


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

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """The parameters that are no operands and no attributes."""
        return tuple(name for name in EXTRAS if name in self._parameters)

    def unknown(self, attributes: dict[str, Any]) -> list[str]:
        """Attributes that the function has no parameter for."""
        kinds = {p.kind for p in self._parameters.values()}
        if inspect.Parameter.VAR_KEYWORD in kinds:
            return []
        return [name for name in attributes if name not in self._parameters]

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        try:
            return dict(inspect.signature(self.function).parameters)
        except ValueError:  # torch's own functions take operands only
            return {}


Rows = dict[str, Row | Callable[..., Any]]
"""By op type; a bare function is a row that takes tensors and returns one."""


def plain(function: Callable[..., Any], *positions: int, many: bool = False) -> Row:
    """A row with operands that are Python numbers."""
    return Row(function, plain=positions, many=many)


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
