"""A decoder of any published size as a graph of fused ops, with weights that are never read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

OPSET, IR_VERSION = 20, 10
NOWHERE = "never-read"
"""Location of the weights: plans are made without their contents."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, and of one run of it."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    batch: int
    sequence: int
    cache: int = 0
    """Positions in the KV cache."""
    gated: bool = True
    """Whether the feed-forward part is a SwiGLU; else two matrices and a GELU."""
    dtype: ir.DataType = ir.DataType.FLOAT16


def make(shape: DecoderShape) -> ir.Model:
    """The model."""
    return ir.Model(_Builder(shape).graph(), ir_version=IR_VERSION)


class _Builder:
    """Builds the graph; `last` is the residual stream."""

    def __init__(self, shape: DecoderShape) -> None:
        self.shape = shape
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.inputs = [_value("input_ids", ir.DataType.INT64, (shape.batch, shape.sequence))]
        self.outputs: list[ir.Value] = []

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **more: Any) -> ir.Value:
        """Append a node with one output; return the output."""
        node = ir.node(op_type, inputs, more, domain=domain, name=f"node_{len(self.nodes)}")
        node.outputs[0].name = f"value_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def weight(self, *dims: int) -> ir.Value:
        """A weight without contents."""
        name, dtype = f"weight_{len(self.constants)}", self.shape.dtype
        size = int(np.prod(dims)) * dtype.itemsize
        value = _value(name, dtype, dims)
        value.const_value = ir.ExternalTensor(
            NOWHERE, 0, size, dtype, name=name, shape=ir.Shape(dims)
        )
        self.constants.append(value)
        return value

    def constant(self, array: np.ndarray) -> ir.Value:
        """A small constant."""
        tensor = ir.tensor(array, name=f"constant_{len(self.constants)}")
        value = _value(tensor.name or "", tensor.dtype, array.shape)
        value.const_value = tensor
        self.constants.append(value)
        return value

    def norm(self, value: ir.Value) -> ir.Value:
        """Layer norm."""
        hidden = self.shape.hidden
        return self.op("LayerNormalization", value, self.weight(hidden), self.weight(hidden))

    def linear(self, value: ir.Value, inputs: int, outputs: int) -> ir.Value:
        """A product with a matrix."""
        return self.op("MatMul", value, self.weight(inputs, outputs))

    def attention(self, value: ir.Value, layer: int) -> ir.Value:
        """Grouped-query attention that reads and extends the cache."""
        s = self.shape
        size, total = s.hidden // s.heads, s.cache + s.sequence
        widths = [s.heads * size, s.kv_heads * size, s.kv_heads * size]
        parts = [self.linear(value, s.hidden, width) for width in widths]
        held, longer = ((s.batch, s.kv_heads, n, size) for n in (s.cache, total))
        past = [_value(f"past.{layer}.{part}", s.dtype, held) for part in ("key", "value")]
        lengths = self.constant(np.full(s.batch, total - 1, np.int32))
        node = ir.node(
            "GroupQueryAttention",
            [*parts, *past, lengths, self.constant(np.array(total, np.int32))],
            {"num_heads": s.heads, "kv_num_heads": s.kv_heads},
            domain="com.microsoft",
            num_outputs=3,
            name=f"attention_{layer}",
        )
        node.outputs[0].name = f"mixed_{layer}"
        for output, part in zip(node.outputs[1:], ("key", "value"), strict=True):
            output.name, output.type = f"present.{layer}.{part}", ir.TensorType(s.dtype)
            output.shape = ir.Shape(longer)
        self.nodes.append(node)
        self.inputs += past
        self.outputs += node.outputs[1:]
        return self.linear(node.outputs[0], widths[0], s.hidden)

    def feed_forward(self, value: ir.Value) -> ir.Value:
        """SwiGLU, or two matrices with a GELU between them."""
        hidden, wide = self.shape.hidden, self.shape.intermediate
        up = self.linear(value, hidden, wide)
        if self.shape.gated:
            gate = self.linear(value, hidden, wide)
            inner = self.op("Mul", self.op("QuickGelu", gate, domain="com.microsoft"), up)
        else:
            inner = self.op("Gelu", up)
        return self.linear(inner, wide, hidden)

    def graph(self) -> ir.Graph:
        """The whole model."""
        s = self.shape
        stream = self.op("Gather", self.weight(s.vocabulary, s.hidden), self.inputs[0], axis=0)
        for layer in range(s.layers):
            stream = self.op("Add", stream, self.attention(self.norm(stream), layer))
            stream = self.op("Add", stream, self.feed_forward(self.norm(stream)))
        logits = self.linear(self.norm(stream), s.hidden, s.vocabulary)
        logits.name, logits.type = "logits", ir.TensorType(s.dtype)
        logits.shape = ir.Shape([s.batch, s.sequence, s.vocabulary])
        return ir.Graph(
            self.inputs,
            [logits, *self.outputs],
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": OPSET, "com.microsoft": 1},
            name="decoder",
        )


def _value(name: str, dtype: ir.DataType, dims: Sequence[int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))
