"""One small decoder with the same weights, written in the forms that frameworks write it in.

    make("qkv in thirds, Split", kv_heads=8, path)

The outputs of all forms are equal, and so should be the collectives of a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.models import Inputs

OPSET = 18
BATCH, SEQUENCE = 2, 5
LAYERS, HIDDEN, HEADS, HEAD_SIZE, INTERMEDIATE, VOCABULARY = 2, 64, 8, 8, 144, 128
KV_HEADS = {"mha": 8, "gqa": 4}
"""Kv heads of each kind of attention."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Form:
    """How the decoder is written."""

    qkv: str = "separate"
    """Or `thirds`: q|k|v; `groups`: per kv head its queries, key and value."""
    glu: str = "separate"
    """Or `halves`: gate|up; `pairs`: a gate, its up, the next gate."""
    cut_by: str = "Split"
    """Or `Slice`, `Gather`: what takes a packed value apart."""
    flat_groups: bool = False
    """Whether a group's heads are one dim with the features of each, as GPT-NeoX has it."""
    transposed: bool = False
    """Whether weights are stored as [out, in] and used by a Gemm with transB."""
    constant_nodes: bool = False
    """Whether weights come from Constant nodes, else they are initializers."""
    tied: bool = False
    """Whether the embedding is the head's weight as well."""


SEPARATE = "separate"
FORMS: dict[str, Form] = {
    SEPARATE: Form(),
    "qkv thirds, Split": Form(qkv="thirds"),
    "qkv thirds, Slice": Form(qkv="thirds", cut_by="Slice"),
    "qkv groups, Split": Form(qkv="groups"),
    "qkv groups, Slice": Form(qkv="groups", cut_by="Slice"),
    "qkv groups, Gather": Form(qkv="groups", cut_by="Gather"),
    "qkv groups, flat": Form(qkv="groups", flat_groups=True),
    "qkv groups, flat Slice": Form(qkv="groups", flat_groups=True, cut_by="Slice"),
    "gate|up halves, Split": Form(glu="halves"),
    "gate|up halves, Slice": Form(glu="halves", cut_by="Slice"),
    "gate|up pairs, Split": Form(glu="pairs"),
    "gate|up pairs, Slice": Form(glu="pairs", cut_by="Slice"),
    "gate|up pairs, Gather": Form(glu="pairs", cut_by="Gather"),
    "all packed, Split": Form(qkv="thirds", glu="halves"),
    "all packed, Slice": Form(qkv="thirds", glu="halves", cut_by="Slice"),
    "all packed, groups": Form(qkv="groups", glu="pairs"),
    "Gemm transB": Form(transposed=True),
    "Gemm transB, packed": Form(qkv="thirds", glu="halves", transposed=True),
    "Constant nodes": Form(constant_nodes=True),
    "Constant nodes, packed": Form(qkv="thirds", glu="halves", constant_nodes=True),
    "tied": Form(tied=True),
    "tied, packed": Form(qkv="thirds", glu="halves", tied=True),
}


def make(form: str, kv_heads: int, path: Path) -> Path:
    """Write the decoder in a form; returns `path`."""
    graph = _Builder(FORMS[form], kv_heads).graph()
    ir.save(ir.Model(graph, ir_version=10, producer_name="tests.packed_forms"), path)
    return path


def inputs() -> Inputs:
    """Token ids."""
    return {"ids": np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, SEQUENCE))}


