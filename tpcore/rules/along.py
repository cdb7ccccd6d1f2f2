"""Ops that work along one axis or look elements up: that axis stays whole, the others pass."""

from __future__ import annotations

import re
from collections.abc import Collection

from graph.dims import Dims
from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.elementwise import elementwise
from tpcore.rules.norm import softmax
from tpcore.rules.spec import ALL, OpSpec, make, mark, names, ones_as_1

OPSET_OF_DFT_AXIS_OPERAND = 20


def _others(c: Context) -> str:
    return "".join(", -" if value is None else ", *" for value in c.node.inputs[1:])


def _keeps_shape(c: Context, whole: Collection[int]) -> Rule:
    """`d0 d1! -> d0 d1`."""
    labels = names(len(c.dims(0)))
    return make(f"{' '.join(mark(labels, sorted(whole), '!'))}{_others(c)} -> {' '.join(labels)}")


def _axis(c: Context, default: int, rank: int) -> int:
    return int(c.attribute("axis", default)) % rank


# --- one axis is whole ----------------------------------------------------------------------------


def arg_reduce(c: Context) -> Rule:
    """`d0 d1! -> d0 1`: where the largest or smallest element is."""
    labels = names(len(c.dims(0)))
    axis = _axis(c, 0, len(labels))
    out = ["1" if i == axis else name for i, name in enumerate(labels)]
    if not c.attribute("keepdims", 1):
        del out[axis]
    return make(f"{' '.join(mark(labels, [axis], '!'))} -> {' '.join(out)}")


def top_k(c: Context) -> Rule:
    """`d0 d1! -> d0 k!, d0 k`."""
    labels = names(len(c.dims(0)))
    axis = _axis(c, -1, len(labels))
    out = " ".join("k!" if i == axis else name for i, name in enumerate(labels))
    return make(f"{' '.join(mark(labels, [axis], '!'))}{_others(c)} -> {out}, {out}")


def cumulative(c: Context) -> Rule:
    """`d0 d1!, * -> d0 d1`; the axis is an operand."""
    rank = len(c.dims(0))
    return _keeps_shape(c, {int(c.contents(1).flat[0]) % rank})


def lp_normalization(c: Context) -> Rule:
    """`d0 d1! -> d0 d1`."""
    rank = len(c.dims(0))
    return _keeps_shape(c, {_axis(c, -1, rank)})


def mean_variance_normalization(c: Context) -> Rule:
    """`d0! d1 d2! d3! -> d0 d1 d2 d3`: a mean over batch and window, by channel."""
    rank = len(c.dims(0))
    return _keeps_shape(c, {axis % rank for axis in c.attribute("axes", [0, 2, 3])})


def one_hot(c: Context) -> Rule:
    """`i0 i1, *, * -> i0 i1 o!`."""
    labels = names(len(c.dims(0)), "i")
    axis = _axis(c, -1, len(labels) + 1)
    out = [*labels[:axis], "o!", *labels[axis:]]
    return make(f"{' '.join(labels)}{_others(c)} -> {' '.join(out)}")


def compress(c: Context) -> Rule:
    """`d0 d1!, * -> d0 o!`; without an axis the operand is taken as flat."""
    labels = names(len(c.dims(0)))
    if "axis" not in c.node.attributes:
        return make(f"{' '.join(mark(labels, range(len(labels)), '!'))}, * -> o!")
    axis = _axis(c, 0, len(labels))
    out = " ".join("o!" if i == axis else name for i, name in enumerate(labels))
    return make(f"{' '.join(mark(labels, [axis], '!'))}, * -> {out}")


def trilu(c: Context) -> Rule:
    """`d0 d1! d2!, * -> d0 d1 d2`: matrices stay whole."""
    rank = len(c.dims(0))
    return _keeps_shape(c, {rank - 2, rank - 1})


def det(c: Context) -> Rule:
    """`d0 m! n! -> d0`."""
    labels = names(len(c.dims(0)) - 2)
    return make(f"{' '.join(labels)} m! n! -> {' '.join(labels)}")


def reverse_sequence(c: Context) -> Rule | None:
    """`t! b d2, b -> t b d2`."""
    labels = names(len(c.dims(0)))
    time, batch = c.attribute("time_axis", 0), c.attribute("batch_axis", 1)
    marked = " ".join(mark(labels, [time], "!"))
    return make(f"{marked}, {labels[batch]} -> {' '.join(labels)}")


