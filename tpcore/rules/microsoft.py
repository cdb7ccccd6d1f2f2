"""ONNX Runtime's own ops, as its optimizer and its exporters write them, but attention's heads.

`(d|d)` is a packed pair: both halves are split alike.
"""

from __future__ import annotations

import onnx_ir as ir

from graph.contrib_shapes import matmul_operand
from graph.dims import Dim, divide
from graph.shape_rules import broadcast
from graph.shapes import Context
from tpcore.localizers import LocalNode
from tpcore.rule import Rule
from tpcore.rules.along import trilu
from tpcore.rules.elementwise import elementwise
from tpcore.rules.spec import OpSpec, broadcast_text, make, mark, names, ones_as_1

# --- contractions ---------------------------------------------------------------------------------


def fused_matmul(c: Context) -> Rule:
    """`b m k+, b k n -> b m n`, either operand transposed: `b k+ m, …`."""
    a = matmul_operand(c, 0, list(c.dims(0)))
    b = matmul_operand(c, 1, list(c.dims(1)))
    batch = broadcast([tuple(a[:-2]), tuple(b[:-2])])
    labels = names(len(batch), "b")
    left = [*broadcast_text(labels, tuple(a[:-2])).split(), *["m", "k+"][-len(a) :]]
    right = [*broadcast_text(labels, tuple(b[:-2])).split(), *["k", "n"][: len(b)]]
    out = [ones_as_1(labels, batch), "m" if len(a) > 1 else "", "n" if len(b) > 1 else ""]
    texts = [
        " ".join(matmul_operand(c, i, side, back=True)) for i, side in enumerate((left, right))
    ]
    return make(f"{', '.join(texts)} -> {' '.join(out)}")


def fused_gemm(c: Context) -> Rule:
    """`m k!, k n, n -> m n`: an activation follows, so no partial sums."""
    a = "k! m" if c.attribute("transA", 0) else "m k!"
    b = "n k" if c.attribute("transB", 0) else "k n"
    bias = f", {broadcast_text(['m', 'n'], c.dims(2))}" if c.operand(2) is not None else ""
    return make(f"{a}, {b}{bias} -> m n")


def gemm_fast_gelu(c: Context) -> Rule:
    """`d0 k!, k n, n -> d0 n`."""
    labels = " ".join(names(len(c.dims(0)) - 1))
    bias = ", n" if c.operand(2) is not None else ""
    return make(f"{labels} k!, k n{bias} -> {labels} n")


# --- attention ------------------------------------------------------------------------------------


def _absent_as_dash(c: Context, texts: list[str]) -> str:
    given = texts[: len(c.node.inputs)]
    return ", ".join(t if c.operand(i) is not None else "-" for i, t in enumerate(given))


def _score_bias(c: Context, index: int, query: str) -> str:
    value = c.operand(index)
    if value is None:
        return "-"
    return broadcast_text(["b", "h", query, "keys!"], c.shapes.dims[value])


def _padding_mask(c: Context, index: int, query: str) -> str | None:
    """Text of a mask by keys, or by queries and keys; None where it counts keys per sequence."""
    if c.operand(index) is None:
        return "-"
    dims = c.dims(index)
    labels = {2: ["b", "keys!"], 3: ["b", query, "keys!"]}.get(len(dims))
    return None if labels is None else ones_as_1(labels, dims)


def multi_head_attention(c: Context) -> Rule | None:
    """`b s (h e!), b t! (h e), b t (h f!), (h e|h e|h f) -> b s (h f), b h t2! e, b h t2 f`."""
    if c.operand(1) is None or c.operand(2) is None or len(c.dims(0)) != 3:
        return None  # packed [b, s, heads, 3, size]: no exporter writes it
    heads, apart = c.attribute("num_heads"), len(c.dims(1)) == 4
    size = divide(c.dims(0)[2], heads)
    value_size = c.dims(2)[3] if apart else divide(c.dims(2)[2], heads)
    query = "s!" if c.attribute("unidirectional", 0) else "s"
    mask = _padding_mask(c, 4, query)
    if size is None or value_size is None or mask is None or len(c.dims(1)) == 5:
        return None
    keys = ["b h t! e", "b h t f!"] if apart else ["b t! (h e)", "b t (h f!)"]
    operands = [f"b {query} (h e!)", *keys, "(h e|h e|h f)", mask, _score_bias(c, 5, query)]
    operands += ["b h p! e", "b h p f", "*", "*"]
    results = ["b s (h f)", "b h t2! e", "b h t2 f", "b h s t2"][: len(c.node.outputs)]
    sizes: dict[str, Dim] = {"h": heads, "e": size, "f": value_size}
    return make(f"{_absent_as_dash(c, operands)} -> {', '.join(results)}", sizes)


def packed_attention(c: Context) -> Rule | None:
    """`b s! c!, c (h e|h e|h f), (h e|h e|h f) -> b s (h f), two! b h t2! e!`: thirds by head."""
    heads, widths = c.attribute("num_heads"), c.attribute("qkv_hidden_sizes")
    third = divide(c.dims(1)[1], 3)
    mask = _padding_mask(c, 3, "s")
    if mask is None or (widths is None and third is None):
        return None
    size, value_size = (divide(w, heads) for w in (widths or [third] * 3)[::2])
    if size is None or value_size is None:
        return None
    thirds = "(h e!|h e|h f!)"
    state = "two! b h {} e"
    operands = ["b s! c!", f"c {thirds}", thirds, mask, state.format("p!"), _score_bias(c, 5, "s")]
    results = ["b s (h f)", state.format("t2!")][: len(c.node.outputs)]
    sizes: dict[str, Dim] = {"h": heads, "e": size, "f": value_size}
    return make(f"{_absent_as_dash(c, [*operands, '*'])} -> {', '.join(results)}", sizes)


