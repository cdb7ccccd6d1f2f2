"""Bring a model of an older opset to the one from which on the rest of tpcore knows every op.

What changed in each op is one row of `graph.old_ops`; here is the walk over all nodes, those in
bodies of If, Loop and Scan included. Weights are not read.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from graph.errors import GraphError
from graph.old_node import Old
from graph.old_ops import LEFT_OVER, OLD_FORMS
from graph.plain import drop_odd_types
from graph.shapes import MAX_CONTENTS

TARGET = 15
"""The first opset with CastLike, which gives a constant the type of a value nothing is known of."""
FIRST_WITHOUT_LEFT_OVERS = 7
OLDEST_IR_VERSION = 8
"""The file format that belongs to `TARGET`."""


def upgrade(model: ir.Model) -> None:
    """Rewrite a model in place, so that it is of opset `TARGET` or newer; functions are inlined.

    Raises:
        GraphError: an op has no meaning in newer opsets; the message names the node and the reason.
    """
    imports = model.graph.opset_imports
    opset = imports.get("", TARGET if imports else 1)
    if opset >= TARGET:
        return
    imports[""] = opset
    nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
    old = [n for n in nodes if n.op_type in OLD_FORMS and opset < OLD_FORMS[n.op_type].until]
    typed = _typed_values(model) if old else {}
    for node in old:
        OLD_FORMS[node.op_type].rewrite(Old(node, opset, typed))
    if opset < FIRST_WITHOUT_LEFT_OVERS:
        _drop_left_overs(nodes)
    imports[""] = TARGET
    model.ir_version = max(model.ir_version, OLDEST_IR_VERSION)


def _drop_left_overs(nodes: list[ir.Node]) -> None:
    for node in nodes:
        for name in LEFT_OVER:
            node.attributes.pop(name, None)


def _typed_values(model: ir.Model) -> dict[ir.Value, ir.Value]:
    """Every operand and result, beside its twin to which ONNX's inference gave type and shape."""
    try:
        found = onnx.shape_inference.infer_shapes(_proto_without_weights(model), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(
            f"the model does not fit its opset: {str(error).splitlines()[-1].rstrip('.')}. "
            "Check it with onnx.checker and export it again."
        ) from error
    drop_odd_types(found.graph)
    twins = _values(ir.serde.deserialize_model(found))
    return {
        value: twin
        for value, twin in zip(_values(model), twins, strict=True)
        if value is not None and twin is not None
    }


def _values(model: ir.Model) -> Iterator[ir.Value | None]:
    for node in model.graph.all_nodes():
        yield from node.inputs
        yield from node.outputs


def _proto_without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with inputs in place of all initializers but small ones that are embedded."""
    twin = model.clone()
    graph = twin.graph
    given = set(graph.inputs)
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
        if tensor.size > MAX_CONTENTS or isinstance(tensor, ir.ExternalTensor):
            del graph.initializers[name]
            if value not in given:
                graph.inputs.append(value)
    return ir.serde.serialize_model(twin)
