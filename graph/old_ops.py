"""How ops of ai.onnx were written in older opsets, said in the form they have in opset 15.

One row per op in `OLD_FORMS`. A row is needed where the old form is no valid or no equal new one;
attributes and operands that were added with a default need none.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.experimental_ops import EXPERIMENTAL_FORMS
from graph.old_node import Old, OldForm, renamed

LEFT_OVER = ("consumed_inputs", "output_sequence")
"""Attributes of opsets 1 to 6 that mean nothing."""
FLOAT_MAX = float(np.finfo(np.float32).max)


# --- attributes that became operands --------------------------------------------------------------


def _axes(o: Old) -> None:
    axes = o.attribute("axes")
    if axes:
        o.become(o.node.op_type, [o.operand(0), o.ints(*axes)], **o.kept("keepdims"))


def _split(o: Old) -> None:
    sizes = o.attribute("split")
    if sizes:
        o.become("Split", [o.operand(0), o.ints(*sizes)], **o.kept("axis"))


def _slice(o: Old) -> None:
    starts, ends = o.attribute("starts"), o.attribute("ends")
    axes = o.attribute("axes") or range(len(starts))
    o.become("Slice", [o.operand(0), o.ints(*starts), o.ints(*ends), o.ints(*axes)])


def _clip(o: Old) -> None:
    low, high = o.attribute("min", -FLOAT_MAX), o.attribute("max", FLOAT_MAX)
    o.become("Clip", [o.operand(0), o.like(low), o.like(high)])


def _pad(o: Old) -> None:
    pads = o.ints(*o.attribute("pads", o.attribute("paddings")))
    o.become("Pad", [o.operand(0), pads, o.like(o.attribute("value", 0.0))], **o.kept("mode"))


def _top_k(o: Old) -> None:
    o.become("TopK", [o.operand(0), o.ints(o.attribute("k"))], **o.kept("axis"))


def _reshape(o: Old) -> None:
    o.become("Reshape", [o.operand(0), o.ints(*o.attribute("shape"))])


def _cast(o: Old) -> None:
    o.become("Cast", [o.operand(0)], to=int(ir.DataType[o.attribute("to")]))


# --- other meanings -------------------------------------------------------------------------------


def _softmax(o: Old) -> None:
    """All dims from `axis` on were one."""
    axis, dims, op_type = o.attribute("axis", 1), o.dims(0), o.node.op_type
    if dims is not None:
        axis %= len(dims)
        wide = [i for i in range(axis, len(dims)) if dims[i] != 1] or [axis]
        if len(wide) == 1:
            o.become(op_type, [o.operand(0)], axis=wide[0])
            return
    if axis == -1:
        o.become(op_type, [o.operand(0)], axis=-1)
        return
    flat = o.emit(op_type, o.emit("Flatten", o.operand(0), axis=axis), axis=-1)
    o.become("Reshape", [flat, o.emit("Shape", o.operand(0))])


def _batch_norm(o: Old) -> None:
    """With more results than one it trained; with spatial=0 every element had its own mean."""
    trains = any(value.name for value in o.node.outputs[1:]) and not o.attribute("is_test", 0)
    kept = 3 if trains else 1
    if any(value.uses() or value.is_graph_output() for value in o.node.outputs[kept:]):
        raise o.refused("gives out statistics that no newer opset does")
    o.node.resize_outputs(min(kept, len(o.node.outputs)))
    if o.attribute("spatial", 1):
        form = {**o.kept("epsilon", "momentum"), **({"training_mode": 1} if trains else {})}
        o.become("BatchNormalization", list(o.node.inputs), **form)
        return
    if trains:
        raise o.refused("trains statistics of every element")
    x, scale, bias, mean, variance = o.node.inputs
    deviation = o.emit("Sqrt", o.emit("Add", variance, o.like(o.attribute("epsilon", 1e-5))))
    normal = o.emit("Div", o.emit("Sub", x, mean), deviation)
    o.become("Add", [o.emit("Mul", normal, scale), bias])


def _dropout(o: Old) -> None:
    """In use nothing is dropped; the mask was false, until opset 9 of the operand's type."""
    if o.opset < 7 and not o.attribute("is_test", 0):
        raise o.refused("drops elements at random, as in training")
    for mask in o.node.outputs[1:]:
        if mask.uses() or mask.is_graph_output():
            name, nothing = mask.name, ir.tensor(np.array([False]))
            zeros = o.emit("ConstantOfShape", o.emit("Shape", o.operand(0)), value=nothing)
            zeros = o.emit("CastLike", zeros, o.operand(0)) if o.opset < 10 else zeros
            mask.replace_all_uses_with(zeros, replace_graph_outputs=True)
            mask.name, zeros.name = None, name
    o.node.resize_outputs(1)
    o.become("Identity", [o.operand(0)])


def _resize(o: Old) -> None:
    """Operands that may be left out were empty; before opset 11 there was `_resize_by_scales`."""
    if o.opset < 11:
        _resize_by_scales(o, o.operand(1))
        return
    operands = [None if _is_empty(value) else value for value in o.node.inputs]
    if operands[3:] not in ([], [None]):
        operands[2] = None  # empty, whether a constant or not
    o.become("Resize", operands, **o.kept(*o.node.attributes))


def _upsample(o: Old) -> None:
    if "height_scale" in o.node.attributes:
        scales = (1.0, 1.0, o.attribute("height_scale"), o.attribute("width_scale"))
    else:
        scales = o.attribute("scales")
    given = None if scales is None else ir.tensor(np.array(scales, np.float32))
    _resize_by_scales(o, o.operand(1) if given is None else o.emit("Constant", value=given))