def local_hidden_sizes(x: LocalNode) -> None:
    """Scale `qkv_hidden_sizes` to the heads that this rank has."""
    if "qkv_hidden_sizes" not in x.node.attributes:
        return
    heads, local = (n.attributes["num_heads"].as_int() for n in (x.source, x.node))
    widths = [width // heads * local for width in x.source.attributes["qkv_hidden_sizes"].as_ints()]
    x.node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", widths)


# --- normalisation --------------------------------------------------------------------------------


def group_norm(c: Context) -> Rule | None:
    """`b x! y! (g c!), (g c), (g c) -> b x y (g c)`, or channels first; the sum with a skip."""
    groups, last = c.attribute("groups"), c.attribute("channels_last", 1)
    dims = c.dims(0)
    channels = dims[3 if last else 1]
    inner = divide(channels, groups)
    if inner is None or len(dims) != 4:
        return None
    labels = ["b", "x!", "y!", "(g c!)"] if last else ["b", "(g c!)", "x!", "y!"]
    image = " ".join(labels)
    operands = [image, "(g c)", "(g c)"]
    if c.operand(3) is not None:
        skip = c.dims(3)
        short = ["b", "(g c!)"] if len(skip) == 2 else labels
        operands.append(ones_as_1(short, skip))
    operands += ["(g c)"] if c.operand(4) is not None else []
    plain = image.replace("!", "")
    results = ", ".join([plain] * len(c.node.outputs))
    return make(f"{', '.join(operands)} -> {results}", {"g": groups, "c": inner})


def gated_rms_norm(c: Context) -> Rule | None:
    """`b t (h c!), c, b t (h c) -> b t (h c)`: a norm per head."""
    dims, (size,) = c.dims(0), c.dims(1)
    heads = divide(dims[-1], size)
    if heads is None:
        return None
    labels = " ".join(names(len(dims) - 1))
    texts = f"{labels} (h c!), c, {labels} (h c) -> {labels} (h c)"
    return make(texts, {"h": heads, "c": size})


def bias_softmax(c: Context) -> Rule:
    """`d0 d1!, d0 1 -> d0 d1`: softmax over all dims from the axis on, after adding a bias."""
    dims, bias = c.dims(0), c.dims(1)
    rank = len(dims)
    labels = mark(names(rank), range(c.attribute("axis", 1) % rank, rank), "!")
    if len(bias) != rank:
        return make(f"{' '.join(n.rstrip('!') + '!' for n in labels)}, * -> {_plain(labels)}")
    return make(f"{' '.join(labels)}, {ones_as_1(labels, bias)} -> {_plain(labels)}")


def _plain(labels: list[str]) -> str:
    return " ".join(labels).replace("!", "")


# --- activations ----------------------------------------------------------------------------------


def bias_split_gelu(c: Context) -> Rule | None:
    """`b s (d|d), (d|d) -> b s d`: one half gates the other."""
    half = divide(c.dims(0)[-1], 2)
    if not isinstance(half, int):
        return None
    labels = " ".join(names(len(c.dims(0)) - 1, "b"))
    return make(f"{labels} (d|d), (d|d) -> {labels} d", {"d": half})


def swiglu(c: Context) -> Rule | None:
    """`d0 d, d0 d -> d0 d`, or `d0 (d|d) -> d0 d` where gate and up are one operand."""
    if c.operand(1) is not None:
        return elementwise(c)
    half = divide(c.dims(0)[-1], 2)
    if not isinstance(half, int):
        return None
    labels = " ".join(names(len(c.dims(0)) - 1))
    return make(f"{labels} (d|d) -> {labels} d", {"d": half})


def gated_add(c: Context) -> Rule:
    """`b s c, b s c, b s 1 -> b s c`; with a projection the gate is `b s k!, k 1`."""
    labels = names(len(c.dims(0)))
    lead, every = " ".join(labels[:-1]), " ".join(labels)
    gate = f"{lead} k!, k 1" if c.operand(3) is not None else f"{lead} 1"
    return make(f"{every}, {every}, {gate} -> {every}")


MICROSOFT_OPS: dict[tuple[str, str], OpSpec] = {
    ("com.microsoft", op): spec
    for op, spec in {
        "FusedMatMul": OpSpec(fused_matmul, linear=((0,), (1,))),
        "TransposeMatMul": OpSpec(fused_matmul, linear=((0,), (1,))),
        "FusedGemm": OpSpec(fused_gemm),
        "GemmFastGelu": OpSpec(gemm_fast_gelu),
        "MultiHeadAttention": OpSpec(
            multi_head_attention, attributes={"num_heads": "h"}, states=((6, 1), (7, 2))
        ),
        "Attention": OpSpec(
            packed_attention,
            attributes={"num_heads": "h"},
            states=((4, 1),),
            localize=local_hidden_sizes,
        ),
        "GroupNorm": OpSpec(group_norm, attributes={"groups": "g"}),
        "SkipGroupNorm": OpSpec(group_norm, attributes={"groups": "g"}),
        "GatedRMSNorm": OpSpec(gated_rms_norm),
        "BiasSoftmax": OpSpec(bias_softmax),
        "BiasAdd": OpSpec(elementwise, linear=((0, 1, 2),)),
        "BiasSplitGelu": OpSpec(bias_split_gelu),
        "SwiGLU": OpSpec(swiglu),
        "GatedAdd": OpSpec(gated_add, linear=((0, 1),)),
        "Trilu": OpSpec(trilu, linear=((0,),)),
    }.items()
}
