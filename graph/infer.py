"""Symbolic shapes of all values, and symbolic contents of the small tensors shapes are made of.

A forward pass: ops whose result shape depends on the *contents* of an operand (Reshape, Expand,
Slice, …) and com.microsoft ops have rules in `graph.shape_rules`, every other standard op is
inferred by ONNX itself. What neither knows is taken from the exporter's annotation, else a fresh
symbol stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from graph.contrib_shapes import ALL_SHAPE_RULES
from graph.dims import Dims, Expr, from_text
from graph.errors import GraphError
from graph.shape_contents import CONTENT_RULES
from graph.shapes import MAX_CONTENTS, Contents, Context, Misfit, Shapes
from graph.weights import dims_of

INFERENCE_ERRORS = (
    shape_inference.InferenceError,
    onnx.checker.ValidationError,
    ValueError,
)
"""What ONNX's inference raises for a node that its schema does not allow."""


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
        shapes.dims[value] = dims_of(tensor)
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
        shapes.dims[value] = tuple(shapes.declared(size) for size in value.shape)


def _infer_node(node: ir.Node, shapes: Shapes, opsets: list[Any]) -> None:
    context = Context(node, shapes)
    results: Sequence[Dims | None] | None = None
    try:
        results = ALL_SHAPE_RULES[node.domain, node.op_type](context)
        _copy_dtype(node)
    except Misfit as error:
        raise _does_not_fit(node, shapes, str(error)) from error
    except (KeyError, IndexError, ValueError):  # a ValueError: of another rank than the rule's
        results = _infer_by_onnx(node, shapes, opsets)
    for index, out in enumerate(node.outputs):
        found = results[index] if results is not None and index < len(results) else None
        _settle(shapes, out, found)
    try:
        contents = CONTENT_RULES[node.op_type](context) if node.domain == "" else None
    except (KeyError, IndexError, ValueError, TypeError):
        contents = None
    if contents is None:
        return
    signed = node.outputs[0].dtype in (None, ir.DataType.INT64, ir.DataType.INT32)
    if contents.size <= MAX_CONTENTS and (signed or _is_truth(contents)):
        shapes.contents[node.outputs[0]] = contents
        shapes.dims[node.outputs[0]] = contents.shape


def _is_truth(contents: Contents) -> bool:
    """Whether contents are booleans; other types than these and signed integers wrap around."""
    return all(isinstance(entry, bool | np.bool_) for entry in contents.flat)


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
        declared = [shapes.declared(size) for size in value.shape]
    if found is None or None in found:  # None: an attribute it is made of is missing
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
    except onnx.defs.SchemaError:
        return None  # onnxruntime runs some ops in older opsets than the one that brought them
    if schema.deprecated:
        return None  # and others in newer ones than the one that took them away
    try:
        operands = [v for v in node.inputs if v is not None]
        types = {v.name or "": _type_proto(v, shapes) for v in operands}
        data = {v.name or "": _small_constant(v, shapes) for v in operands}
        found = shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            {name: tensor for name, tensor in data.items() if tensor is not None},
            {},
            opset_imports=opsets,
            ir_version=10,
        )
    except INFERENCE_ERRORS as error:
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
            results.append(tuple(shapes.declared(size) for size in declared))
    return results


def _type_proto(value: ir.Value, shapes: Shapes) -> onnx.TypeProto:
    dims = shapes.dims.get(value)
    sizes = None if dims is None else [d if isinstance(d, int) else str(d) for d in dims]
    return onnx.helper.make_tensor_type_proto(int(value.dtype or 0), sizes)


def _small_constant(value: ir.Value, shapes: Shapes) -> onnx.TensorProto | None:
    tensor = value.const_value
    if tensor is None and value.dtype == ir.DataType.INT64:
        tensor = shapes.tensor(value)
    if tensor is None or tensor.size > MAX_CONTENTS:
        return None
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return ir.serde.serialize_tensor(tensor)
    # Read first: inference cannot follow a tensor into its file.
    return ir.serde.serialize_tensor(ir.Tensor(np.array(tensor.numpy()), tensor.dtype))


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
