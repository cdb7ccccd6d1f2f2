"""Which type a value is computed in, where the user asks for one that is not the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from .tensors import CARRIED, FLOATS, torch_dtype

EXACT = ("Sin", "Cos")
"""Ops of positions, which 16 bits cannot count: what leads to them stays in float32."""


@dataclass(frozen=True)
class Types:
    """The rule from a model's types to those computed in."""

    dtype: Any = None
    """torch's type for all floats of the model; None keeps the model's own."""

    def of(self, dtype: ir.DataType, wide: bool = False) -> Any:
        """torch's type of an ONNX type, or the name of one whose codes travel in bytes."""
        if dtype in CARRIED:
            return dtype.name.lower()
        found = torch_dtype(dtype)
        if self.dtype is None or found not in FLOATS:
            return found
        return torch.float32 if wide else self.dtype


def wide_values(graph: ir.Graph) -> set[ir.Value]:
    """Sines and cosines, and all on the way to them from integers and constants."""
    found: set[ir.Value] = set()
    for node in graph:
        if node.op_type in EXACT and node.domain == "" and (values := _closure(node)):
            found |= {*values, *node.outputs}
    return found


def _closure(node: ir.Node) -> set[ir.Value]:
    """The float values that a node's operand is computed from; none if one is an input."""
    found: set[ir.Value] = set()
    waiting = [value for value in node.inputs if value is not None]
    while waiting:
        value = waiting.pop()
        is_integer = value.dtype is not None and not value.dtype.is_floating_point()
        if value in found or is_integer:
            continue
        if value.is_graph_input() or value.graph is not node.graph:
            return set()
        found.add(value)
        producer = value.producer()
        if producer is not None:
            waiting.extend(v for v in producer.inputs if v is not None)
    return found
