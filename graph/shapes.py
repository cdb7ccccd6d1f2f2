"""What is known of a graph's values: symbolic shapes, and contents of small integer tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dims import Dim, Dims, Expr, from_text, symbol

MAX_CONTENTS = 64
"""Integer tensors of up to this many elements have their contents followed."""

Contents = np.ndarray
"""Object array of Dim."""


@dataclass
class Shapes:
    """What is known of every value after `infer_shapes`."""

    dims: dict[ir.Value, Dims] = field(default_factory=dict)
    contents: dict[ir.Value, Contents] = field(default_factory=dict)
    equal: dict[str, int] = field(default_factory=dict)
    """Symbols an op's meaning gives a number: the head size of a cache declared as `[…, size]`."""
    taken: set[str] = field(default_factory=set)
    """Names of all symbols that the model declares."""
    fresh: int = 0

    def known(self, value: ir.Value | None) -> bool:
        """Whether at least the rank of `value` is known."""
        return value is not None and value in self.dims

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """Contents as plain ints, or None where they are not constant."""
        contents = self.contents.get(value) if value is not None else None
        if contents is None or any(isinstance(entry, Expr) for entry in contents.flat):
            return None
        return [int(entry) for entry in contents.flat]

    def tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """Contents as a tensor of the value's type, or None where they are no constant of it."""
        contents = self.ints(value)
        if contents is None:
            return None
        dtype = (value.dtype or ir.DataType.INT64).numpy()
        try:
            return ir.tensor(np.array(contents, dtype).reshape(self.contents[value].shape))
        except OverflowError:
            return None  # a Cast that wraps around is left to the executor

    def declared(self, size: int | ir.SymbolicDim) -> Dim:
        """An exporter's size as ours."""
        if isinstance(size, int):
            return size if size >= 0 else self.new_symbol()
        found = from_text(size.value) if size.value is not None else -1
        return found if isinstance(found, Expr) or found >= 0 else self.new_symbol()

    def new_symbol(self) -> Expr:
        """A size nothing is known of."""
        self.fresh += 1
        while f"unk{self.fresh}" in self.taken:
            self.fresh += 1
        return symbol(f"unk{self.fresh}")


class Misfit(ValueError):
    """Operands that an op does not allow; the message says which sizes on both sides."""


@dataclass(frozen=True)
class Context:
    """One node while its results are inferred."""

    node: ir.Node
    shapes: Shapes

    def dims(self, index: int) -> Dims:
        """Shape of operand `index`."""
        value = self.operand(index)
        if value is None:
            raise KeyError(index)
        return self.shapes.dims[value]

    def operand(self, index: int) -> ir.Value | None:
        """Operand `index`, or None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def contents(self, index: int) -> Contents:
        """Contents of operand `index`. Raises KeyError where they are not known."""
        value = self.operand(index)
        if value is None:
            raise KeyError(index)
        return self.shapes.contents[value]

    @property
    def opset(self) -> int:
        """Version of the op set that the node's op belongs to."""
        graph = self.node.graph
        versions = {} if graph is None else graph.opset_imports
        return versions.get(self.node.domain, 1)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or `default`."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value
