"""What a session reads and writes, bound to tensors from one run to the next.

Results that pass on to later steps *stay*: once they are small and have had the same shape twice
they lie in the same memory in every run. So the collective behind a segment and the next segment
find the very tensors of the last run, and nothing is named, wrapped or bound again. Results that
leave the graph never stay, they are the caller's; nor do large ones, whose memory other segments
use in between.

onnxruntime checks the shape of a result that it is given before it writes it. A run that fails is
therefore made once more without any (which must neither draw random numbers twice nor exchange).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .base import Tensor
from .foreign_types import BYTE, FOREIGN_TYPES, view_of

STAYING_BYTES = 64 << 10
"""The largest result that stays. Beyond it a run costs more than all that is saved here."""


class OrtTensor:
    """An OrtValue, and the numpy array whose memory it borrows or which views it, if any.

    Strings, sequences and maps are no OrtValue but what Python has for them, as the array.
    """

    __slots__ = ("array", "stays", "value")

    def __init__(self, value: Any, array: np.ndarray | None = None) -> None:
        self.value = value
        self.array = array
        self.stays = False
        """Whether later runs find it in the same place."""


def array_of(value: Any) -> np.ndarray:
    """A writable view of an OrtValue's memory, which lives as long as the view."""
    if value.element_type() in FOREIGN_TYPES:
        return view_of(value)
    return value.numpy()  # type: ignore[no-any-return]


class Binding:
    """The inputs and outputs of one session."""

    def __init__(
        self,
        binding: Any,
        device: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        may_stay: Collection[str],
        nothing: Any,
    ) -> None:
        """`binding` is onnxruntime's, not bound yet; of the outputs `may_stay` pass on.

        `nothing` is an OrtValue that is bound in place of what is let go.
        """
        self.bound = binding
        self._device = device
        self._inputs = tuple(enumerate(inputs))
        self._outputs = tuple(outputs)
        self._may_stay = frozenset(may_stay)
        self._held: list[OrtTensor | None] = [None] * len(inputs)
        """Inputs that stay, which are bound already."""
        self._loose: list[str] = []
        """Inputs that are let go after the run, so that nothing of the caller's is kept alive."""
        self._nothing = nothing
        self._given: dict[str, OrtTensor] = {}
        """Outputs that the caller has put somewhere."""
        self._made: dict[str, OrtTensor] = {}
        """These and the ones that stay: what a run makes, but for the fresh ones."""
        self._fresh: tuple[tuple[int, str], ...] = ()
        self._shapes: dict[str, list[int]] = {}
        """Of fresh outputs that may stay, the shapes of the last run."""
        self.forget()

    def write_into(self, outputs: Mapping[str, OrtTensor]) -> None:
        """From now on put these outputs into these tensors."""
        for tensor in outputs.values():
            tensor.stays = True
        self._given = dict(outputs)
        self.forget()

    def forget(self) -> bool:
        """Let all results go that stay; False if there are none."""
        had_some = len(self._made) > len(self._given)
        self._made = dict(self._given)
        self._shapes.clear()
        for name in self._outputs:
            if name in self._given:
                self.bound.bind_ortvalue_output(name, self._given[name].value)
            else:
                self.bound.bind_output(name, self._device)
        self._find_fresh()
        return had_some

    def bind(self, values: Mapping[str, Tensor]) -> None:
        """Bind those inputs that are not where they were."""
        held, loose = self._held, self._loose
        for place, name in self._inputs:
            tensor = values[name]
            if tensor is not held[place]:
                self.bound.bind_ortvalue_input(name, tensor.value)
                if tensor.stays:
                    held[place] = tensor
                else:
                    held[place] = None
                    loose.append(name)

    def results(self) -> dict[str, OrtTensor]:
        """What a run has made."""
        if self._loose:
            self._let_go()
        if not self._fresh:
            return self._made
        values = self.bound.get_outputs()
        made = {name: OrtTensor(values[place]) for place, name in self._fresh}
        for name, tensor in made.items():
            self.bound.bind_output(name, self._device)
            if name in self._may_stay and self._is_steady(name, tensor.value):
                self._keep(name, tensor)
        return {**self._made, **made}

    def _let_go(self) -> None:
        for name in self._loose:
            self.bound.bind_ortvalue_input(name, self._nothing)
        self._loose.clear()

    def _is_steady(self, name: str, value: Any) -> bool:
        if value.tensor_size_in_bytes() > STAYING_BYTES:
            return False
        shape, before = value.shape(), self._shapes.get(name)
        self._shapes[name] = shape
        return shape == before and ir.DataType(value.element_type()).bitwidth >= BYTE

    def _keep(self, name: str, tensor: OrtTensor) -> None:
        tensor.stays = True
        tensor.array = array_of(tensor.value)
        self.bound.bind_ortvalue_output(name, tensor.value)
        self._made[name] = tensor
        self._find_fresh()

    def _find_fresh(self) -> None:
        names = enumerate(self._outputs)
        self._fresh = tuple((place, name) for place, name in names if name not in self._made)
