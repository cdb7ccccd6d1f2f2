"""Ops without a row, decomposed by the function body that ONNX itself defines them with."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

HasRow = Callable[[ir.Node], bool]
ROUNDS = 8
"""Bodies have ops with bodies, at most so deep."""


def inline_functions(model: ir.Model) -> None:
    """Put the bodies of a model's own functions in place of their calls."""
    if model.functions:
        InlinePass()(model)


def inline_bodies(model: ir.Model, has_row: HasRow) -> None:
    """Put ONNX's own definitions in place of ops without a row, as far as there are some."""
    opset = model.graph.opset_imports.get("", 1)
    for _ in range(ROUNDS):
        calls = [node for node in model.graph.all_nodes() if not has_row(node)]
        bodies = [(node, body) for node in calls if (body := _body_of(node, opset)) is not None]
        if not bodies:
            return
        for place, (node, body) in enumerate(bodies):
            node.overload = f"body_{place}"
            named = ir.Function(
                node.domain, node.op_type, node.overload, graph=body.graph,
                attributes=list(body.attributes.values()),
            )  # fmt: skip
            named.opset_imports.update(model.graph.opset_imports)
            model.functions[named.identifier()] = named
        InlinePass()(model)


def _body_of(node: ir.Node, opset: int) -> ir.Function | None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    for name, known in schema.attributes.items():
        if name not in node.attributes and known.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(known.default_value)
    if schema.has_function:
        body = schema.get_function_with_opset_version(opset)
    elif schema.has_context_dependent_function:
        types = [_type_of(value) for value in node.inputs]
        contents = ir.serde.serialize_node(node).SerializeToString()
        try:
            body = schema.get_context_dependent_function_with_opset_version(opset, contents, types)
        except RuntimeError:  # the builder wants types that are not known
            return None
    else:
        return None
    if not body:
        return None
    proto = onnx.FunctionProto()
    proto.ParseFromString(body)
    return ir.serde.deserialize_function(proto)


def _type_of(value: ir.Value | None) -> bytes:
    kind = onnx.TypeProto()
    if value is not None and value.type is not None:
        ir.serde.serialize_type_into(kind, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(kind, value.shape)
    return bytes(kind.SerializeToString())
