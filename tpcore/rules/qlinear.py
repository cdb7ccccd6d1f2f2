"""Ops on codes: attention, elementwise ops, pooling and joining under scales of their own."""

from __future__ import annotations

from graph.shape_rules import broadcast
from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.spec import OpSpec, RuleMaker, broadcast_text, make, mark, names, ones_as_1

MICROSOFT = "com.microsoft"


def parameter(c: Context, index: int, labels: list[str], vector: str) -> str:
    """Text of a scale or zero point: one, a vector along the dim `vector`, or broadcast."""
    if c.operand(index) is None:
        return "-"
    dims = c.dims(index)
    if all(size == 1 for size in dims):
        return "*"
    if len(dims) == 1:
        return vector
    return broadcast_text([label.strip("+!") for label in labels], dims)


# --- attention ------------------------------------------------------------------------------------


def q_attention(c: Context) -> Rule:
    """`b s! i!, i (h e!|h e|h e), (h e|h e|h e), … -> b s (h e), 2 b h t e`."""
    heads = c.attribute("num_heads")
    packed = "(h e!|h e|h e)"
    batch = "b" if c.operand(5) is None else "b!"  # masks have many forms
    operands = [f"{batch} s! i!", f"i {packed}", packed, "*", parameter(c, 4, [], packed), "*"]
    operands += ["*", parameter(c, 7, [], packed), "two! b h p! e"]
    texts = ["-" if v is None else text for v, text in zip(c.node.inputs, operands, strict=False)]
    results = ["b s (h e)", "two2! b h t! e"][: len(c.node.outputs)]
    size = c.dims(1)[1] // (3 * heads)
    return make(f"{', '.join(texts)} -> {', '.join(results)}", {"h": heads, "e": size})


# --- ops on codes ---------------------------------------------------------------------------------


def codes(*places: int) -> RuleMaker:
    """A rule like an elementwise op's for the operands at `places`; parameters are one each."""

    def rule(c: Context) -> Rule:
        shapes = {index: c.dims(index) for index in places}
        out = broadcast(list(shapes.values()))
        labels = names(len(out))
        texts = [
            broadcast_text(labels, shapes[index]) if index in shapes else "*"
            for index in range(len(c.node.inputs))
        ]
        return make(f"{', '.join(texts)} -> {ones_as_1(labels, out)}")

    return rule


def _along_whole(c: Context, whole: list[int], kept: bool = True) -> Rule:
    labels = names(len(c.dims(0)))
    out = labels if kept else [f"y{i}!" if i in whole else name for i, name in enumerate(labels)]
    others = ", *" * (len(c.node.inputs) - 1)
    return make(f"{' '.join(mark(labels, whole, '!'))}{others} -> {' '.join(out)}")


def qlinear_softmax(c: Context) -> Rule:
    """`d0 d1!, … -> d0 d1`."""
    rank = len(c.dims(0))
    axis = c.attribute("axis", -1) % rank
    return _along_whole(c, [axis] if c.attribute("opset", 13) >= 13 else list(range(axis, rank)))


def qlinear_pool(c: Context) -> Rule:
    """`b c x!, … -> b c y!`."""
    rank = len(c.dims(0))
    last = c.attribute("channels_last", 0)
    return _along_whole(c, list(range(1, rank - 1) if last else range(2, rank)), kept=False)


def qlinear_concat(c: Context) -> Rule:
    """`*, *, d0 x0, *, *, d0 x1, *, * -> d0 (x0|x1)`."""
    operands = [c.dims(i) for i in range(2, len(c.node.inputs), 3)]
    rank = len(operands[0])
    axis = c.attribute("axis") % rank
    extents = [dims[axis] for dims in operands]
    static = all(isinstance(extent, int) for extent in extents)
    parts, texts = names(len(operands), "x"), []
    for part in parts:
        text = names(rank)
        text[axis] = part if static else part + "!"
        texts.append(" ".join(text) + ", *, *")
    out = names(rank)
    out[axis] = f"({'|'.join(parts)})" if static else "joined!"
    sizes = dict(zip(parts, extents, strict=True)) if static else {}
    return make(f"*, *, {', '.join(texts)} -> {' '.join(out)}", sizes)


QLINEAR_OPS: dict[tuple[str, str], OpSpec] = {
    (MICROSOFT, "QAttention"): OpSpec(q_attention, attributes={"num_heads": "h"}, states=((8, 1),)),
    (MICROSOFT, "QLinearAdd"): OpSpec(codes(0, 3)),
    (MICROSOFT, "QLinearMul"): OpSpec(codes(0, 3)),
    (MICROSOFT, "QLinearWhere"): OpSpec(codes(0, 1, 4)),
    (MICROSOFT, "QLinearSigmoid"): OpSpec(codes(0)),
    (MICROSOFT, "QLinearLeakyRelu"): OpSpec(codes(0)),
    (MICROSOFT, "QLinearSoftmax"): OpSpec(qlinear_softmax),
    (MICROSOFT, "QLinearAveragePool"): OpSpec(qlinear_pool),
    (MICROSOFT, "QLinearGlobalAveragePool"): OpSpec(qlinear_pool),
    (MICROSOFT, "QLinearConcat"): OpSpec(qlinear_concat),
}
