"""Symbolic shapes of all values, and symbolic contents of the small integer tensors behind them.

A forward pass: ops whose result shape depends on the *contents* of an operand (Reshape, Expand,
Slice, …) and com.microsoft ops are handled here, every other standard op by ONNX's own inference.
What neither knows is taken from the exporter's annotation, else a fresh symbol stands for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from graph.dims import Dim, Dims, Expr, divide, from_text, product, symbol
from graph.errors import GraphError

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

    def of(self, value: ir.Value) -> Dims:
        """Shape of `value`. Raises GraphError where nothing is known of it."""
        try:
            return self.dims[value]
        except KeyError:
            raise GraphError(f"the shape of value '{value.name}' is not known.") from None

    def known(self, value: ir.Value | None) -> bool:
        """Whether at least the rank of `value` is known."""
        return value is not None and value in self.dims

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """Contents as plain ints, or None where they are not constant."""
        contents = self.contents.get(value) if value is not None else None
        if contents is None or any(isinstance(entry, Expr) for entry in contents.flat):
            return None
        return [int(entry) for entry in contents.flat]

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


def infer_shapes(model: ir.Model) -> Shapes:
    """Infer the shapes of all values of the main graph, and write them into the values.

    Raises:
        GraphError: an op is used with operands its schema does not allow.
    """
    graph = model.graph
    shapes = Shapes(taken=_declared_symbols(graph))
    for value in graph.inputs:
        _declare(shapes, value)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            raise GraphError(f"initializer '{value.name}' has no data.")
        shapes.dims[value] = tuple(int(size) for size in tensor.shape.numpy())
        value.dtype = tensor.dtype
        if tensor.dtype.is_integer() and tensor.size <= MAX_CONTENTS:
            shapes.contents[value] = tensor.numpy().astype(object)
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items()]
    for node in graph:
        _infer_node(node, shapes, opsets)
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        if value in shapes.dims:
            value.shape = ir.Shape(
                [size if isinstance(size, int) else str(size) for size in shapes.dims[value]]
            )
    return shapes


def _declared_symbols(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *(out for node in graph for out in node.outputs)]
    sizes = (size for value in values for size in value.shape or ())
    return {size.value for size in sizes if isinstance(size, ir.SymbolicDim) and size.value}


def _declare(shapes: Shapes, value: ir.Value) -> None:
    if value.shape is not None:
        shapes.dims[value] = tuple(_declared_dim(shapes, size) for size in value.shape)


def _declared_dim(shapes: Shapes, size: int | ir.SymbolicDim) -> Dim:
    if isinstance(size, int):
        return size
    return from_text(size.value) if size.value is not None else shapes.new_symbol()


def _infer_node(node: ir.Node, shapes: Shapes, opsets: list[Any]) -> None:
    context = Context(node, shapes)
    results: Sequence[Dims | None] | None = None
    try:
        results = SHAPE_RULES[node.domain, node.op_type](context)
        _copy_dtype(node)
    except Misfit as error:
        raise _does_not_fit(node, shapes, str(error)) from error
    except (KeyError, IndexError):
        results = _infer_by_onnx(node, shapes, opsets)
    for index, out in enumerate(node.outputs):
        found = results[index] if results is not None and index < len(results) else None
        _settle(shapes, out, found)
    try:
        contents = CONTENT_RULES[node.op_type](context) if node.domain == "" else None
    except (KeyError, IndexError, ValueError, TypeError):
        contents = None
    if contents is not None and contents.size <= MAX_CONTENTS:
        shapes.contents[node.outputs[0]] = contents
        shapes.dims[node.outputs[0]] = contents.shape


def _copy_dtype(node: ir.Node) -> None:
    first = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    for out in node.outputs:
        if out.dtype is None and first is not None:
            out.dtype = first


def _does_not_fit(node: ir.Node, shapes: Shapes, reason: str) -> GraphError:
    operands = [
        f"{value.name}[{', '.join(map(str, shapes.dims.get(value, ['?'])))}]"
        for value in node.inputs
        if value is not None
    ]
    return GraphError(
        f"node '{node.name}' ({node.op_type}) does not fit its operands {', '.join(operands)}: "
        f"{reason.rstrip('.')}. Check the model with onnx.checker and export it again."
    )


def _settle(shapes: Shapes, value: ir.Value, found: Dims | None) -> None:
    """Keep what inference found; where it found nothing keep what the exporter declared."""
    declared = None
    if value.shape is not None:
        declared = [_declared_dim(shapes, size) for size in value.shape]
    if found is None:
        if declared is not None:
            shapes.dims[value] = tuple(declared)
        return
    if declared is not None and len(declared) == len(found):
        unknown = [isinstance(size, Expr) and str(size).startswith("unk") for size in found]
        found = tuple(d if u else f for f, d, u in zip(found, declared, unknown, strict=True))
    shapes.dims[value] = found


def _infer_by_onnx(node: ir.Node, shapes: Shapes, opsets: list[Any]) -> list[Dims | None] | None:
    version = dict((o.domain, o.version) for o in opsets).get(node.domain)
    if version is None or not onnx.defs.has(node.op_type, node.domain) or not _is_plain(node):
        return _declared_by_bodies(node, shapes)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        operands = [v for v in node.inputs if v is not None]
        types = {v.name or "": _type_proto(v, shapes) for v in operands}
        data = {v.name or "": _small_constant(v) for v in operands}
        found = shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            {name: tensor for name, tensor in data.items() if tensor is not None},
            {},
            opset_imports=opsets,
            ir_version=10,
        )
    except (onnx.defs.SchemaError, shape_inference.InferenceError, ValueError) as error:
        raise _does_not_fit(node, shapes, str(error).strip().splitlines()[-1]) from error
    return [_from_type(out, found.get(out.name or ""), shapes) for out in node.outputs]


def _is_plain(node: ir.Node) -> bool:
    """Whether a node takes tensors only and has no subgraph, whose inputs inference cannot see."""
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return not any(a.type in graphs for a in node.attributes.values()) and all(
        value is None or isinstance(value.type, ir.TensorType) for value in node.inputs
    )


def _declared_by_bodies(node: ir.Node, shapes: Shapes) -> list[Dims | None] | None:
    """Types of an If's results, where its branches declare the same; element types of a Loop's."""
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    if not bodies or node.op_type not in ("If", "Loop"):
        return None
    results: list[Dims | None] = []
    for index, out in enumerate(node.outputs):
        inner = [body.outputs[index + (node.op_type == "Loop")] for body in bodies]
        if out.type is None:
            out.type = inner[0].type
        declared = inner[0].shape if node.op_type == "If" else None
        if declared is None or len({str(value.shape) for value in inner}) > 1:
            results.append(None)
        else:
            results.append(tuple(_declared_dim(shapes, size) for size in declared))
    return results


def _type_proto(value: ir.Value, shapes: Shapes) -> onnx.TypeProto:
    dims = shapes.dims.get(value)
    sizes = None if dims is None else [d if isinstance(d, int) else str(d) for d in dims]
    return onnx.helper.make_tensor_type_proto(int(value.dtype or 0), sizes)


def _small_constant(value: ir.Value) -> onnx.TensorProto | None:
    tensor = value.const_value
    if tensor is None or tensor.size > MAX_CONTENTS:
        return None
    return ir.serde.serialize_tensor(tensor)


def _from_type(value: ir.Value, found: onnx.TypeProto | None, shapes: Shapes) -> Dims | None:
    if found is None or not found.HasField("tensor_type"):
        return None
    if value.dtype is None:
        value.dtype = ir.DataType(found.tensor_type.elem_type)
    if not found.tensor_type.HasField("shape"):
        return None
    return tuple(
        from_text(d.dim_param)
        if d.dim_param
        else d.dim_value
        if d.HasField("dim_value")
        else shapes.new_symbol()
        for d in found.tensor_type.shape.dim
    )


# --- shapes ---------------------------------------------------------------------------------------


def broadcast(shapes: Sequence[Dims]) -> Dims:
    """Numpy's broadcasting; of two different symbols the first is taken. Raises Misfit."""
    rank = max(len(dims) for dims in shapes)
    padded = [(1,) * (rank - len(dims)) + dims for dims in shapes]
    return tuple(_broadcast_dim(column) for column in zip(*padded, strict=True))