class _Builder:
    """Builds the graph; weights are drawn in the same order whatever the form."""

    def __init__(self, form: Form, kv_heads: int) -> None:
        self.form = form
        self.kv_heads = kv_heads
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.random = np.random.default_rng(0)

    def op(self, op_type: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        """Append a node with one result."""
        return self.ops(op_type, 1, *operands, **attributes)[0]

    def ops(self, op_type: str, count: int, *operands: ir.Value, **more: Any) -> list[ir.Value]:
        """Append a node with `count` results."""
        name = f"{op_type.lower()}_{len(self.nodes)}"
        node = ir.node(op_type, operands, more, name=name, num_outputs=count)
        for index, out in enumerate(node.outputs):
            out.name = f"{name}_{index}"
        self.nodes.append(node)
        return list(node.outputs)

    def weight(self, array: Array) -> ir.Value:
        """A weight, as an initializer or from a Constant node."""
        tensor = ir.tensor(array, name=f"weight_{len(self.weights) + len(self.nodes)}")
        if self.form.constant_nodes:
            return self.op("Constant", value=ir.AttrTensor("value", tensor))
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self.weights.append(value)
        return value

    def ints(self, *entries: int) -> ir.Value:
        """A constant of shape arithmetic."""
        return self.op("Constant", value_ints=list(entries))

    def draw(self, *shape: int) -> Array:
        """A random weight of unit gain, or a bias."""
        scale = shape[0] ** -0.5 if len(shape) > 1 else 0.1
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def projection(self, width: int) -> tuple[Array, Array]:
        """Weight and bias of a projection of the hidden dim."""
        return self.draw(HIDDEN, width), self.draw(width)

    def linear(self, x: ir.Value, weight: Array, bias: Array) -> ir.Value:
        """x @ weight + bias."""
        if not self.form.transposed:
            return self.op("Add", self.op("MatMul", x, self.weight(weight)), self.weight(bias))
        rows = self.op("Reshape", x, self.ints(-1, weight.shape[0]))
        stored = self.weight(np.ascontiguousarray(weight.T))
        made = self.op("Gemm", rows, stored, self.weight(bias), transB=1)
        return self.op("Reshape", made, self.ints(BATCH, SEQUENCE, weight.shape[1]))

    def cut(self, x: ir.Value, axis: int, sizes: list[int]) -> list[ir.Value]:
        """Parts of a dim, one after another."""
        if self.form.cut_by == "Split":
            return self.ops("Split", len(sizes), x, self.ints(*sizes), axis=axis)
        parts, start = [], 0
        for size in sizes:
            stop = start + size
            if self.form.cut_by == "Gather":
                parts.append(self.op("Gather", x, self.ints(*range(start, stop)), axis=axis))
            else:
                bounds = (self.ints(start), self.ints(stop), self.ints(axis))
                parts.append(self.op("Slice", x, *bounds))
            start = stop
        return parts

    def norm(self, x: ir.Value) -> ir.Value:
        """Layer norm over the hidden dim."""
        gain, bias = self.weight(1 + self.draw(HIDDEN)), self.weight(self.draw(HIDDEN))
        return self.op("LayerNormalization", x, gain, bias, axis=-1)

    def heads(self, x: ir.Value, count: int) -> ir.Value:
        """[batch, heads, sequence, features]."""
        four = self.op("Reshape", x, self.ints(BATCH, SEQUENCE, count, HEAD_SIZE))
        return self.op("Transpose", four, perm=[0, 2, 1, 3])

    def queries_keys_values(self, x: ir.Value) -> list[ir.Value]:
        """Of one layer, each as [batch, sequence, heads * features]."""
        counts = (HEADS, self.kv_heads, self.kv_heads)
        parts = [self.projection(count * HEAD_SIZE) for count in counts]
        if self.form.qkv == "separate":
            return [self.linear(x, *part) for part in parts]
        if self.form.qkv == "thirds":
            packed = self.linear(x, *(np.concatenate(p, -1) for p in zip(*parts)))
            return self.cut(packed, 2, [count * HEAD_SIZE for count in counts])
        return self.grouped(x, parts)

    def grouped(self, x: ir.Value, parts: list[tuple[Array, Array]]) -> list[ir.Value]:
        """The queries, key and value of each kv head stand together."""
        group, size = HEADS // self.kv_heads, HEAD_SIZE

        def by_head(array: Array) -> Array:
            return array.reshape(*array.shape[:-1], self.kv_heads, -1)

        def packed(arrays: tuple[Array, ...]) -> Array:
            joined = np.concatenate([by_head(array) for array in arrays], -1)
            return joined.reshape(*joined.shape[:-2], -1)

        weight, bias = (packed(arrays) for arrays in zip(*parts))
        made = self.linear(x, weight, bias)
        inner, sizes, axis = [group + 2, size], [group, 1, 1], 3
        if self.form.flat_groups:
            inner, sizes = [(group + 2) * size], [group * size, size, size]
        dims = self.ints(BATCH, SEQUENCE, self.kv_heads, *inner)
        found = self.cut(self.op("Reshape", made, dims), axis, sizes)
        return [self.op("Reshape", part, self.ints(BATCH, SEQUENCE, -1)) for part in found]

    def repeated(self, x: ir.Value) -> ir.Value:
        """Every kv head once per query head."""
        group = HEADS // self.kv_heads
        if group == 1:
            return x
        five = self.op("Unsqueeze", x, self.ints(2))
        sizes = (BATCH, self.kv_heads, group, SEQUENCE, HEAD_SIZE)
        wide = self.op("Expand", five, self.ints(*sizes))
        return self.op("Reshape", wide, self.ints(BATCH, HEADS, SEQUENCE, HEAD_SIZE))

    def attention(self, x: ir.Value) -> ir.Value:
        """Attention of all tokens to all tokens."""
        q, k, v = self.queries_keys_values(x)
        q = self.heads(q, HEADS)
        k, v = (self.repeated(self.heads(part, self.kv_heads)) for part in (k, v))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        shares = self.op("Softmax", scores, axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", shares, v), perm=[0, 2, 1, 3])
        flat = self.op("Reshape", mixed, self.ints(BATCH, SEQUENCE, HIDDEN))
        return self.linear(flat, *self.projection(HIDDEN))

    def gate_up(self, x: ir.Value) -> list[ir.Value]:
        """Gate and up, each as [batch, sequence, intermediate]."""
        parts = [self.projection(INTERMEDIATE) for _ in range(2)]
        if self.form.glu == "separate":
            return [self.linear(x, *part) for part in parts]
        if self.form.glu == "halves":
            packed = self.linear(x, *(np.concatenate(p, -1) for p in zip(*parts)))
            return self.cut(packed, 2, [INTERMEDIATE] * 2)
        stacked = (np.stack(arrays, -1) for arrays in zip(*parts))
        packed = self.linear(x, *(a.reshape(*a.shape[:-2], -1) for a in stacked))
        if self.form.cut_by == "Slice":
            return [self.every_second(packed, start) for start in (0, 1)]
        dims = self.ints(BATCH, SEQUENCE, INTERMEDIATE, 2)
        found = self.cut(self.op("Reshape", packed, dims), 3, [1, 1])
        return [self.op("Squeeze", part, self.ints(3)) for part in found]

    def every_second(self, x: ir.Value, start: int) -> ir.Value:
        """x[..., start::2]."""
        end = np.iinfo(np.int64).max
        bounds = (self.ints(start), self.ints(end), self.ints(2), self.ints(2))
        return self.op("Slice", x, *bounds)

    def feed_forward(self, x: ir.Value) -> ir.Value:
        """SwiGLU."""
        gate, up = self.gate_up(x)
        gate = self.op("Mul", gate, self.op("Sigmoid", gate))
        down = self.draw(INTERMEDIATE, HIDDEN), self.draw(HIDDEN)
        return self.linear(self.op("Mul", gate, up), *down)

    def graph(self) -> ir.Graph:
        """The whole model."""
        ids = ir.Value(
            name="ids", shape=ir.Shape([BATCH, SEQUENCE]), type=ir.TensorType(ir.DataType.INT64)
        )
        array = self.draw(VOCABULARY, HIDDEN)
        table = self.weight(array)
        x = self.op("Gather", table, ids, axis=0)
        for _ in range(LAYERS):
            x = self.op("Add", x, self.attention(self.norm(x)))
            x = self.op("Add", x, self.feed_forward(self.norm(x)))
        x = self.norm(x)
        if self.form.tied:
            head = self.op("Transpose", table, perm=[1, 0])
        else:
            head = self.weight(np.ascontiguousarray(array.T))
        logits = self.op("MatMul", x, head)
        logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape([BATCH, SEQUENCE, VOCABULARY])
        return ir.Graph(
            [ids],
            [logits],
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": OPSET},
            name="decoder",
        )
