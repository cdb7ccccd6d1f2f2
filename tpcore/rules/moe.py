"""Mixture of experts and recurrent mixers: split by expert or inside it, by channel, or by head.

The router is whole on every rank. Inside an expert the split is the one of any feed-forward pair:
every rank does an equal share of the work. Dealt out to ranks, experts bring as much work as the
tokens happen to choose; they can be dealt out where what is inside cannot be cut, between blocks
of one scale say. Each split ends in a sum over the ranks. What a rank with some of the experts
runs is in `tpcore.rules.routing`; the sparse mixer, which weighs two experts by other sums than a
softmax over all or the chosen ones, has its experts on all ranks.
"""

from __future__ import annotations

import math
from dataclasses import replace

from graph.dims import Dim, divide
from graph.shapes import Context
from graph.zero_points import is_counted
from tpcore.rule import Draws, Rule
from tpcore.rules.routing import local_experts
from tpcore.rules.spec import OpSpec, RuleMaker, make

INTERLEAVED, SEGMENTS = 1, 2
"""Values of `swiglu_fusion`: gate and up feature by feature, or one after the other."""


def _tokens(c: Context) -> tuple[str, str, str, dict[str, Dim]]:
    """Texts of input, router and output; a 3-D input has its tokens counted row by row."""
    dims = c.dims(0)
    if len(dims) == 2:
        return "t c!", "t r!", "t o!", {}
    return "b t c!", "(b t) r!", "b t o!", {"b": dims[0], "t": dims[1]}


def _expert(c: Context) -> str:
    """The factor of experts."""
    return "e!" if c.attribute("use_sparse_mixer", 0) else "e+"


def _drawing(c: Context, rule: Rule, inner: Dim) -> Rule:
    """Every token draws `k` experts of two or three matrices."""
    count, matrices = c.dims(1)[0] * c.attribute("k", 1), 2
    if c.attribute("swiglu_fusion", 0) or c.operand(6 if c.node.op_type == "MoE" else 8):
        matrices = 3
    return replace(rule, draws=Draws("e", count, count * matrices * inner * c.dims(0)[-1]))


def _packed(c: Context, inner: str) -> str:
    """Text of the features that fc1 makes, of which `inner` are one expert's inner features."""
    fusion = c.attribute("swiglu_fusion", 0)
    if c.attribute("activation_type", "relu") not in ("swiglu", "geglu") or not fusion:
        return f"({inner})"
    return f"({inner} pair!)" if fusion == INTERLEAVED else f"({inner}|{inner})"


def _joined(c: Context, texts: list[str], result: str, sizes: dict[str, Dim]) -> Rule:
    given = [t if c.operand(i) is not None else "-" for i, t in enumerate(texts)]
    return make(f"{', '.join(given[: len(c.node.inputs)])} -> {result}", sizes)


def moe(c: Context) -> Rule | None:
    """`t c!, t r!, e+ (i+ pair!) c, e (i pair), e o! i, e o -> t o`."""
    if c.dims(2)[2] != c.dims(0)[-1]:
        return None  # an older layout, with the contraction first
    tokens, router, result, sizes = _tokens(c)
    inner, e = c.dims(4)[2], _expert(c)
    features = _packed(c, "i")
    texts = [tokens, router, f"{e} {features} c", f"e {features}", "e o i+", "e o"]
    texts += ["e i c", "e i"]
    return _drawing(c, _joined(c, texts, result, {**sizes, "i": inner, "pair": 2}), inner)


def quantised_moe(c: Context) -> Rule | None:
    """`t c!, t r!, e+ (n+ k! pair!) p!, e (n k pair) q!, …, e o! (n u!), e o (n v!) -> t o`.

    Like MoE, but inside an expert split between whole blocks of one scale.
    """
    if c.attribute("quant_type", "int") != "int" or _has_more_than_int_operands(c):
        return None
    if c.attribute("weights_prepacked", -1) == 1:
        return None
    tokens, router, result, sizes = _tokens(c)
    inner, e, block = _blocks(c), _expert(c), c.attribute("block_size", 0)
    features, third = ("f!", "g!") if inner is None else (_packed(c, "n k!"), "(n k)")
    n = "" if inner is None else "n+"
    texts = [tokens, router, f"{e} {features} p!"]
    texts += [f"e {features} q!" if block else f"e {features}", f"e {features}"]
    texts += [f"e o ({n} u!)", f"e o ({n} v!)" if block else "e o", "e o"]
    texts += [f"e {third} p", f"e {third} q" if block else f"e {third}", f"e {third}"]
    points = [f"e {features} x!", f"e o ({n} w!)", f"e {third} x"]
    texts += points if block else ["e x!", "e w!", "e y!"]  # those of rows lie several to a byte
    rule = _joined(c, [*texts, router], result, {**sizes, **(inner or {}), "pair": 2})
    return _drawing(c, rule, _inner(c))


