"""Normalisations and reductions: the normalised dims stay whole."""

from __future__ import annotations

from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.spec import OpSpec, axes_of, make, mark, names

SOFTMAX_PER_AXIS = 13
"""From this opset Softmax works along one axis; before, all dims from `axis` on were one."""


def softmax(c: Context) -> Rule:
    """`d0 d1 d2! -> d0 d1 d2`."""
    rank = len(c.dims(0))
    labels = names(rank)
    per_axis = c.opset >= SOFTMAX_PER_AXIS
    axis = c.attribute("axis", -1 if per_axis else 1) % rank
    whole = [axis] if per_axis else list(range(axis, rank))
    return make(f"{' '.join(mark(labels, whole, '!'))} -> {' '.join(labels)}")


def layer_norm(c: Context) -> Rule:
    """`b s h!, h!, h! -> b s h`, and statistics `b s 1`."""
    rank = len(c.dims(0))
    labels = names(rank)
    axis = c.attribute("axis", -1) % rank
    marked = " ".join(mark(labels, range(axis, rank), "!"))
    weights = ", *" * (len(c.node.inputs) - 1)
    statistics = "".join(
        ", " + " ".join([*labels[:axis], *["1"] * (rank - axis)]) for _ in c.node.outputs[1:]
    )
    return make(f"{marked}{weights} -> {' '.join(labels)}{statistics}")


def skip_norm(c: Context) -> Rule:
    """`b s h!, b s h!, * -> b s h, b s 1, b s 1, b s h`: the fourth is the sum of both operands."""
    labels = names(len(c.dims(0)))
    marked, plain = " ".join(mark(labels, [len(labels) - 1], "!")), " ".join(labels)
    weights = ", *" * (len(c.node.inputs) - 2)
    statistics = " ".join([*labels[:-1], "1"])
    results = [plain, statistics, statistics, plain][: len(c.node.outputs)]
    return make(f"{marked}, {marked}{weights} -> {', '.join(results)}")


def _reduce(c: Context, sign: str) -> Rule | None:
    rank = len(c.dims(0))
    labels = names(rank)
    axes = axes_of(c, 1, rank)
    if not axes:
        if c.attribute("noop_with_empty_axes", 0):
            return make(f"{' '.join(labels)}, * -> {' '.join(labels)}")
        axes = list(range(rank))
    kept = ["1" if i in axes else name for i, name in enumerate(labels)]
    if not c.attribute("keepdims", 1):
        kept = [name for i, name in enumerate(labels) if i not in axes]
    rest = ", *" * (len(c.node.inputs) - 1)
    return make(f"{' '.join(mark(labels, axes, sign))}{rest} -> {' '.join(kept)}")


def reduce_sum(c: Context) -> Rule | None:
    """`d0 d1+ -> d0 1`: the whole is the sum of the parts' results."""
    return _reduce(c, "+")


def reduce_whole(c: Context) -> Rule | None:
    """`d0 d1! -> d0 1`."""
    return _reduce(c, "!")


NORM_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "Softmax"): OpSpec(softmax),
    ("", "LogSoftmax"): OpSpec(softmax),
    ("", "LayerNormalization"): OpSpec(layer_norm),
    ("", "RMSNormalization"): OpSpec(layer_norm),
    ("", "SimplifiedLayerNormalization"): OpSpec(layer_norm),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): OpSpec(skip_norm),
    ("com.microsoft", "SkipLayerNormalization"): OpSpec(skip_norm),
    ("", "ReduceSum"): OpSpec(reduce_sum, linear=((0,),)),
    ("", "ReduceMean"): OpSpec(reduce_whole, linear=((0,),)),
    ("", "ReduceL1"): OpSpec(reduce_sum),
    ("", "ReduceSumSquare"): OpSpec(reduce_sum),
    **{
        ("", op): OpSpec(reduce_whole)
        for op in "ReduceMax ReduceMin ReduceProd ReduceL2 ReduceLogSum ReduceLogSumExp".split()
    },
}
