"""Bring a model into the one form the rest of tpcore works on.

1. Functions are inlined, constants are initializers, every node and value has a unique name.
2. `Gemm` is `MatMul` + `Add`, so that a bias is a value of its own.
3. A `Transpose` of a weight used once is done when the weight is read.
4. `GatherND` along one dim is `Gather`, or `Slice` where the index is a constant: exporters write
   indexing so, and these have rules that let a split pass.
5. Each use of a small constant has a copy of its own: exporters share equal constants between
   unrelated places, where each needs its own split. Copies share the data and cost no memory.
6. Shape arithmetic whose result is a known constant is one.
7. Nodes that reach no output are gone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graph.infer import infer_shapes
from graph.shapes import Shapes
from graph.weights import bytes_of, transposed

SQUEEZE_BY_OPERAND = 13
"""From this opset Squeeze takes its axes as an operand."""
SMALL_BYTES = 4096
"""A constant of at most this size, or with at most one dim above 1, is copied per use."""


def canonicalize(model: ir.Model) -> tuple[ir.Model, Shapes]:
    """Rewrite `model` in place into canonical form, and infer its shapes.

    Raises:
        GraphError: an op is used with operands its schema does not allow.
    """
    _use_passes(model)
    _expand_gemms(model)
    _fold_transposes(model)
    shapes = infer_shapes(model)
    _expand_gather_nds(model, shapes)
    _fold_known_contents(model, shapes)
    common.RemoveUnusedNodesPass()(model)
    _unshare_constants(model, shapes)
    common.NameFixPass()(model)
    return model, shapes


def _use_passes(model: ir.Model) -> None:
    for ir_pass in (
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.NameFixPass(),
    ):
        ir_pass(model)
    _drop_identities(model.graph)
    for index, node in enumerate(model.graph):
        if not node.name:
            node.name = f"{node.op_type}_{index}"


def _drop_identities(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None:
            _drop_identity(graph, node, node.inputs[0])


def _drop_identity(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Let the operand take the result's place, and its name where that is an output's.

    A value has one name: an input, a weight or another output keeps it, and so the Identity stays.
    """
    result = node.outputs[0]
    is_output, name = result.is_graph_output(), result.name
    if is_output and (source.producer() is None or source.is_graph_output()):
        return
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        result.name, source.name = None, name


def _add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    value = ir.val(name, tensor.dtype, list(tensor.shape.numpy()), const_value=tensor)
    graph.register_initializer(value)
    return value


# --- Gemm -----------------------------------------------------------------------------------------


def _expand_gemms(model: ir.Model) -> None:
    gemms = [n for n in model.graph if n.op_type == "Gemm" and n.domain == ""]
    if gemms:
        infer_shapes(model)  # their scalars have the type of their operands
    for gemm in gemms:
        _expand_gemm(model.graph, gemm)


def _expand_gemm(graph: ir.Graph, gemm: ir.Node) -> None:
    """alpha * op(A) @ op(B) + beta * C, as MatMul and Add with the scalars where they are not 1."""

    def emit(op_type: str, *operands: ir.Value, **attributes: list[int]) -> ir.Value:
        node = ir.node(op_type, operands, attributes, name=f"{gemm.name}/{op_type}_{len(made)}")
        node.outputs[0].name = f"{gemm.name}/{op_type}_{len(made)}_out"
        made.append(node)
        return node.outputs[0]

    def scaled(value: ir.Value, factor: float, label: str) -> ir.Value:
        if factor == 1.0:
            return value
        known = [v.dtype for v in gemm.inputs if v is not None and v.dtype is not None]
        dtype = known[0] if known else ir.DataType.FLOAT
        tensor = ir.tensor(np.array(factor, dtype.numpy()), name=f"{gemm.name}/{label}")
        return emit("Mul", value, _add_initializer(graph, f"{gemm.name}/{label}", tensor))

    made: list[ir.Node] = []
    attribute: Callable[[str, float], float] = lambda name, default: (  # noqa: E731
        gemm.attributes[name].value if name in gemm.attributes else default
    )
    a, b = gemm.inputs[0], gemm.inputs[1]
    c = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if a is None or b is None:
        return
    a = emit("Transpose", a, perm=[1, 0]) if attribute("transA", 0) else a
    b = emit("Transpose", b, perm=[1, 0]) if attribute("transB", 0) else b
    result = scaled(emit("MatMul", a, b), attribute("alpha", 1.0), "alpha")
    if c is not None:
        result = emit("Add", result, scaled(c, attribute("beta", 1.0), "beta"))
    ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], made, [gemm.outputs[0]], [result])


