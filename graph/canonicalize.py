"""Bring a model into the one form the rest of tpcore works on.

1. Functions are inlined, an old opset is a newer one, constants are initializers, every node and
   value has a unique name.
2. `Gemm` is `MatMul` + `Add`, so that a bias is a value of its own; some ops that ONNX Runtime
   fused are their parts; `Identity` and `Dropout` outside of training are gone.
3. A `Transpose` of a weight used once is done when the weight is read.
4. Zero points that lie several to a byte are counted one by one.
5. `GatherND` along one dim is `Gather`, and `Slice` where the index is a constant range: exporters
   write indexing so, and these have rules that let a split pass.
6. What is computed from weights alone is a weight, computed when it is read.
7. Each use of a small constant has a copy of its own: exporters share equal constants between
   unrelated places, where each needs its own split. Copies share the data and cost no memory.
8. Shape arithmetic whose result is a known constant is one; what Range reads are scalars.
9. Nodes that reach no output are gone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graph.annotations import succeed
from graph.errors import GraphError
from graph.fold import fold_weights
from graph.fused_ops import expand_fused
from graph.identities import drop_identities
from graph.infer import infer_shapes
from graph.lookups import slice_lookups
from graph.names import fix_names
from graph.random_ops import seed_random_ops
from graph.shapes import Shapes
from graph.upgrade import upgrade
from graph.weights import add_initializer, bytes_of, transposed
from graph.zero_points import count_zero_points

SMALL_BYTES = 4096
"""A constant of at most this size, or with at most one dim above 1, is copied per use."""


def canonicalize(model: ir.Model) -> tuple[ir.Model, Shapes]:
    """Rewrite `model` in place into canonical form, and infer its shapes.

    Raises:
        GraphError: an op is used with operands its schema does not allow.
    """
    _inline_functions(model)
    seed_random_ops(model.graph)
    upgrade(model)
    expand_fused(model.graph)
    _use_passes(model)
    _expand_gemms(model)
    _fold_transposes(model)
    count_zero_points(model.graph)
    shapes = infer_shapes(model)
    slice_lookups(model.graph, shapes)
    _make_range_operands_scalars(model.graph, shapes)
    _fold_known_contents(model, shapes)
    fold_weights(model.graph, shapes)
    common.RemoveUnusedNodesPass()(model)
    _unshare_constants(model, shapes)
    fix_names(model)
    return model, shapes


def _inline_functions(model: ir.Model) -> None:
    try:
        common.InlinePass()(model)
    except ValueError as error:  # a function of another opset than the model's
        raise GraphError(
            f"functions of the model cannot be inlined: {error}. "
            "Export the model and its functions with one opset."
        ) from error


def _use_passes(model: ir.Model) -> None:
    for ir_pass in (
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ):
        ir_pass(model)
    fix_names(model)
    drop_identities(model.graph)


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
        return emit("Mul", value, add_initializer(graph, f"{gemm.name}/{label}", tensor))

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


# --- Range ----------------------------------------------------------------------------------------


def _make_range_operands_scalars(graph: ir.Graph, shapes: Shapes) -> None:
    """Reshape what Range reads to scalars, where it may be something else.

    ONNX Runtime takes vectors of one entry as well, as long as it cannot see their shape: what is
    made a constant here lets it see more than in the unsplit model.
    """
    for node in [node for node in graph if node.op_type == "Range" and node.domain == ""]:
        for index, value in enumerate(node.inputs):
            if value is None or shapes.dims.get(value) == ():
                continue
            scalar = add_initializer(graph, f"{node.name}/scalar", ir.tensor(np.zeros(0, np.int64)))
            shapes.dims[scalar], shapes.contents[scalar] = (0,), np.zeros(0, object)
            reshape = ir.node("Reshape", [value, scalar], name=f"{node.name}/Reshape_{index}")
            result = reshape.outputs[0]
            result.name, result.type = f"{node.name}/operand_{index}", value.type
            shapes.dims[result] = ()
            node.prepend(reshape)
            node.replace_input_with(index, result)


# --- constants ------------------------------------------------------------------------------------


def _fold_transposes(model: ir.Model) -> None:
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
        if weight is None or weight.const_value is None or len(weight.uses()) != 1:
            continue
        axes = list(range(len(weight.const_value.shape)))
        perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else axes[::-1]
        tensor = transposed(weight.const_value, perm)
        replacement = add_initializer(model.graph, f"{weight.name}.T", tensor)
        _replace(model.graph, node.outputs[0], replacement)
        succeed(weight, replacement, tuple(perm))
        succeed(node.outputs[0], replacement)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    if not old.is_graph_output():
        old.replace_all_uses_with(new)


def _fold_known_contents(model: ir.Model, shapes: Shapes) -> None:
    for node in list(model.graph):
        for out in node.outputs:
            tensor = shapes.tensor(out)
            if tensor is None or not out.uses() or out.is_graph_output():
                continue
            new = add_initializer(model.graph, f"{out.name}.value", tensor)
            shapes.dims[new], shapes.contents[new] = shapes.dims[out], shapes.contents[out]
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
            copy = add_initializer(graph, f"{value.name}#{number}", tensor)
            shapes.dims[copy] = shapes.dims[value]
            if value in shapes.contents:
                shapes.contents[copy] = shapes.contents[value]
            user.replace_input_with(index, copy)
