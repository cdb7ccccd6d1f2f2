"""Fold what is computed from weights alone into weights that are computed when they are read.

Exporters write some weights as arithmetic on others: gates are put into another order by Slice and
Concat, a normalised weight is made of a direction and a length. Left in the graph that would run
at every step, and a split of it would gather weights. A folded weight keeps the nodes that make it
and runs them when its bytes are asked for, which is when a bundle is written.

1. Only floats are folded, made by ops that move elements or compute them one from another.
2. Weights that are linked by what is made of them are folded together or not at all: not if the
   results, with the weights that others still read, would take more memory than the weights do. So
   no small constant is expanded into a large one, and no weight is held twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from graph.shapes import Shapes
from graph.weights import bytes_of, is_index

FOLDED_OPS = {
    *("Slice", "Concat", "Split", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose"),
    *("Identity", "Expand", "Gather", "Pad", "Cast", "Add", "Sub", "Mul", "Div", "Neg", "Pow"),
    *("Sqrt", "Reciprocal", "Abs", "Exp", "Sigmoid", "Tanh", "Softplus", "Max", "Min", "Clip"),
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    "ReduceSumSquare",
}
MAX_GROWTH = 1.1
"""Bytes that folding may make of one byte of weights."""

RESULT = "folded"
IR_VERSION = 10

Sources = dict[ir.Value, dict[ir.Value, None]]
"""Value computed from weights alone -> the weights it is computed from, in order."""


def fold_weights(graph: ir.Graph, shapes: Shapes) -> None:
    """Make an initializer of every value that is computed from weights alone.

    The nodes that made it stay, without a use.
    """
    sources = _computed_from_weights(graph, shapes)
    read = [value for value in sources if _is_read_by_others(value, sources)]
    for linked in _linked(read, sources):
        if _is_worth_it(linked, sources, shapes):
            for value in linked:
                _fold(graph, shapes, value, next(iter(sources[value])))


def _computed_from_weights(graph: ir.Graph, shapes: Shapes) -> Sources:
    found: Sources = {}
    for node in graph:
        if node.domain != "" or node.op_type not in FOLDED_OPS:
            continue
        operands = [value for value in node.inputs if value is not None]
        made = {value: None for operand in operands for value in found.get(operand, ())}
        given = [value for value in operands if value not in found]
        if all(value.const_value is not None for value in given):
            weights = [value for value in given if not _is_parameter(value)]
            made |= dict.fromkeys(weights)
            results = [*weights, *node.outputs]
            if made and all(_is_float_of_known_shape(value, shapes) for value in results):
                found |= dict.fromkeys(node.outputs, made)
    return found


def _is_parameter(value: ir.Value) -> bool:
    """Whether a constant says how a weight is changed: bounds, axes, a scalar."""
    tensor = value.const_value
    return tensor is not None and (is_index(tensor) or tensor.size == 1)


def _is_float_of_known_shape(value: ir.Value, shapes: Shapes) -> bool:
    floating = value.dtype is not None and value.dtype.is_floating_point()
    dims = shapes.dims.get(value)
    return floating and dims is not None and all(isinstance(size, int) for size in dims)


def _is_read_by_others(value: ir.Value, sources: Sources) -> bool:
    """Whether a node that stays reads the value."""
    return any(not any(out in sources for out in user.outputs) for user, _ in value.uses())


def _linked(values: Iterable[ir.Value], sources: Sources) -> Iterator[list[ir.Value]]:
    """Groups of values that have no weight in common."""
    groups: list[tuple[set[ir.Value], list[ir.Value]]] = []
    for value in values:
        weights, members = set(sources[value]), [value]
        for group in [g for g in groups if g[0] & weights]:
            groups.remove(group)
            weights, members = weights | group[0], group[1] + members
        groups.append((weights, members))
    return (members for _, members in groups)


def _is_worth_it(results: list[ir.Value], sources: Sources, shapes: Shapes) -> bool:
    weights = {weight for value in results for weight in sources[value]}
    if any(value.is_graph_output() for value in (*results, *weights)):
        return False
    kept = [weight for weight in weights if _is_read_by_others(weight, sources)]
    held = sum(_bytes(value, shapes) for value in (*results, *kept))
    return held <= MAX_GROWTH * sum(_bytes(weight, shapes) for weight in weights)


def _bytes(value: ir.Value, shapes: Shapes) -> int:
    return bytes_of(value.dtype, math.prod(_sizes(value, shapes)))


def _sizes(value: ir.Value, shapes: Shapes) -> list[int]:
    return [size for size in shapes.dims[value] if isinstance(size, int)]


def _fold(graph: ir.Graph, shapes: Shapes, value: ir.Value, first: ir.Value) -> None:
    """Put a weight in the place of `value`, named after the first one that it is made of."""
    name = f"{first.name}.folded"
    while name in graph.initializers:
        name += "_"
    source, sizes = _program(graph, value), _sizes(value, shapes)

    def evaluate() -> ir.TensorProtocol:
        from graph.interpret import interpret  # 10 MiB, which ranks have no use for

        (results,) = interpret([source], [{}])
        return ir.Tensor(np.asarray(results[RESULT], order="C"))

    dtype = value.dtype or ir.DataType.FLOAT
    tensor = ir.LazyTensor(evaluate, dtype, ir.Shape(sizes), name=name)
    made = ir.val(name, dtype, sizes, const_value=tensor)
    graph.register_initializer(made)
    shapes.dims[made] = shapes.dims[value]
    value.replace_all_uses_with(made)


def _program(graph: ir.Graph, value: ir.Value) -> ir.Model:
    """A model without inputs whose result is `value`."""
    copies: dict[ir.Value, ir.Value] = {}
    nodes: list[ir.Node] = []

    def copy(old: ir.Value) -> ir.Value:
        node = old.producer()
        if old not in copies and node is None:
            name = f"weight_{len(copies)}"
            copies[old] = ir.val(name, old.dtype, const_value=old.const_value)
        elif old not in copies and node is not None:
            operands = [None if v is None else copy(v) for v in node.inputs]
            nodes.append(
                ir.node(
                    node.op_type,
                    operands,
                    dict(node.attributes),
                    num_outputs=len(node.outputs),
                    name=f"node_{len(nodes)}",
                )
            )
            for i, (out, new) in enumerate(zip(node.outputs, nodes[-1].outputs, strict=True)):
                copies[out], new.name = new, f"{nodes[-1].name}_{i}"
        return copies[old]

    result = copy(value)
    result.name = RESULT
    weights = [new for new in copies.values() if new.const_value is not None]
    imports = dict(graph.opset_imports)
    made = ir.Graph([], [result], nodes=nodes, initializers=weights, opset_imports=imports)
    return ir.Model(made, ir_version=IR_VERSION)