# --- GatherND -------------------------------------------------------------------------------------


def _expand_gather_nds(model: ir.Model, shapes: Shapes) -> None:
    if model.graph.opset_imports.get("", 0) < SQUEEZE_BY_OPERAND:
        return
    for node in list(model.graph):
        if node.op_type != "GatherND" or node.domain != "":
            continue
        index = node.inputs[1]
        batch = node.attributes["batch_dims"].as_int() if "batch_dims" in node.attributes else 0
        if index is not None and batch == 0 and shapes.dims.get(index, ())[-1:] == (1,):
            _expand_gather_nd(model.graph, shapes, node, index)


def _expand_gather_nd(graph: ir.Graph, shapes: Shapes, node: ir.Node, index: ir.Value) -> None:
    """One index per looked-up row: the last dim of `index` is 1 and drops out."""

    def constant(entries: list[int], label: str) -> ir.Value:
        array = np.array(entries, np.int64)
        value = _add_initializer(graph, f"{node.name}/{label}", ir.tensor(array))
        shapes.dims[value], shapes.contents[value] = array.shape, array.astype(object)
        return value

    rows, place = node.inputs[0], shapes.ints(index)
    if rows is None:
        return
    if place is not None and shapes.dims[index] == (1, 1):
        start, stop = place[0], place[0] + 1 if place[0] != -1 else np.iinfo(np.int64).max
        bounds = [constant([start], "start"), constant([int(stop)], "stop"), constant([0], "axis")]
        made = [ir.node("Slice", [rows, *bounds], name=f"{node.name}/Slice")]
    else:
        squeeze = ir.node("Squeeze", [index, constant([-1], "last")], name=f"{node.name}/Squeeze")
        flat = squeeze.outputs[0]
        flat.name, flat.type = f"{node.name}/index", index.type
        shapes.dims[flat] = shapes.dims[index][:-1]
        made = [squeeze, ir.node("Gather", [rows, flat], {"axis": 0}, name=f"{node.name}/Gather")]
    old, result = node.outputs[0], made[-1].outputs[0]
    result.type, shapes.dims[result] = old.type, shapes.dims[old]
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [old], [result])


# --- constants ------------------------------------------------------------------------------------


def _fold_transposes(model: ir.Model) -> None:
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
        if weight is None or weight.const_value is None or len(weight.uses()) != 1:
            continue
        axes = list(range(len(weight.const_value.shape)))
        perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else axes[::-1]
        tensor = transposed(weight.const_value, perm)
        replacement = _add_initializer(model.graph, f"{weight.name}.T", tensor)
        _replace(model.graph, node.outputs[0], replacement)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    if not old.is_graph_output():
        old.replace_all_uses_with(new)


def _fold_known_contents(model: ir.Model, shapes: Shapes) -> None:
    for node in list(model.graph):
        for out in node.outputs:
            contents = shapes.ints(out)
            if contents is None or not out.uses() or out.is_graph_output():
                continue
            dtype = (out.dtype or ir.DataType.INT64).numpy()
            try:
                array = np.array(contents, dtype).reshape(shapes.contents[out].shape)
            except OverflowError:
                continue  # a Cast that wraps around is left to the executor
            new = _add_initializer(model.graph, f"{out.name}.value", ir.tensor(array))
            shapes.dims[new], shapes.contents[new] = array.shape, shapes.contents[out]
            _replace(model.graph, out, new)


def _is_small(tensor: ir.TensorProtocol) -> bool:
    wide = sum(size > 1 for size in tensor.shape.numpy())
    return wide <= 1 or bytes_of(tensor.dtype, tensor.size) <= SMALL_BYTES


def _unshare_constants(model: ir.Model, shapes: Shapes) -> None:
    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _is_small(tensor) or value.is_graph_output():
            continue
        for number, (user, index) in enumerate(list(value.uses())[1:], start=1):
            copy = _add_initializer(graph, f"{value.name}#{number}", tensor)
            shapes.dims[copy] = shapes.dims[value]
            if value in shapes.contents:
                shapes.contents[copy] = shapes.contents[value]
            user.replace_input_with(index, copy)
