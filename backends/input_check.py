"""Compare what a program is given with what its graph declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graph.errors import PlanError
from graph.weights import has_type


def input_check(values: Sequence[ir.Value]) -> Callable[[Mapping[str, np.ndarray]], None]:
    """What compares inputs with the declared ones; it raises PlanError with all that is wrong.

    What is declared is worked out once, since every run asks for it.
    """
    declared = [_Declared(value) for value in values]
    names = {wanted.name for wanted in declared}

    def check(inputs: Mapping[str, np.ndarray]) -> None:
        if len(inputs) == len(names) and all(d.fits(inputs.get(d.name)) for d in declared):
            return
        wrong = [f"'{name}' is no input" for name in inputs if name not in names]
        for wanted in declared:
            array = inputs.get(wanted.name)
            if array is None:
                wrong.append(f"'{wanted.name}' is missing")
            elif not wanted.fits(array):
                wrong.append(f"'{wanted.name}' is {_described(array)} where the graph has {wanted}")
        raise PlanError(
            f"the inputs do not fit the graph: {'; '.join(wrong)}. "
            f"Inputs of the graph: {', '.join(wanted.name for wanted in declared)}."
        )

    return check


class _Declared:
    """An input as the graph declares it."""

    def __init__(self, value: ir.Value) -> None:
        self.name = value.name or ""
        self._is_tensor = isinstance(value.type, ir.TensorType)
        self._type = value.dtype
        self._dtype = None if value.dtype is None else value.dtype.numpy()
        self._shape = value.shape
        self._sizes = None if value.shape is None else tuple(value.shape)

    def __str__(self) -> str:
        return f"{self._dtype or '?'}{self._shape}"

    def fits(self, array: np.ndarray | None) -> bool:
        """Whether this is an array of the declared type and shape."""
        if not isinstance(array, np.ndarray):  # what Python has for a sequence
            return array is not None and not self._is_tensor
        return self._has_type(array) and self._has_shape(array)

    def _has_type(self, array: np.ndarray) -> bool:
        if self._type is None or self._dtype is None:
            return True
        return array.dtype is self._dtype or has_type(array, self._type)

    def _has_shape(self, array: np.ndarray) -> bool:
        if self._sizes is None or array.shape == self._sizes:
            return True
        return len(self._sizes) == array.ndim and all(
            not isinstance(size, int) or size == given
            for size, given in zip(self._sizes, array.shape)
        )


def _described(array: np.ndarray) -> str:
    is_array = isinstance(array, np.ndarray)
    return f"{array.dtype}{list(array.shape)}" if is_array else f"a {type(array).__name__}"
