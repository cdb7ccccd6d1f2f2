"""Mixture of experts and recurrent mixers: split inside every expert, by channel, or by head.

Experts are not dealt out to ranks: the op itself picks the best `k` of the experts whose weights it
is given, so a rank with some of them would pick `k` of these for every token. Inside an expert the
split is the one of any feed-forward pair, and the router runs on every rank.
"""

from __future__ import annotations

import math

from graph.dims import Dim, divide
from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.spec import OpSpec, make

INTERLEAVED, SEGMENTS = 1, 2
"""Values of `swiglu_fusion`: gate and up feature by feature, or one after the other."""


def _tokens(c: Context) -> tuple[str, str, str, dict[str, Dim]]:
    """Texts of input, router and output; a 3-D input has its tokens counted row by row."""
    dims = c.dims(0)
    if len(dims) == 2:
        return "t c!", "t e!", "t o", {}
    return "b t c!", "(b t) e!", "b t o", {"b": dims[0], "t": dims[1]}


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
    """`t c!, t e!, e (i+ pair!) c, e (i pair), e o i, e o -> t o`."""
    tokens, router, result, sizes = _tokens(c)
    inner = c.dims(4)[2]
    features = _packed(c, "i")
    texts = [tokens, router, f"e {features} c", f"e {features}", "e o i+", "e o"]
    texts += ["e i c", "e i"]
    return _joined(c, texts, result, {**sizes, "i": inner, "pair": 2})


def quantised_moe(c: Context) -> Rule | None:
    """`t c!, t e!, e (n+ k! pair!) p!, e (n k pair) q!, …, e o (n u!), e o (n v!) -> t o`.

    Like MoE, but split between whole blocks of one scale.
    """
    if c.attribute("quant_type", "int") != "int" or _has_more_than_int_operands(c):
        return None
    if c.attribute("weights_prepacked", -1) == 1:
        return None
    bits = c.attribute("fc2_expert_weight_bits") or c.attribute("expert_weight_bits", 4)
    stored = c.dims(5)[2]
    inner = divide(stored * 8, bits)
    unit = _unit(c, bits)
    blocks = None if inner is None else divide(inner, unit)
    if blocks is None or unit * bits % 8 or not isinstance(inner, int):
        return None
    tokens, router, result, sizes = _tokens(c)
    made: dict[str, Dim] = {"n": blocks, "k": unit, "pair": 2, "u": unit * bits // 8}
    features = _packed(c, "n k!")
    block = c.attribute("block_size", 0)
    if block:
        made |= {"v": unit // block, "w": max(unit // block * bits // 8, 1)}
    first = [tokens, router, f"e {features} p!"]
    scale = f"e {features} q!" if block else f"e {features}"
    second = ["e o (n+ u!)", "e o (n v!)" if block else "e o", "e o"]
    third = ["e (n k) p", "e (n k) q" if block else "e (n k)", "e (n k)"]
    points = _zero_points(c, features, block)
    texts = [*first, scale, f"e {features}", *second, *third, *points, router]
    return None if "" in points else _joined(c, texts, result, {**sizes, **made})


def _has_more_than_int_operands(c: Context) -> bool:
    return any(c.operand(i) is not None for i in range(15, 21))


def _unit(c: Context, bits: int) -> int:
    """Inner features that stay together: whole bytes, whole blocks, whole bytes of zero points."""
    bytewise = 8 // math.gcd(8, bits)
    block = c.attribute("block_size", 0)
    if not block:
        return bytewise
    return math.lcm(bytewise, block * (bytewise if c.operand(12) is not None else 1))


def _zero_points(c: Context, features: str, block: int) -> list[str]:
    """Texts of the zero points of fc1, fc2, fc3; '' where their packing is not followed."""
    if not block:
        return ["" if c.operand(i) is not None else "-" for i in (11, 12, 13)]
    return [f"e {features} r!", "e o (n w!)", "e (n k) r"]


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
    ("com.microsoft", "MoE"): OpSpec(moe, addends=(5,)),
    ("com.microsoft", "QMoE"): OpSpec(quantised_moe, addends=(7,)),
    ("com.microsoft", "CausalConvWithState"): OpSpec(causal_conv, states=((3, 1),)),
    ("com.microsoft", "LinearAttention"): OpSpec(
        linear_attention,
        attributes={"q_num_heads": "h g", "kv_num_heads": "h n"},
        states=((3, 1),),
    ),
}
