"""Convolutional nets: channels are split, windows and the dims they slide over stay whole."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from graph.dims import Dim, Dims, divide
from graph.shapes import Context
from tpcore import localizers
from tpcore.rule import Rule
from tpcore.rules.shape import compound
from tpcore.rules.spec import OpSpec, make, mark, names

OPSET_OF_SCALE_PER_CHANNEL = 21
OPSET_OF_RESIZE_SIZES = 11
"""From here on Resize has an operand of sizes, and scales that move."""


def _row(letter: str, count: int, sign: str = "!") -> str:
    return " ".join(f"{letter}{i}{sign}" for i in range(count))


# --- contractions ---------------------------------------------------------------------------------


def conv(c: Context) -> Rule:
    """`b c+ x!, o c k! -> b o y!`; with groups `b (g c) x!, (g o) c! k! -> b (g o) y!`."""
    weight = c.dims(1)
    window = len(weight) - 2
    groups = c.attribute("group", 1)
    channels, out, kernel = ("c+", "o", "c") if groups == 1 else ("(g c!)", "(g o)", "c!")
    bias = f", {out}" if c.operand(2) is not None else ""
    sizes = {} if groups == 1 else {"g": groups, "c": weight[1], "o": weight[0] // groups}
    x, k, y = (_row(letter, window) for letter in "xky")
    return make(f"b {channels} {x}, {out} {kernel} {k}{bias} -> b {out} {y}", sizes)


def conv_transpose(c: Context) -> Rule | None:
    """`b c+ x!, c o k! -> b o y!`; with groups `b (g c!) x!, (g c!) o k! -> b (g o) y!`."""
    weight = c.dims(1)
    window, groups = len(weight) - 2, c.attribute("group", 1)
    inner = divide(weight[0], groups)
    if inner is None:
        return None
    channels, out = ("c+", "o") if groups == 1 else ("(g c!)", "(g o)")
    bias = f", {out}" if c.operand(2) is not None else ""
    sizes = {} if groups == 1 else {"g": groups, "c": inner, "o": weight[1]}
    x, k, y = (_row(letter, window) for letter in "xky")
    return make(f"b {channels} {x}, {channels} o {k}{bias} -> b {out} {y}", sizes)


def deform_conv(c: Context) -> Rule | None:
    """`b c+ x!, o c k!, b f! y!, o, b m! y! -> b o y`, with one group of each kind."""
    if c.attribute("group", 1) != 1 or c.attribute("offset_group", 1) != 1:
        return None
    window = len(c.dims(1)) - 2
    x, k, y = (_row(letter, window) for letter in "xky")
    bias = "o" if c.operand(3) is not None else "-"
    mask = f", b m! {y}" if c.operand(4) is not None else ""
    return make(f"b c+ {x}, o c {k}, b f! {y}, {bias}{mask} -> b o {y}")


# --- pooling and normalisation by channel ---------------------------------------------------------


def pool(c: Context) -> Rule | None:
    """`b c x! -> b c y!`; flat indices of the maxima count all channels, so these stay whole."""
    outputs = c.node.outputs
    if len(outputs) > 1 and (outputs[1].uses() or outputs[1].is_graph_output()):
        return None
    window = len(c.dims(0)) - 2
    return make(f"b c {_row('x', window)} -> b c {_row('y', window)}")


def global_pool(c: Context) -> Rule:
    """`b c x! -> b c 1`."""
    window = len(c.dims(0)) - 2
    return make(f"b c {_row('x', window)} -> b c {'1 ' * window}")


def batch_norm(c: Context) -> Rule | None:
    """`b c x, c, c, c, c -> b c x`: known statistics, so every element is by itself."""
    rank = len(c.dims(0))
    trains = c.attribute("training_mode", 0) or not c.attribute("spatial", 1)
    if rank < 2 or trains or any(out.uses() for out in c.node.outputs[1:]):
        return None
    labels = ["b", "c", *names(rank - 2, "x")]
    return make(f"{' '.join(labels)}, c, c, c, c -> {' '.join(labels)}")


def instance_norm(c: Context) -> Rule:
    """`b c x!, c, c -> b c x`."""
    window = len(c.dims(0)) - 2
    return make(f"b c {_row('x', window)}, c, c -> b c {_row('x', window, '')}")


def group_norm(c: Context) -> Rule | None:
    """`b (g c!) x!, (g c), (g c) -> b (g c) x`: whole groups; before opset 21 deprecated."""
    dims, groups = c.dims(0), c.attribute("num_groups")
    inner = divide(dims[1], groups)
    if inner is None or c.opset < OPSET_OF_SCALE_PER_CHANNEL:
        return None
    window = len(dims) - 2
    x, y = _row("x", window), _row("x", window, "")
    return make(f"b (g c!) {x}, (g c), (g c) -> b (g c) {y}", {"g": groups, "c": inner})


def across_channels(c: Context) -> Rule:
    """`b c! x -> b c x`."""
    labels = names(len(c.dims(0)))
    return make(f"{' '.join(mark(labels, [1], '!'))} -> {' '.join(labels)}")


# --- images ---------------------------------------------------------------------------------------


def _all_but(c: Context, changed: set[int], rest: str) -> Rule:
    """Dims that do not change pass, the others are whole."""
    labels = names(len(c.dims(0)))
    out = [f"y{i}!" if i in changed else name for i, name in enumerate(labels)]
    return make(f"{' '.join(mark(labels, sorted(changed), '!'))}{rest} -> {' '.join(out)}")


def _others(c: Context) -> str:
    return "".join(", -" if value is None else ", *" for value in c.node.inputs[1:])


def _numbers(c: Context, index: int) -> np.ndarray | None:
    """Contents of a constant operand of floats, None where it is absent or not constant."""
    value = c.operand(index)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def resize(c: Context) -> Rule | None:
    """`b c x! -> b c y!`: dims of scale one pass, those that are resized stay whole."""
    rank = len(c.dims(0))
    cropped = c.attribute("coordinate_transformation_mode") == "tf_crop_and_resize"
    if cropped or c.opset < OPSET_OF_RESIZE_SIZES:
        return None
    axes = c.attribute("axes")
    if axes is not None:
        return _all_but(c, {axis % rank for axis in axes}, _others(c))
    if c.operand(3) is not None:
        return _all_but(c, _resized(c), _others(c))
    scales = _numbers(c, 2)
    if scales is None or scales.size != rank:
        return None
    return _all_but(c, {i for i, scale in enumerate(scales) if scale != 1}, _others(c))


def _resized(c: Context) -> set[int]:
    """Dims whose wanted size is not the size they have."""
    dims, sizes = c.dims(0), list(c.contents(3).flat)
    if c.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        return set(range(len(dims)))
    return {i for i, (have, want) in enumerate(zip(dims, sizes, strict=True)) if have != want}


def upsample(c: Context) -> Rule | None:
    """`b c x! -> b c y!`: Resize of opsets 7 to 9."""
    scales = c.attribute("scales")
    scales = _numbers(c, 1) if scales is None else scales
    if scales is None or len(scales) != len(c.dims(0)):
        return None
    return _all_but(c, {i for i, scale in enumerate(scales) if scale != 1}, _others(c))


def pad(c: Context) -> Rule:
    """`d0 d1! -> d0 y1!`: dims without padding pass."""
    rank = len(c.dims(0))
    pads = c.attribute("pads")
    pads = list(c.contents(1).flat) if pads is None else list(pads)
    axes = range(rank) if c.operand(3) is None else [int(a) % rank for a in c.contents(3).flat]
    half = len(pads) // 2
    changed = {axis for i, axis in enumerate(axes) if pads[i] != 0 or pads[half + i] != 0}
    return _all_but(c, changed, _others(c))


def center_crop_pad(c: Context) -> Rule:
    """`d0 d1! -> d0 y1!`: dims that are neither cropped nor padded pass."""
    rank = len(c.dims(0))
    axes = c.attribute("axes", range(rank))
    return _all_but(c, {axis % rank for axis in axes}, _others(c))


def depth_to_space(c: Context) -> Rule | None:
    """`b (p! q! c) h w -> b c (h p) (w q)`, or `b (c p! q!) h w` in mode CRD."""
    block, (_, channels, height, width) = c.attribute("blocksize"), c.dims(0)
    inner = divide(channels, block * block)
    if inner is None:
        return None
    sizes: dict[str, Dim] = {"p": block, "q": block, "c": inner, "h": height, "w": width}
    deep = "c p! q!" if c.attribute("mode", "DCR") == "CRD" else "p! q! c"
    return make(f"b ({deep}) h w -> b c (h p) (w q)", sizes)


def space_to_depth(c: Context) -> Rule | None:
    """`b c (h p!) (w q!) -> b (p q c) h w`."""
    block, (_, channels, height, width) = c.attribute("blocksize"), c.dims(0)
    rows, columns = divide(height, block), divide(width, block)
    if rows is None or columns is None:
        return None
    sizes: dict[str, Dim] = {"p": block, "q": block, "c": channels, "h": rows, "w": columns}
    return make("b c (h p!) (w q!) -> b (p q c) h w", sizes)


def flatten(c: Context) -> Rule:
    """`d0 d1 d2 -> d0 (d1 d2)`."""
    dims = c.dims(0)
    axis = c.attribute("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    sizes: dict[str, Dim] = {f"d{i}": size for i, size in enumerate(dims) if size != 1}
    parts = [[f"d{i}"] if size != 1 else [] for i, size in enumerate(dims)]
    joined = [[f for part in half for f in part] for half in (parts[:axis], parts[axis:])]
    return make(f"{compound(parts)} -> {compound(joined)}", sizes)


def grid_sample(c: Context) -> Rule:
    """`b c x!, b y n! -> b c y`: the places that are looked up pass."""
    window = len(c.dims(0)) - 2
    y = _row("y", window, "")
    return make(f"b c {_row('x', window)}, b {y} n! -> b c {y}")


def roi_align(c: Context) -> Rule:
    """`b! c x! y!, r n!, r -> r c v! w!`."""
    return make("b! c x! y!, r n!, r -> r c v! w!")


def col2im(c: Context) -> Rule | None:
    """`b (c k!) l!, *, * -> b c y!`."""
    block = [int(size) for size in c.contents(2).flat]
    dims: Dims = c.dims(0)
    kernel = math.prod(block)
    channels = divide(dims[1], kernel)
    if channels is None:
        return None
    sizes: dict[str, Dim] = {"c": channels, "k": kernel}
    return make(f"b (c k!) l!, *, * -> b c {_row('y', len(block))}", sizes)


CONV_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "Conv"): OpSpec(conv, linear=((0,), (1,)), addends=(2,), attributes={"group": "g"}),
    ("", "ConvTranspose"): OpSpec(
        conv_transpose, linear=((0,), (1,)), addends=(2,), attributes={"group": "g"}
    ),
    ("", "DeformConv"): OpSpec(deform_conv, linear=((0,), (1,), (4,)), addends=(3,)),
    ("", "MaxPool"): OpSpec(pool),
    ("", "AveragePool"): OpSpec(pool, linear=((0,),)),
    ("", "LpPool"): OpSpec(pool),
    ("", "GlobalMaxPool"): OpSpec(global_pool),
    ("", "GlobalAveragePool"): OpSpec(global_pool, linear=((0,),)),
    ("", "GlobalLpPool"): OpSpec(global_pool),
    ("", "BatchNormalization"): OpSpec(batch_norm, linear=((0, 2, 3),)),
    ("", "InstanceNormalization"): OpSpec(instance_norm),
    ("", "GroupNormalization"): OpSpec(group_norm, attributes={"num_groups": "g"}),
    ("", "LRN"): OpSpec(across_channels),
    ("", "Resize"): OpSpec(
        resize, linear=((0,),), localize=partial(localizers.shape_operand, index=3)
    ),
    ("", "Upsample"): OpSpec(upsample, linear=((0,),)),
    ("", "Pad"): OpSpec(pad),
    ("", "CenterCropPad"): OpSpec(center_crop_pad, linear=((0,),)),
    ("", "DepthToSpace"): OpSpec(depth_to_space, linear=((0,),)),
    ("", "SpaceToDepth"): OpSpec(space_to_depth, linear=((0,),)),
    ("", "Flatten"): OpSpec(flatten, linear=((0,),)),
    ("", "GridSample"): OpSpec(grid_sample, linear=((0,),)),
    ("", "RoiAlign"): OpSpec(roi_align),
    ("", "Col2Im"): OpSpec(col2im, linear=((0,),)),
}
