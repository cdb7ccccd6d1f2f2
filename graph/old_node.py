"""A node of an older opset while it is being rewritten in its newer form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.errors import GraphError

Operands = Sequence[ir.Value | None]


@dataclass(frozen=True)
class Old:
    """A node in its old form, while it is being rewritten."""

    node: ir.Node
    opset: int
    typed: Mapping[ir.Value, ir.Value]
    """Operands and results as ONNX's inference types them."""

    def refused(self, reason: str) -> GraphError:
        """The error that this node cannot be brought to a newer opset."""
        return GraphError(
            f"node '{self.node.name}' ({self.node.op_type} of opset {self.opset}) {reason}. "
            "Export the model again, for inference and with opset 13 or newer."
        )

    def operand(self, index: int) -> ir.Value | None:
        """Operand `index`, or None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or `default`."""
        attributes = self.node.attributes
        return attributes[name].value if name in attributes else default

    def kept(self, *names: str) -> dict[str, Any]:
        """The attributes of these names that are given."""
        return {n: self.node.attributes[n] for n in names if n in self.node.attributes}

    def dims(self, index: int) -> list[Any] | None:
        """Sizes of operand `index`, None where its rank is not known."""
        twin = self._twin(index)
        return None if twin is None or twin.shape is None else list(twin.shape)

    def rank(self, index: int) -> int:
        """Rank of operand `index`. Raises GraphError where it is not known."""
        dims = self.dims(index)
        if dims is None:
            raise self.refused(f"has operand {index} of unknown rank")
        return len(dims)

    def dtype(self, index: int) -> ir.DataType | None:
        """Element type of operand `index`, None where it is not known."""
        twin = self._twin(index)
        return None if twin is None else twin.dtype

    def _twin(self, index: int) -> ir.Value | None:
        value = self.operand(index)
        return None if value is None else self.typed.get(value)

    def emit(self, op_type: str, *operands: ir.Value | None, **attributes: Any) -> ir.Value:
        """Result of a node that is inserted before this one."""
        node = ir.node(op_type, operands, attributes)
        self.node.prepend(node)
        place = f"{self.node.outputs[0].name or self.node.name}/{op_type}"
        node.outputs[0].name = f"{place}_{len(self.node.graph or ())}"
        return node.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        """A constant of int64[n]."""
        return self.emit("Constant", value=ir.tensor(np.array(numbers, np.int64)))

    def like(self, number: float | Sequence[float], index: int = 0) -> ir.Value:
        """A constant of the element type of operand `index`."""
        dtype = self.dtype(index)
        with np.errstate(over="ignore"):
            array = np.array(number, np.float32 if dtype is None else dtype.numpy())
        constant = self.emit("Constant", value=ir.tensor(array, dtype))
        return self.emit("CastLike", constant, self.operand(index)) if dtype is None else constant

    def become(self, op_type: str, operands: Operands, **attributes: Any) -> None:
        """Turn this node into another, whose result has the old one's name."""
        while operands and operands[-1] is None:
            operands = operands[:-1]
        self.node.op_type = op_type
        self.node.resize_inputs(len(operands))
        for index, value in enumerate(operands):
            self.node.replace_input_with(index, value)
        self.node.attributes.clear()
        for attribute in ir.convenience.convert_attributes(attributes):
            self.node.attributes[attribute.name] = attribute


@dataclass(frozen=True)
class OldForm:
    """An op whose form or meaning changed."""

    until: int
    """The first opset that has today's form."""
    rewrite: Callable[[Old], None]


def renamed(o: Old, name: str) -> None:
    """The same op by its newer name."""
    o.node.op_type = name
