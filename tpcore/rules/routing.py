"""Run the experts of one rank so that its result is its part of the whole sum.

MoE and QMoE pick the best experts among those whose weights they are given, and weigh them by a
softmax over these. A rank with some of the experts therefore gets logits made for it:

1. the weights of all experts for every token are computed from the whole router, as the op does;
   w[t, e] is zero where expert e is not chosen;
2. the rank takes its own experts of these, and their sum s[t];
3. its logits are log w, and far below where w is zero: the softmax of the op then is w / s;
4. its result times s is its part of the sum.

A token that chose no expert of this rank has s = 0 and a part of zero; the op runs one expert for
it, as it always picks some.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tpcore.localizers import LocalNode

ROUTER, ROUTER_WEIGHTS = 1, 14
"""Operands: the router's logits, and in QMoE the weights of the experts they choose."""
NOT_CHOSEN, NEVER = -1000.0, -2000.0
"""Logits of experts whose weight is zero: below the log of any float, and in range of float16. The
first is above the others, so that a token without any expert is computed once."""
FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def local_experts(x: LocalNode) -> None:
    """Route by the whole router where the expert dim of the weights is split."""
    held = x.held(x.source.inputs[2]).split_of(0)
    if held is None or held.layout is None:
        return
    mine = held.layout.indices(x.rank)
    weights = _weights_of(x, held.whole)
    # The experts are in reverse order in `weights`.
    places = x.constant(held.whole - 1 - mine.astype(np.int64), "local_experts")
    weights = x.emit("Gather", [weights, places], "local_weights", attributes={"axis": 1})
    columns = x.constant(np.array([1], np.int64), "columns")
    total = x.emit("ReduceSum", [weights, columns], "local_total")
    floor = np.full(len(mine), NEVER, np.float32)
    floor[0] = NOT_CHOSEN
    logits = x.emit("Log", [weights], "log")
    logits = x.emit("Max", [logits, x.constant(floor, "floor")], "local_logits")
    _scale(x, _run(x, logits, len(mine)), total)


def _number(x: LocalNode, name: str, default: int) -> int:
    attribute = x.source.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _weights_of(x: LocalNode, experts: int) -> ir.Value:
    """Weight of every expert for every token, f32[tokens, experts], in reverse order.

    Of equal experts ONNX Runtime's kernels choose the last and TopK the first: hence the order.
    """
    order = x.constant(np.arange(experts - 1, -1, -1), "reverse_order")
    scores = _reversed(x, x.node.inputs[ROUTER], order, "scores")
    count = x.constant(np.array([_number(x, "k", 1)], np.int64), "k")
    if x.node.op_type == "MoE":
        scores = x.emit("Softmax", [scores], "probabilities", attributes={"axis": -1})
    found, chosen = x.emit_all("TopK", [scores, count], "best", [FLOAT, INT64])
    given = x.node.inputs[ROUTER_WEIGHTS] if len(x.node.inputs) > ROUTER_WEIGHTS else None
    if given is not None:
        all_given = _reversed(x, given, order, "given")
        operands = [all_given, chosen]
        found = x.emit("GatherElements", operands, "chosen_given", attributes={"axis": 1})
    if x.node.op_type == "QMoE" and given is None:
        found = x.emit("Softmax", [found], "chosen_weights", attributes={"axis": -1})
    elif _number(x, "normalize_routing_weights", 0):
        found = _normalised(x, found)
    if given is not None:
        found = x.emit("Relu", [found], "positive")  # the kernels pass over weights below zero
    shape = x.emit("Shape", [scores], "shape", dtype=INT64)
    nothing = x.emit("ConstantOfShape", [shape], "nothing", dtype=FLOAT)
    operands = [nothing, chosen, found]
    return x.emit("ScatterElements", operands, "weights", attributes={"axis": 1})


def _reversed(x: LocalNode, value: ir.Value | None, order: ir.Value, label: str) -> ir.Value:
    if value is not None and value.dtype != FLOAT:
        value = _cast(x, value, FLOAT, f"{label}_float")
    return x.emit("Gather", [value, order], label, dtype=FLOAT, attributes={"axis": 1})


def _normalised(x: LocalNode, found: ir.Value) -> ir.Value:
    """Divided by their sum, zero where that is zero."""
    columns = x.constant(np.array([1], np.int64), "chosen_columns")
    total = x.emit("ReduceSum", [found, columns], "chosen_total")
    share = x.emit("Div", [found, total], "share")
    zero = x.constant(np.array(0, np.float32), "no_share")
    empty = x.emit("Equal", [total, zero], "is_empty", dtype=BOOL)
    return x.emit("Where", [empty, zero, share], "normalised", dtype=FLOAT)


def _run(x: LocalNode, logits: ir.Value, experts: int) -> ir.Value:
    """The op on this rank's experts alone."""
    result = x.source.outputs[0]
    dtype = x.source.inputs[0].dtype if x.source.inputs[0] is not None else None
    dtype = dtype or result.dtype or FLOAT
    operands = list(x.node.inputs[:ROUTER_WEIGHTS])
    operands[ROUTER] = logits if dtype == FLOAT else _cast(x, logits, dtype, "logits")
    attributes: dict[str, ir.Attr | int | list[int]] = dict(x.node.attributes)
    attributes["k"] = min(_number(x, "k", 1), experts)
    return x.emit(
        x.node.op_type,
        operands,
        "experts",
        dtype=dtype,
        attributes=attributes,
        domain=x.node.domain,
    )


def _scale(x: LocalNode, result: ir.Value, total: ir.Value) -> None:
    """Multiply every token of the result by `total` f32[tokens, 1]; zero where that is zero.

    What an expert makes of a token that did not choose it may be infinite.
    """
    dtype = result.dtype or FLOAT
    zero = x.constant(np.zeros((), dtype.numpy()), "zero")
    total = total if dtype == FLOAT else _cast(x, total, dtype, "local_total_cast")
    shape = None
    if len(x.dims(x.source.outputs[0])) == 3:
        shape = x.emit("Shape", [result], "result_shape", dtype=INT64)
        result = x.emit("Flatten", [result], "tokens", attributes={"axis": 2})
    used = x.emit("Greater", [total, zero], "used", dtype=BOOL)
    scaled = x.emit("Mul", [result, total], "scaled")
    scaled = x.emit("Where", [used, scaled, zero], "part", dtype=dtype)
    x.become(scaled if shape is None else x.emit("Reshape", [scaled, shape], "batched"))


def _cast(x: LocalNode, value: ir.Value, dtype: ir.DataType, label: str) -> ir.Value:
    return x.emit("Cast", [value], label, dtype=dtype, attributes={"to": int(dtype)})
