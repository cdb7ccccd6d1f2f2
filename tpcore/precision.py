"""In which float type a model computes what it says in another."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from backends.scope import BLIND, nodes_inside, operands
from tpcore.compare import TOLERANCES

_FLOATS = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
"""What compare.py has tolerances for."""


def narrowest_floats(graph: ir.Graph) -> dict[str, str]:
    """By value, the float type of the largest tolerance on the way to it from the inputs.

    What is read of an input or a weight is exact in any type. What a node makes of it is rounded to
    the node's type, and so is all that follows, whatever that is cast to. Values that no input
    decides, or that no float leads to, are not named.
    """
    varying, found = set(graph.inputs), dict[ir.Value, str]()
    for node in graph:
        read = list(operands(node))
        if node.op_type in BLIND or not any(value in varying for value in read):
            continue
        varying.update(node.outputs)
        before = [found[value] for value in read if value in found]
        before += [name for inner in nodes_inside(node) for name in _types(inner.outputs)]
        for output in node.outputs:
            types = [*before, *_types([output])]
            if types:
                found[output] = max(types, key=TOLERANCES.__getitem__)
    return {value.name: name for value, name in found.items() if value.name}


def _types(values: Iterable[ir.Value]) -> list[str]:
    """The float types among those of some values, by numpy's names."""
    known = [value.dtype for value in values if value.dtype in _FLOATS]
    return [_FLOATS[dtype] for dtype in known if dtype is not None]
