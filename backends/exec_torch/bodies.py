"""Ops without a row, decomposed by the function body that ONNX itself defines them with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

HasRow = Callable[[ir.Node], bool]
ROUNDS = 8
"""Bodies have ops with bodies, at most so deep."""


def inline_functions(model: ir.Model) -> None:
    """Put the bodies of a model's own functions in place of their calls."""
    if model.functions:
        InlinePass()(model)


def inline_bodies(model: ir.Model, has_row: HasRow) -> None:
    """Put ONNX's own definitions in place of ops without a row, as far as there are some."""
    imports = model.graph.opset_imports
    for _ in range(ROUNDS):
        calls = [node for node in model.graph.all_nodes() if not has_row(node)]
        if calls:
            _infer_types(model)
        bodies = [(node, body) for node in calls if (body := _body_of(node, imports))]
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


def _infer_types(model: ir.Model) -> None:
    """Say the types of all values that a body's builder may ask for."""
    log = logging.getLogger("onnx_ir")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # a model that cannot be inferred keeps the types it has
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    finally:
        log.setLevel(level)


def _body_of(node: ir.Node, imports: Mapping[str, int]) -> ir.Function | None:
    opset = imports.get(node.domain, 1)
    if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    for name, known in schema.attributes.items():
        if name not in node.attributes and known.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(known.default_value)
    body = _builder_of(node, schema)
    if body is None:
        return None
    for version in _versions(schema, opset):
        try:
            found = body(version)
        except RuntimeError:  # the builder wants types that are not known
            continue
        if found:
            proto = onnx.FunctionProto()
            proto.ParseFromString(found)
            del proto.output[len(node.outputs) :]  # a result that is not asked for may not be made
            return ir.serde.deserialize_function(proto)
    return None


def _builder_of(node: ir.Node, schema: Any) -> Callable[[int], bytes] | None:
    """What makes the body's bytes for a version."""
    if schema.has_function:
        return schema.get_function_with_opset_version  # type: ignore[no-any-return]
    if not schema.has_context_dependent_function:
        return None
    types = [_type_of(value) for value in node.inputs]
    contents = ir.serde.serialize_node(node).SerializeToString()

    def build(version: int) -> bytes:
        return bytes(
            schema.get_context_dependent_function_with_opset_version(version, contents, types)
        )

    return build


def _versions(schema: Any, opset: int) -> list[int]:
    """The model's opset, then those that bodies were written in: the rows know both forms."""
    written = {*schema.function_opset_versions, *schema.context_dependent_function_opset_versions}
    return [opset, *sorted(written, reverse=True)]


def _type_of(value: ir.Value | None) -> bytes:
    kind = onnx.TypeProto()
    if value is not None and value.type is not None:
        ir.serde.serialize_type_into(kind, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(kind, value.shape)
    return bytes(kind.SerializeToString())