def tile(c: Context) -> Rule:
    """`d0 d1, * -> d0 (r1! d1)`: copies of the part are the part of the copies."""
    dims, repeats = c.dims(0), list(c.contents(1).flat)
    labels = names(len(dims))
    out = []
    for i, (name, size, repeat) in enumerate(zip(labels, dims, repeats, strict=True)):
        inner = "" if size == 1 else name
        out.append(inner or "1" if repeat == 1 else f"(r{i}! {inner})")
    sizes = {f"r{i}": repeat for i, repeat in enumerate(repeats) if repeat != 1}
    return make(f"{ones_as_1(labels, dims)}, * -> {' '.join(out)}", sizes)


# --- lookups and scatters -------------------------------------------------------------------------


def _aligned(data: Dims, others: list[Dims], axis: int) -> tuple[str, list[str], list[str]]:
    """Texts of the data, of operands of like rank, and names of the latter's dims.

    A dim passes where all have the same size: element i of one goes with element i of the other.
    """
    rank = len(data)
    passes = {i for i in range(rank) if i != axis and all(o[i] == data[i] for o in others)}
    left = mark(names(rank), sorted(set(range(rank)) - passes), "!")
    right = [f"d{i}" if i in passes else f"i{i}" for i in range(rank)]
    marked = [name if i in passes else name + "!" for i, name in enumerate(right)]
    return " ".join(left), marked, right


def gather_elements(c: Context) -> Rule:
    """`d0 d1!, d0 i1 -> d0 i1`: along the axis every place is looked up by itself."""
    data, axis = c.dims(0), _axis(c, 0, len(c.dims(0)))
    left, marked, right = _aligned(data, [c.dims(1)], axis)
    marked[axis] = right[axis]
    return make(f"{left}, {' '.join(marked)} -> {' '.join(right)}")


def scatter_elements(c: Context) -> Rule:
    """`d0 d1!, d0 i1!, d0 i1 -> d0 d1`."""
    data, axis = c.dims(0), _axis(c, 0, len(c.dims(0)))
    left, marked, _ = _aligned(data, [c.dims(1), c.dims(2)], axis)
    places = " ".join(marked)
    return make(f"{left}, {places}, {places} -> {' '.join(names(len(data)))}")


def gather_nd(c: Context) -> Rule | None:
    """`b d1! d2, b i0 k! -> b i0 d2`."""
    data, index, batch = c.dims(0), c.dims(1), c.attribute("batch_dims", 0)
    depth = index[-1]
    if not isinstance(depth, int):
        return None
    labels = names(len(data))
    places = [*labels[:batch], *names(len(index) - 1 - batch, "i")]
    left = mark(labels, range(batch, batch + depth), "!")
    out = [*places, *labels[batch + depth :]]
    return make(f"{' '.join(left)}, {' '.join(places)} k! -> {' '.join(out)}")


def scatter_nd(c: Context) -> Rule | None:
    """`d0! d1, i0! k!, i0 d1 -> d0 d1`."""
    data, index = c.dims(0), c.dims(1)
    depth = index[-1]
    if not isinstance(depth, int):
        return None
    labels, places = names(len(data)), names(len(index) - 1, "i")
    left = mark(labels, range(depth), "!")
    marked = " ".join(mark(places, range(len(places)), "!"))
    updates = " ".join([*places, *labels[depth:]])
    return make(f"{' '.join(left)}, {marked} k!, {updates} -> {' '.join(labels)}")


def tensor_scatter(c: Context) -> Rule:
    """`b h p! e, b h s! e, b -> b h p e`: new keys or values written into a cache."""
    rank = len(c.dims(0))
    labels = names(rank)
    axis = _axis(c, -2, rank)
    cache = " ".join(mark(labels, [axis], "!"))
    update = " ".join("s!" if i == axis else name for i, name in enumerate(labels))
    rest = ", d0" if c.operand(2) is not None else ""
    return make(f"{cache}, {update}{rest} -> {' '.join(labels)}")


# --- signals and recurrence -----------------------------------------------------------------------


def dft(c: Context) -> Rule:
    """`d0 x! r! -> d0 y! c!`: real or complex numbers are the last dim."""
    rank = len(c.dims(0))
    axis = c.attribute("axis", 1) % rank
    if c.opset >= OPSET_OF_DFT_AXIS_OPERAND:
        axis = -2 % rank if c.operand(2) is None else int(c.contents(2).flat[0]) % rank
    labels = names(rank)
    changed = {axis, rank - 1}
    out = [f"y{i}!" if i in changed else name for i, name in enumerate(labels)]
    return make(f"{' '.join(mark(labels, sorted(changed), '!'))}{_others(c)} -> {' '.join(out)}")


