"""Small graphs and collectives that `tpcore.measure` takes the time of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dialect import (
    DOMAIN,
    AllGather,
    AllReduce,
    AllToAll,
    Collective,
    ReduceScatter,
    make_node,
)
from graph.layout import Layout
from tpcore.reshard import ReshardKind

BLOCK = 16
"""Rows of what is exchanged, so that parts of columns have to be put together."""
OPSET, IR_VERSION = 18, 10


def collective(
    kind: ReshardKind, size: int, ranks: int, rank: int
) -> tuple[Collective, tuple[int, int]]:
    """A collective on a tensor of `size` bytes in all, and the shape of this rank's operand."""
    columns = size // (4 * BLOCK)
    rows, parts = Layout.even(BLOCK, ranks), Layout.even(columns, ranks)
    whole, part = (BLOCK, columns), (BLOCK, parts.sizes[rank])
    if kind is ReshardKind.ALL_REDUCE:
        return AllReduce("tp"), whole
    if kind is ReshardKind.ALL_GATHER:
        return AllGather("tp", (1,), (parts,)), part
    if kind is ReshardKind.REDUCE_SCATTER:
        return ReduceScatter("tp", (1,), (parts,)), whole
    return AllToAll("tp", 0, 1, rows, parts), part


class _Graph:
    """A graph that is built node by node, each on the result of the one before."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.input = _value("x", shape)
        self.last = self.input
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def op(self, op_type: str, *others: ir.Value, **attributes: Any) -> None:
        """Append a node that reads the last result first."""
        self.add(ir.node(op_type, [self.last, *others], attributes))

    def add(self, node: ir.Node) -> None:
        """Append a node and give its result a name and a type."""
        node.name = f"node_{len(self.nodes)}"
        self.last = node.outputs[0]
        self.last.name = f"value_{len(self.nodes)}"
        self.last.type = ir.TensorType(ir.DataType.FLOAT)
        self.nodes.append(node)

    def model(self) -> ir.Model:
        """The model whose output is the last result."""
        graph = ir.Graph(
            [self.input],
            [self.last],
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": OPSET, DOMAIN: 1},
            name="measure",
        )
        return ir.Model(graph, ir_version=IR_VERSION)


def matmuls(count: int, rows: int, width: int) -> ir.Model:
    """`x: f32[rows, width]` times `count` matrices, one after the other."""
    graph, random = _Graph((rows, width)), np.random.default_rng(0)
    for number in range(count):
        matrix = random.random((width, width), np.float32)
        matrix -= np.float32(0.5)
        matrix *= np.float32((12 / width) ** 0.5)  # of unit gain: no result grows or vanishes
        weight = _value(f"weight_{number}", (width, width))
        weight.const_value = ir.tensor(matrix, name=weight.name)
        graph.weights.append(weight)
        graph.op("MatMul", weight)
    return graph.model()


def activations(rows: int, width: int) -> tuple[ir.Model, int]:
    """Sums, products, functions and transpositions, and how many values they read and write."""
    graph, values = _Graph((rows, width)), 0
    for _ in range(4):
        graph.op("Mul", graph.input)
        graph.op("Sigmoid")
        graph.op("Add", graph.input)
        graph.op("Transpose", perm=[1, 0])
        graph.op("Transpose", perm=[1, 0])
        graph.op("Softmax", axis=-1)
        values += 3 + 2 + 3 + 2 + 2 + 2
    return graph.model(), values


def chain(op_types: Sequence[str], shape: Sequence[int]) -> ir.Model:
    """Ops of two operands, one after the other."""
    graph = _Graph(shape)
    for op_type in op_types:
        graph.op(op_type, graph.input)
    return graph.model()


def exchanges(count: int, shape: Sequence[int]) -> ir.Model:
    """An op and an AllReduce, `count` times."""
    graph = _Graph(shape)
    for tag in range(count):
        graph.op("Neg")
        graph.add(make_node(AllReduce("tp"), graph.last, tag))
    return graph.model()


def _value(name: str, shape: Sequence[int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