def _broadcast_dim(column: Sequence[Dim]) -> Dim:
    fixed = [size for size in column if isinstance(size, int) and size != 1]
    if len(set(fixed)) > 1:
        raise Misfit(f"sizes {fixed[0]} and {next(s for s in fixed if s != fixed[0])} differ")
    return fixed[0] if fixed else next((size for size in column if size != 1), 1)


def _elementwise(c: Context) -> list[Dims]:
    return [broadcast([c.dims(i) for i, v in enumerate(c.node.inputs) if v is not None])]


def _same_as_first(c: Context) -> list[Dims]:
    return [c.dims(0)]


def _matmul(c: Context) -> list[Dims]:
    a, b = c.dims(0), c.dims(1)
    inner = a[-1], b[-2 if len(b) > 1 else -1]
    if isinstance(inner[0], int) and isinstance(inner[1], int) and inner[0] != inner[1]:
        raise Misfit(f"it contracts {inner[0]} with {inner[1]} entries")
    rows = () if len(a) == 1 else (a[-2],)
    columns = () if len(b) == 1 else (b[-1],)
    batch = broadcast([a[:-2], b[:-2]])
    return [batch + rows + columns]


def _reshape(c: Context) -> list[Dims]:
    have = c.dims(0)
    want = list(c.contents(1).flat)
    if not c.attribute("allowzero", 0):
        want = [have[i] if size == 0 else size for i, size in enumerate(want)]
    if -1 in want:
        known = product(size for size in want if size != -1)
        missing = divide(product(have), known)
        if missing is None and isinstance(known, int) and isinstance(product(have), int):
            raise Misfit(f"{product(have)} entries are no multiple of {known}")
        want[want.index(-1)] = c.shapes.new_symbol() if missing is None else missing
    before, after = product(have), product(want)
    if isinstance(before, int) and isinstance(after, int) and before != after:
        raise Misfit(f"{before} entries cannot become {after}")
    return [tuple(want)]