def stft(c: Context) -> Rule:
    """`b x! r!, *, *, * -> b f! y! c!`."""
    signal = "b x! r!" if len(c.dims(0)) == 3 else "b x!"
    return make(f"{signal}{_others(c)} -> b f! y! c!")


# --- any tensors ----------------------------------------------------------------------------------


def like_first(c: Context) -> Rule:
    """`d0 d1, * -> d0 d1`: of the other operands only the type, or a scalar, is read."""
    return _keeps_shape(c, ())


def dropout(c: Context) -> Rule | None:
    """`d0 d1, *, * -> d0 d1, d0 d1`: outside of training nothing is dropped."""
    mode = c.operand(2)
    if mode is not None and (mode.const_value is None or mode.const_value.numpy().any()):
        return None
    labels = " ".join(names(len(c.dims(0))))
    return make(f"{labels}{_others(c)} -> {', '.join([labels] * len(c.node.outputs))}")


def einsum(c: Context) -> Rule:
    """`bij,bjk->bik` is `b i j+, b j k -> b i k`; with a diagonal or `...` all dims stay whole."""
    equation = c.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if "." in equation or any(len(set(text)) != len(text) for text in operands):
        return _all_whole(c)
    if not arrow:
        right = "".join(sorted(x for x in set(left) - {","} if left.count(x) == 1))
    wide = {x for i, text in enumerate(operands) for x, size in zip(text, c.dims(i)) if size != 1}
    texts = []
    for i, text in enumerate(operands):
        labels = [name if name in right else name + "+" for name in text]
        texts.append(ones_as_1(labels, c.dims(i)))
    return make(f"{', '.join(texts)} -> {' '.join(x if x in wide else '1' for x in right)}")


def _all_whole(c: Context) -> Rule:
    tensors = [c.dims(i) for i in range(len(c.node.inputs))]
    texts = [" ".join(names(len(dims), f"x{i}_")) for i, dims in enumerate(tensors)]
    texts = [re.sub(r"(\w+)", r"\1!", text) for text in texts]
    out = re.sub(r"(\w+)", r"\1!", " ".join(names(len(c.shapes.dims[c.node.outputs[0]]), "y")))
    return make(f"{', '.join(texts)} -> {out}")


ALONG_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "ArgMax"): OpSpec(arg_reduce),
    ("", "ArgMin"): OpSpec(arg_reduce),
    ("", "TopK"): OpSpec(top_k),
    ("", "CumSum"): OpSpec(cumulative, linear=((0,),)),
    ("", "CumProd"): OpSpec(cumulative),
    ("", "Hardmax"): OpSpec(softmax),
    ("", "LpNormalization"): OpSpec(lp_normalization),
    ("", "MeanVarianceNormalization"): OpSpec(mean_variance_normalization),
    ("", "OneHot"): OpSpec(one_hot),
    ("", "Compress"): OpSpec(compress, linear=((0,),)),
    ("", "Trilu"): OpSpec(trilu, linear=((0,),)),
    ("", "Det"): OpSpec(det),
    ("", "ReverseSequence"): OpSpec(reverse_sequence, linear=((0,),)),
    ("", "Tile"): OpSpec(tile, linear=((0,),)),
    ("", "GatherElements"): OpSpec(gather_elements, linear=((0,),)),
    ("", "GatherND"): OpSpec(gather_nd, linear=((0,),)),
    ("", "Scatter"): OpSpec(scatter_elements),
    ("", "ScatterElements"): OpSpec(scatter_elements),
    ("", "ScatterND"): OpSpec(scatter_nd),
    ("", "TensorScatter"): OpSpec(tensor_scatter, linear=((0, 1),), states=((0, 0),)),
    ("", "DFT"): OpSpec(dft, linear=((0,),)),
    ("", "STFT"): OpSpec(stft, linear=((0,),)),
    ("", "Dropout"): OpSpec(dropout),
    ("", "CastLike"): OpSpec(like_first),
    ("", "BitCast"): OpSpec(like_first),
    ("", "Mean"): OpSpec(elementwise, linear=(ALL,)),
    ("", "Einsum"): OpSpec(einsum, linear=((0,), (1,), (2,))),
}
