"""Fused attention: heads are split, head size and keys stay whole, and queries where causal.

`h` counts key/value heads, `g` the query heads of each, so that grouped queries stay with their
keys.
"""

from __future__ import annotations

from graph.dims import Dim, divide
from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.spec import OpSpec, broadcast_text, make


def group_query_attention(c: Context) -> Rule | None:
    """`b s! (h g e!|h e|h e), b h p! e, b h p e -> b s (h g e), b h t! e, b h t e`, or apart."""
    heads, kv_heads = c.attribute("num_heads"), c.attribute("kv_num_heads")
    packed = c.operand(1) is None
    head_size = divide(c.dims(0)[2], heads + 2 * kv_heads if packed else heads)
    if not isinstance(head_size, int):
        return None
    apart = ["b s! (h g e!)", "b t! (h e)", "b t (h e)"]
    operands = ["b s! (h g e!|h e|h e)", "-", "-"] if packed else apart
    operands += ["b h p! e", "b h p e", "b", "*", "*", "*", "b s", _mask_text(c, 10), "(h g)"]
    results = ["b s (h g e)", "b h t2! e", "b h t2 e"]
    return make(
        _with_absent(c, operands) + " -> " + ", ".join(results[: len(c.node.outputs)]),
        {"h": kv_heads, "g": heads // kv_heads, "e": head_size},
    )


def _mask_text(c: Context, index: int) -> str:
    """Text of a mask or bias that is broadcast to `batch heads query key`."""
    value = c.operand(index)
    if value is None or value not in c.shapes.dims:
        return "*"
    return broadcast_text(["b", "(h g)", "s", "keys!"], c.shapes.dims[value])


def _with_absent(c: Context, operands: list[str]) -> str:
    texts = [
        text if c.operand(i) is not None else "-"
        for i, text in enumerate(operands[: len(c.node.inputs)])
    ]
    return ", ".join(texts)


def attention(c: Context) -> Rule | None:
    """`b s (h g e!), b t! (h e), b t (h f!) -> b s (h g f)`, or 4-D `b (h g) s e!`."""
    query, key, value = c.dims(0), c.dims(1), c.dims(2)
    flat = len(query) == 3
    heads = c.attribute("q_num_heads") if flat else query[1]
    kv_heads = c.attribute("kv_num_heads") if flat else key[1]
    if not (isinstance(heads, int) and isinstance(kv_heads, int)):
        return None
    sizes = {"h": kv_heads, "g": heads // kv_heads}
    query_dim = "s!" if _looks_by_place(c) else "s"
    if flat:
        key_size, value_size = divide(key[2], kv_heads), divide(value[2], kv_heads)
        if key_size is None or value_size is None:
            return None
        operands = [f"b {query_dim} (h g e!)", "b t! (h e)", "b t (h f!)"]
        results = ["b s (h g f)"]
        sizes |= {"e": key_size, "f": value_size}  # type: ignore[dict-item]
    else:
        operands = [f"b (h g) {query_dim} e!", "b h t! e", "b h t f!"]
        results = ["b (h g) s f"]
    operands += [_mask_text(c, 3), "b h p! e", "b h p f", "b"]
    results += ["b h t2! e", "b h t2 f", "b (h g) s t2"]
    text = _with_absent(c, operands) + " -> " + ", ".join(results[: len(c.node.outputs)])
    return make(text, sizes)


def _looks_by_place(c: Context) -> bool:
    """Whether the place of a query decides which keys it sees."""
    windows = (c.attribute(f"{side}_window_size", -1) for side in ("left", "right"))
    return bool(c.attribute("is_causal", 0)) or any(size >= 0 for size in windows)


def rotary_embedding(c: Context) -> Rule | None:
    """`b h s e!, b s c!, b s c! -> b h s e`: a cache with a row per batch and position."""
    others = ["*", "*", "b s"]
    if c.operand(3) is None:
        others = [broadcast_text(["b", "s", "c!"], c.dims(i)) for i in (1, 2)]
    return _rotary(c, "s", others, 2 * c.dims(1)[-1])


def rotary_embedding_of_table(c: Context) -> Rule | None:
    """`b h s e!, b s, *, * -> b h s e`; a single position is that of the first query."""
    if len(c.dims(1)) == 1:
        return _rotary(c, "s!", ["*", "*", "*"], 2 * c.dims(2)[-1])
    return _rotary(c, "s", ["b s", "*", "*"], 2 * c.dims(2)[-1])


def _rotary(c: Context, position: str, others: list[str], rotated: Dim) -> Rule | None:
    """The rule of either rotary embedding; `rotated` is the head size if no other is given."""
    dims, rest = c.dims(0), ", ".join(others)
    if len(dims) == 4:
        return make(f"b h {position} e!, {rest} -> b h s e")
    heads = c.attribute("num_heads", 0) or divide(dims[2], rotated)
    size = divide(dims[2], heads) if heads else None
    if heads is None or size is None:
        return None
    return make(f"b {position} (h e!), {rest} -> b s (h e)", {"h": heads, "e": size})


ATTENTION_OPS: dict[tuple[str, str], OpSpec] = {
    ("com.microsoft", "GroupQueryAttention"): OpSpec(
        group_query_attention,
        attributes={"num_heads": "h g", "kv_num_heads": "h"},
        states=((3, 1), (4, 2)),
    ),
    ("", "Attention"): OpSpec(
        attention,
        attributes={"q_num_heads": "h g", "kv_num_heads": "h"},
        states=((4, 1), (5, 2)),
    ),
    ("", "RotaryEmbedding"): OpSpec(
        rotary_embedding, linear=((0,),), attributes={"num_heads": "h"}
    ),
    ("com.microsoft", "RotaryEmbedding"): OpSpec(
        rotary_embedding_of_table, linear=((0,),), attributes={"num_heads": "h"}
    ),
}