def _expand(c: Context) -> list[Dims]:
    return [broadcast([tuple(c.contents(1).flat), c.dims(0)])]


def _constant_of_shape(c: Context) -> list[Dims]:
    c.node.outputs[0].dtype = _value_dtype(c)
    return [tuple(c.contents(0).flat)]


def _value_dtype(c: Context) -> ir.DataType:
    value = c.attribute("value")
    return ir.DataType.FLOAT if value is None else value.dtype


def slice_bounds(c: Context) -> list[tuple[int, Dim, Dim, int]]:
    """(dim, start, stop, step) per sliced dim, clamped. KeyError where bounds are not known."""
    dims = c.dims(0)
    starts, stops = list(c.contents(1).flat), list(c.contents(2).flat)
    axes = list(c.contents(3).flat) if c.operand(3) else list(range(len(starts)))
    steps = list(c.contents(4).flat) if c.operand(4) else [1] * len(starts)
    bounds = []
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if not isinstance(step, int) or step < 1:
            raise KeyError("step")
        size = dims[axis]
        bounds.append((axis % len(dims), _clamp_index(start, size), _clamp_index(stop, size), step))
    return bounds


def _clamp_index(index: Dim, size: Dim) -> Dim:
    if index == size:
        return size
    if isinstance(index, int) and isinstance(size, int):
        return min(max(index + size if index < 0 else index, 0), size)
    # A symbolic size is 1 at least: the first and last index are there, of others nobody knows.
    if index == 0:
        return 0
    if index == -1:
        return size - 1
    if isinstance(index, int) and abs(index) > 2**31 - 2:
        return size if index > 0 else 0
    raise KeyError("a bound whose size against the dim is not known")


def _slice(c: Context) -> list[Dims]:
    dims = list(c.dims(0))
    for dim, start, stop, step in slice_bounds(c):
        extent = stop - start
        if step != 1:
            if not isinstance(extent, int):
                raise KeyError("step")
            extent = -(-extent // step)
        dims[dim] = max(extent, 0) if isinstance(extent, int) else extent
    return [tuple(dims)]


def _concat(c: Context) -> list[Dims]:
    operands = [c.dims(i) for i in range(len(c.node.inputs))]
    axis = c.attribute("axis", 0) % len(operands[0])
    total: Dim = 0
    for dims in operands:
        if len(dims) != len(operands[0]):
            raise Misfit(f"ranks {len(operands[0])} and {len(dims)} differ")
        total = total + dims[axis]
    others = [dims[:axis] + (1,) + dims[axis + 1 :] for dims in operands]
    merged = [_broadcast_dim(column) for column in zip(*others, strict=True)]
    merged[axis] = total
    return [tuple(merged)]


def _range(c: Context) -> list[Dims]:
    start, limit, delta = (c.contents(i).flat[0] for i in range(3))
    if delta != 1:
        raise KeyError("delta")
    extent = limit - start
    return [(max(extent, 0) if isinstance(extent, int) else extent,)]


def _group_query_attention(c: Context) -> list[Dims]:
    batch, length, width = c.dims(0)
    heads, kv_heads = c.attribute("num_heads"), c.attribute("kv_num_heads")
    packed = c.operand(1) is None
    size = divide(width, heads + 2 * kv_heads if packed else heads)
    if size is None:
        raise KeyError("head size")
    past: Dim = 0
    if c.operand(3) is not None:
        past = c.dims(3)[2]
        declared = c.dims(3)[3]
        if isinstance(declared, Expr) and isinstance(size, int):
            c.shapes.equal[str(declared)] = size
    cache: Dims = (batch, kv_heads, _total(c, past, length), size)
    return [(batch, length, size * heads), cache, cache]


def _total(c: Context, past: Dim, length: Dim) -> Dim:
    declared = c.node.outputs[1].shape if len(c.node.outputs) > 1 else None
    return past + length if declared is None else _declared_dim(c.shapes, declared[2])


def _skip_norm(c: Context) -> list[Dims | None]:
    dims = c.dims(0)
    return [dims, dims[:-1] + (1,), dims[:-1] + (1,), dims]


ShapeRule = Callable[[Context], Sequence["Dims | None"]]
ELEMENTWISE = "Add Sub Mul Div Pow".split()
SHAPE_RULES: dict[tuple[str, str], ShapeRule] = {
    **{("", op): _elementwise for op in ELEMENTWISE},
    ("", "MatMul"): _matmul,
    ("", "Reshape"): _reshape,
    ("", "Expand"): _expand,
    ("", "Slice"): _slice,
    ("", "Concat"): _concat,
    ("", "Range"): _range,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "SimplifiedLayerNormalization"): _same_as_first,
    ("com.microsoft", "GroupQueryAttention"): _group_query_attention,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
}