def _resize_by_scales(o: Old, scales: ir.Value | None) -> None:
    """Of two neighbours the lower was nearest in a dim that grows, the higher in one that shrinks.

    A dim of scale one is not changed by either, so that one of both may come after the other.
    """
    mode = o.attribute("mode", "nearest")
    form = {"mode": mode.replace("bilinear", "linear")}
    form["coordinate_transformation_mode"] = "asymmetric"
    if mode != "nearest":
        o.become("Resize", [o.operand(0), None, scales], **form)
        return
    known = None if scales is None else ir.convenience.get_const_tensor(scales)
    grows, shrinks, x = True, True, o.operand(0)
    if known is not None:
        grows, shrinks = bool((known.numpy() > 1).any()), bool((known.numpy() < 1).any())
    if grows and shrinks:
        one = o.emit("Constant", value=ir.tensor(np.array(1, np.float32)))
        grown = o.emit("Max", scales, one)
        x = o.emit("Resize", x, None, grown, nearest_mode="floor", **form)
        scales = o.emit("Min", scales, one)
    o.become("Resize", [x, None, scales], nearest_mode="ceil" if shrinks else "floor", **form)


def _is_empty(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 0


def _scan(o: Old) -> None:
    """The first dim was a batch of scans: now a scan, over the batch, of scans."""
    if o.operand(0) is not None:
        raise o.refused("has sequences of several lengths")
    inputs, body = o.node.inputs[1:], o.node.attributes["body"].as_graph()
    count = o.attribute("num_scan_inputs")
    directions = o.attribute("directions") or [0] * count
    label = o.node.outputs[0].name or o.node.name
    given = [
        ir.Value(name=f"{label}/batch_{i}", type=operand.type)
        for i, operand in enumerate(body.inputs)
    ]
    form = {"body": body, "num_scan_inputs": count, "scan_input_directions": directions}
    o.node.attributes.clear()
    inner = ir.node("Scan", given, form, num_outputs=len(o.node.outputs))
    for i, (out, result) in enumerate(zip(inner.outputs, body.outputs, strict=True)):
        out.name, out.type = f"{label}/of_batch_{i}", result.type
    outer = ir.Graph(given, inner.outputs, nodes=[inner], name=f"{label}/batch")
    o.become("Scan", inputs, body=outer, num_scan_inputs=len(inputs))


# --- opset 6 and older ----------------------------------------------------------------------------


def _broadcast(o: Old) -> None:
    """The second operand's dims started at `axis` of the first's."""
    right, axis = o.operand(1), o.attribute("axis")
    if o.attribute("broadcast", 0) and axis is not None:
        rank, width = o.rank(0), o.rank(1)
        missing = rank - axis % rank - width
        if missing:
            right = o.emit("Unsqueeze", right, o.ints(*range(width, width + missing)))
    o.become(o.node.op_type, [o.operand(0), right])


def _slopes(o: Old) -> None:
    """The slopes of PRelu belonged to dim 1."""
    slope, missing = o.operand(1), o.rank(0) - 2
    if o.rank(1) == 1 and missing > 0:
        slope = o.emit("Unsqueeze", slope, o.ints(*range(1, 1 + missing)))
    o.become("PRelu", [o.operand(0), slope])


def _without(o: Old, name: str) -> None:
    o.node.attributes.pop(name, None)


def _with(o: Old, **defaults: Any) -> None:
    """Write the defaults of that time."""
    given = o.kept(*o.node.attributes)
    o.become(o.node.op_type, list(o.node.inputs), **{**defaults, **given})


def _whole_power(o: Old) -> None:
    power = o.attribute("p", 2.0)
    if power != int(power):
        raise o.refused(f"has the power {power}, which is no whole number")
    o.become(o.node.op_type, list(o.node.inputs), **{**o.kept(*o.node.attributes), "p": int(power)})


def _gone(o: Old) -> None:
    raise o.refused("has no form in newer opsets, and ONNX Runtime cannot run it")


OLD_FORMS: dict[str, OldForm] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), OldForm(13, _softmax)),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum"), OldForm(13, _axes)),
    "Split": OldForm(13, _split),
    "Slice": OldForm(10, _slice),
    "Clip": OldForm(11, _clip),
    "Pad": OldForm(11, _pad),
    "TopK": OldForm(10, _top_k),
    "Reshape": OldForm(5, _reshape),
    "Cast": OldForm(6, _cast),
    "BatchNormalization": OldForm(14, _batch_norm),
    "Dropout": OldForm(12, _dropout),
    "Resize": OldForm(13, _resize),
    "Upsample": OldForm(10, _upsample),
    "Scan": OldForm(9, _scan),
    "Scatter": OldForm(11, partial(renamed, name="ScatterElements")),
    **dict.fromkeys("Add Sub Mul Div Pow And Or Xor".split(), OldForm(7, _broadcast)),
    **dict.fromkeys("Equal Greater Less".split(), OldForm(7, _broadcast)),
    "PRelu": OldForm(7, _slopes),
    "Gemm": OldForm(7, partial(_without, name="broadcast")),
    "Selu": OldForm(6, partial(_with, alpha=1.6732, gamma=1.0507)),
    "Concat": OldForm(4, partial(_with, axis=1)),
    **dict.fromkeys(("LpPool", "GlobalLpPool"), OldForm(2, _whole_power)),
    **EXPERIMENTAL_FORMS,
    "Tile": OldForm(6, _gone),
    **dict.fromkeys("ATen ConstantFill GRUUnit GivenTensorFill".split(), OldForm(13, _gone)),
}
