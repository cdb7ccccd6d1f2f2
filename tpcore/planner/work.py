"""What one run of a node does on whatever device: multiply-adds, and bytes of each value moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graph.dims import Dim, Dims, bind, product
from graph.shapes import Shapes
from graph.text import DTYPES
from tpcore.factors import NodeFactors
from tpcore.ops import OPS
from tpcore.rule import factors_of

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Dropout"})
"""Ops whose result is the operand under another shape: executors move nothing."""
PICKS = frozenset({"Gather", "GatherND", "GatherElements", "GatherBlockQuantized", "Slice"})
"""Ops that read of their first operand only as much as the result holds."""
CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv", "NhwcFusedConv", "FusedConv"})
ATTENTIONS = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention"})


@dataclass(frozen=True)
class Measure:
    """Sizes of a graph's values at given sizes of its symbolic dims."""

    shapes: Shapes
    sizes: Mapping[str, int]

    def count(self, dims: Sequence[Dim]) -> int:
        """Elements of a tensor."""
        return math.prod(bind(size, self.sizes) for size in dims)

    def dims(self, value: ir.Value | None) -> Dims:
        """Dims of a value; none where they are not known."""
        return self.shapes.dims.get(value, ()) if value is not None else ()


def moved_bytes(node: ir.Node, values: Sequence[tuple[ir.Value, int]]) -> list[float]:
    """Of values with their bytes, operands before results, how much a run reads or writes."""
    spec = OPS.get((node.domain, node.op_type))
    if node.op_type in VIEWS or (spec is not None and spec.reads_shape_only):
        return [0.0] * len(values)
    moved = [float(size) for _, size in values]
    if node.op_type in PICKS:
        moved[0] = min(moved[0], moved[-1])
    return moved


def multiply_adds(node: ir.Node, bound: NodeFactors | None, measure: Measure) -> float:
    """Multiply-adds of a run; none where moving the values is all that takes time."""
    if bound is None or node.op_type in PICKS:
        return 0.0
    if bound.rule.draws is not None:
        return bind(bound.rule.draws.multiply_adds, measure.sizes)
    result = measure.count(measure.dims(node.outputs[0]))
    if node.op_type in ATTENTIONS:
        return 2.0 * result * _keys(node, measure)
    if node.op_type in CONVOLUTIONS:
        return float(result * _kernel(node.inputs[1:], measure))
    if node.op_type == "ConvTranspose":
        return float(
            measure.count(measure.dims(node.inputs[0])) * _kernel(node.inputs[1:], measure)
        )
    return float(result * _contraction(bound, measure.sizes))


def _contraction(bound: NodeFactors, sizes: Mapping[str, int]) -> int:
    """Products that are summed up to one element of the result: 0 where only one operand is."""
    made = factors_of(bound.rule.results[0] if bound.rule.results else None)
    operands = [factors_of(spec) - made for spec in bound.rule.operands]
    if not operands or not any(operands[0] & other for other in operands[1:]):
        return 0
    return math.prod(
        bind(product(atom.size for atom in bound.factors[name]), sizes) for name in operands[0]
    )


def _keys(node: ir.Node, measure: Measure) -> int:
    """Positions that a query is compared with: those of the cache it leaves, or of its keys."""
    present = measure.dims(node.outputs[1]) if len(node.outputs) > 1 else ()
    key = measure.dims(node.inputs[1]) or measure.dims(node.inputs[0])
    if len(present) == 4:
        return measure.count(present[2:3])
    return measure.count(key[2:3] if len(key) == 4 else key[1:2])


def _kernel(operands: Sequence[ir.Value | None], measure: Measure) -> int:
    """Elements of a convolution's kernel per index of its first dim."""
    kernel = next((d for d in map(measure.dims, operands) if len(d) > 2), ())
    return measure.count(kernel[1:])


def compute_type(node: ir.Node) -> str:
    """Element type that a node computes in, as in `graph.text`: that of its first operand."""
    dtype = next((value.dtype for value in node.inputs if value is not None), None)
    if dtype is None:
        return "f32"
    name = dtype.name
    return DTYPES.get(name) or ("f8" if name.startswith("FLOAT8") else name.lower())


def computed_from_weights(graph: ir.Graph) -> set[ir.Value]:
    """Values that no activation goes into: dequantised or reshaped weights."""
    found: set[ir.Value] = set()
    for node in graph:
        operands = [value for value in node.inputs if value is not None]
        if operands and all(v.const_value is not None or v in found for v in operands):
            found.update(node.outputs)
    return found