def _blocks(c: Context) -> dict[str, Dim] | None:
    """Sizes of the factors inside an expert, None where it cannot be cut."""
    bits, block, inner = _bits(c), c.attribute("block_size", 0), _inner(c)
    unit = _unit(c, bits)
    blocks = divide(inner, unit)
    has_row_points = not block and any(c.operand(i) is not None for i in (11, 12, 13))
    if blocks is None or has_row_points or unit * bits % 8 or not isinstance(inner, int):
        return None
    sizes: dict[str, Dim] = {"n": blocks, "k": unit, "u": unit * bits // 8}
    if block:
        points = unit // block if is_counted(c.operand(12)) else unit // block * bits // 8
        sizes |= {"v": unit // block, "w": max(points, 1)}
    return sizes


def _bits(c: Context) -> int:
    return int(c.attribute("fc2_expert_weight_bits") or c.attribute("expert_weight_bits", 4))


def _inner(c: Context) -> Dim:
    """Features inside an expert: those that a row of fc2 is stored for, without its padding."""
    inner = divide(c.dims(5)[2] * 8, _bits(c))
    return c.dims(5)[2] if inner is None else inner


def _experts(rule: RuleMaker, bias: int) -> OpSpec:
    return OpSpec(rule, addends=(bias,), localize=local_experts, looks_at_results=False)


def _has_more_than_int_operands(c: Context) -> bool:
    return any(c.operand(i) is not None for i in range(15, 21))


def _unit(c: Context, bits: int) -> int:
    """Inner features that stay together: whole bytes, whole blocks, whole bytes of zero points
    where these are computed."""
    bytewise = 8 // math.gcd(8, bits)
    block = c.attribute("block_size", 0)
    if not block:
        return bytewise
    zero = c.operand(12)
    shared = bytewise if zero is not None and not is_counted(zero) else 1
    return math.lcm(bytewise, block * shared)


# --- recurrent mixers -----------------------------------------------------------------------------


def causal_conv(c: Context) -> Rule | None:
    """`b c x!, c 1 k!, c, b c p! -> b c x, b c p`: every channel by itself."""
    special = ("state_update_capacity", "state_length", "input_channels", "input_channel_offset")
    if any(c.attribute(name, 0) for name in special) or c.attribute("state_channels_last", -1) > -1:
        return None
    last, dims = c.attribute("channels_last", 0), c.dims(0)
    window = len(dims) - 2
    if last and window != 1:
        return None
    x = ["x!"] if last else [f"x{i}!" for i in range(window)]
    lead = "w! " if c.attribute("state_window", 0) else ""
    past = [f"p{i}!" for i in range(window)]
    data = f"b {x[0]} c" if last else f"b c {' '.join(x)}"
    state = f"{lead}b {past[0]} c" if last else f"{lead}b c {' '.join(past)}"
    kernel = " ".join(f"k{i}!" for i in range(len(c.dims(1)) - 2))
    results = ", ".join([data, state][: len(c.node.outputs)])
    return _joined(c, [data, f"c 1 {kernel}", "c", state], results, {})


def linear_attention(c: Context) -> Rule | None:
    """`b t! (h g e!), b t (h e), b t (h f!), b h e f -> b t (h g f), b h e f`; or `n` keys each."""
    heads, kv_heads = c.attribute("q_num_heads"), c.attribute("kv_num_heads")
    shared = divide(max(heads, kv_heads), min(heads, kv_heads))
    size, value_size = divide(c.dims(0)[2], heads), divide(c.dims(2)[2], kv_heads)
    if shared is None or size is None or value_size is None:
        return None
    query, keys = ("h g", "h") if heads >= kv_heads else ("h", "h n")
    most = "h g" if heads >= kv_heads else "h n"
    lead = "w! " if c.attribute("state_window", 0) else ""
    state = f"{lead}b ({keys}) e! f!"
    decay = f"({keys} e)" if c.operand(4) is not None and _per_key(c, kv_heads) else f"({keys})"
    one = c.operand(5) is not None and c.dims(5)[2] == 1
    texts = [f"b t! ({query} e!)", f"b t ({keys} e)", f"b t ({keys} f!)", state]
    texts += [f"b t {decay}", "b t 1" if one else f"b t ({keys})"]
    sizes: dict[str, Dim] = {"h": min(heads, kv_heads), "e": size, "f": value_size}
    sizes |= {"g" if heads >= kv_heads else "n": shared}
    results = ", ".join([f"b t ({most} f)", state][: len(c.node.outputs)])
    return _joined(c, texts, results, sizes)


def _per_key(c: Context, kv_heads: int) -> bool:
    return c.dims(4)[2] != kv_heads


MOE_OPS: dict[tuple[str, str], OpSpec] = {
    ("com.microsoft", "MoE"): _experts(moe, bias=5),
    ("com.microsoft", "QMoE"): _experts(quantised_moe, bias=7),
    ("com.microsoft", "CausalConvWithState"): OpSpec(causal_conv, states=((3, 1),)),
    ("com.microsoft", "LinearAttention"): OpSpec(
        linear_attention,
        attributes={"q_num_heads": "h g", "kv_num_heads": "h n"},
        states=((3, 1),),
    ),
}
