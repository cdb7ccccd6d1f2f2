"""onnxruntime's attention ops without shared kv heads: with biases, projections, codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .attention import attend, merge_heads, rotate, split_heads
from .quant import centred_product
from .row import Rows, many
from .tensors import Tensor


def microsoft_rotary(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
    is_packed_batching: int = 0,
) -> Tensor:
    """Rotary embedding at positions i64[b, s], or from one position on."""
    size = x.shape[-1] // num_heads if num_heads else 2 * cos_cache.shape[-1]
    heads = x if x.ndim == 4 else split_heads(x, x.shape[-1] // size)
    at = position_ids
    if position_ids.numel() == 1:
        at = position_ids.reshape(1, 1) + torch.arange(heads.shape[2], device=x.device)
    made = rotate(heads, cos_cache[at], sin_cache[at], bool(interleaved))
    return made if x.ndim == 4 else merge_heads(made)


def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *unsupported: Tensor | None,
    num_heads: int,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
    unidirectional: int = 0,
    outputs: int = 1,
) -> tuple[Any, ...]:
    """Attention of f[b, n, heads·d], key and value alike or f[b, heads, t, d]."""
    if key is None or value is None or any(a is not None for a in unsupported) or outputs > 3:
        raise NotImplementedError("MultiHeadAttention with packed operands or a shared buffer")
    if bias is not None:
        width, values = query.shape[2], bias.shape[0] - 2 * query.shape[2]
        query = query + bias[:width]
        key = key + bias[width : 2 * width] if key.ndim == 3 else key
        value = value + bias[-values:] if value.ndim == 3 else value
    q, k, v = (t if t.ndim == 4 else split_heads(t, num_heads) for t in (query, key, value))
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    total = padding(key_padding_mask, mask_filter_value, attention_bias)
    if unidirectional:
        total = one_way(total, q, k, mask_filter_value)
    made = attend(q, k, v, scale=scale or 1 / math.sqrt(q.shape[-1]), bias=total)
    return merge_heads(made), k, v


def padding(mask: Tensor | None, low: float, bias: Tensor | None) -> Tensor | None:
    """`low` where a key does not count, plus a bias."""
    if mask is None:
        return bias
    if mask.ndim == 1:
        raise NotImplementedError("a mask that counts keys")
    added = torch.where(mask > 0, 0.0, low)
    added = added[:, None, None] if mask.ndim == 2 else added[:, None]
    return added if bias is None else bias + added


def one_way(bias: Tensor | None, q: Tensor, k: Tensor, low: float) -> Tensor:
    """The bias, and `low` for keys after a query; the last query sees all keys."""
    rows, columns = q.shape[2], k.shape[2]
    seen = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
    return torch.where(seen, 0.0 if bias is None else bias, low)


def packed_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
    unidirectional: int = 0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
) -> tuple[Any, ...]:
    """Project x f[b, s, c] by f[c, q|k|v], then attend; the state is f[2, b, heads, t, d]."""
    if do_rotary or past_present_share_buffer:
        raise NotImplementedError("Attention with rotary embedding or a shared buffer")
    packed = x @ weights if bias is None else x @ weights + bias
    widths = list(qkv_hidden_sizes) if qkv_hidden_sizes else [packed.shape[-1] // 3] * 3
    query, key, value = torch.split(packed, widths, -1)
    made, k, v = multi_head_attention(
        query, key, value, None, mask_index, attention_bias,
        *((None, None) if past is None else (past[0], past[1])),
        num_heads=num_heads, scale=scale, mask_filter_value=mask_filter_value,
        unidirectional=unidirectional,
    )  # fmt: skip
    return made, torch.stack([k, v]) if k.shape == v.shape else None


def q_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    past: Tensor | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
) -> tuple[Tensor, Tensor]:
    """Attention over quantised input f[b, s, hidden] and packed weights [hidden, q|k|v]."""
    product = centred_product(x, weight, x_zero, weight_zero).to(torch.float32)
    packed = (product * (x_scale * weight_scale) + bias).to(bias.dtype)
    q, k, v = (split_heads(part, num_heads) for part in torch.chunk(packed, 3, -1))
    present = torch.stack([k, v])
    present = present if past is None else torch.cat([past, present], 3)
    total = padding(mask_index, mask_filter_value, None)
    total = one_way(total, q, present[0], mask_filter_value) if unidirectional else total
    factor = scale or 1 / math.sqrt(q.shape[-1])
    return merge_heads(attend(q, present[0], present[1], scale=factor, bias=total)), present


STANDARD: Rows = {}
MICROSOFT: Rows = {
    "Attention": many(packed_attention),
    "MultiHeadAttention": many(multi_head_attention),
    "QAttention": many(q_attention),
    "RotaryEmbedding": microsoft_rotary,
}