# --- contents -------------------------------------------------------------------------------------


def _array(entries: Sequence[Dim]) -> Contents:
    out = np.empty(len(entries), object)
    out[:] = entries
    return out


def _shape_contents(c: Context) -> Contents:
    dims = c.dims(0)
    return _array(dims[slice(c.attribute("start", 0), c.attribute("end"))])


def _gather_contents(c: Context) -> Contents:
    index = c.contents(1).astype(np.int64)
    return np.asarray(np.take(c.contents(0), index, axis=c.attribute("axis", 0)), object)


def _slice_contents(c: Context) -> Contents:
    data = c.contents(0)
    ((_, start, stop, step),) = slice_bounds(c)
    return data[start:stop:step] if data.ndim == 1 else _unknown()


def _unknown() -> Contents:
    raise KeyError("contents")


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Context], Contents]:
    def rule(c: Context) -> Contents:
        return np.asarray(np.frompyfunc(function, 2, 1)(c.contents(0), c.contents(1)), object)

    return rule


def _floor_divide(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b) if b else _raise(ZeroDivisionError())
        return quotient if (a < 0) == (b < 0) else -quotient  # ONNX rounds towards zero
    quotient = divide(a, b)
    return symbol(f"({a})//({b})") if quotient is None else quotient


def _raise(error: Exception) -> Any:
    raise ValueError(error)


def _larger(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return a if a == b else _raise(TypeError())


def _largest(c: Context) -> Contents:
    function = np.frompyfunc(_larger, 2, 1)
    total = c.contents(0)
    for index in range(1, len(c.node.inputs)):
        total = np.asarray(function(total, c.contents(index)), object)
    return total


def _squeeze_contents(c: Context) -> Contents:
    axes = c.attribute("axes")
    if c.operand(1) is not None:
        axes = [int(axis) for axis in c.contents(1).flat]
    return np.squeeze(c.contents(0), None if axes is None else tuple(axes))


def _unsqueeze_contents(c: Context) -> Contents:
    axes = [int(axis) for axis in c.contents(1).flat]
    return np.expand_dims(c.contents(0), tuple(axes))


def _reshape_contents(c: Context) -> Contents:
    return c.contents(0).reshape([int(size) for size in c.contents(1).flat])


def _concat_contents(c: Context) -> Contents:
    operands = [c.contents(i) for i in range(len(c.node.inputs))]
    return np.concatenate(operands, axis=c.attribute("axis", 0))


def _same_contents(c: Context) -> Contents:
    return c.contents(0)


def _cast_contents(c: Context) -> Contents:
    target = ir.DataType(c.attribute("to"))
    return c.contents(0) if target.is_integer() else _unknown()


CONTENT_RULES: dict[str, Callable[[Context], Contents]] = {
    "Shape": _shape_contents,
    "Size": lambda c: np.asarray(product(c.dims(0)), object),
    "Gather": _gather_contents,
    "Slice": _slice_contents,
    "Concat": _concat_contents,
    "Squeeze": _squeeze_contents,
    "Unsqueeze": _unsqueeze_contents,
    "Reshape": _reshape_contents,
    "Identity": _same_contents,
    "Cast": _cast_contents,
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(_floor_divide),
    "Max": _largest,
}
