"""What stays in float32 where a model is computed in 16 bits.

1. Sines and cosines, and all on the way to them from integers and constants: positions, which 16
   bits cannot count.
2. Ops on codes with their scales: a scale is small, a sum of codes is large.
3. The scaling of integer products: from the Cast of such a sum over its Muls.
4. The mean of squares inside a norm that is written out, up to its root.

Such a node computes in float32; who reads its results otherwise reads them rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

POSITIONS = {"Sin", "Cos"}
SUMS = {"MatMulInteger", "ConvInteger"}
CODES = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
CODES |= {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QAttention"}
ROOTS = {"Add", "Sqrt", "Reciprocal"}


def wide_values(graph: ir.Graph) -> set[ir.Value]:
    """The values that stay."""
    found: set[ir.Value] = set()
    for node in graph:
        op = node.op_type
        if op in POSITIONS and (values := _from_integers(node)):
            found.update(values, node.outputs)
        elif op in CODES or op.startswith("QLinear"):
            found.update(_with_constants([node]))
        elif op in SUMS:
            found.update(_with_constants(_scaling(node)))
        elif op == "ReduceMean" and _makes_squares(node):
            found.update(_with_constants(_up_to_root(node)))
    return found


def _from_integers(node: ir.Node) -> set[ir.Value]:
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


def _with_constants(nodes: Iterable[ir.Node]) -> Iterable[ir.Value]:
    """Results of nodes, and the constants among their operands."""
    for node in nodes:
        yield from node.outputs
        for value in node.inputs:
            if value is not None and (value.is_initializer() or _made_by(value, {"Constant"})):
                yield value


def _scaling(node: ir.Node) -> Iterable[ir.Node]:
    """The Casts of an integer sum, the Muls of those, and the Muls that make their scales."""
    for cast in _readers(node, {"Cast"}):
        yield cast
        for scaled in _readers(cast, {"Mul"}):
            yield scaled
            yield from (p for v in scaled.inputs if (p := _made_by(v, {"Mul"})) is not None)


def _makes_squares(node: ir.Node) -> bool:
    return _made_by(node.inputs[0], {"Pow", "Mul"}) is not None


def _up_to_root(node: ir.Node) -> Iterable[ir.Node]:
    square = _made_by(node.inputs[0], {"Pow", "Mul"})
    if square is not None:
        yield square
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(_readers(one, ROOTS))


def _readers(node: ir.Node, ops: set[str]) -> Iterable[ir.Node]:
    return (user for value in node.outputs for user, _ in value.uses() if user.op_type in ops)


def _made_by(value: ir.Value | None, ops: set[str]) -> ir.Node | None:
    """The node that makes a value, if it is of these ops."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type in ops else None
