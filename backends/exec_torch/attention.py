"""Attention and rotary embedding of ai.onnx.

What is common to all: `attend`, which is torch's fused attention unless something must be done to
the scores in between (a softcap, a sink) or they are asked for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from .row import Rows, many
from .tensors import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Fused attention of f[b, heads, s, d]; a mask of truth values or a bias; kv heads shared."""
    grouped = q.shape[1] != k.shape[1]
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    if grouped and q.shape[2] == 1 and not causal and (bias is None or bias.shape[1] == 1):
        # One token: the heads that share keys are like tokens, and every kernel takes masks then.
        rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(rows, k, v, bias, scale=scale).reshape(
            *q.shape[:3], v.shape[3]
        )
    return F.scaled_dot_product_attention(
        q, k, v, bias, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def shared(cache: Tensor, q: Tensor) -> Tensor:
    """Each kv head once per query head that shares it."""
    each = q.shape[1] // cache.shape[1]
    return cache if each == 1 else cache.repeat_interleave(each, 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, s, heads·d] to [b, heads, s, d]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[b, heads, s, d] to [b, s, heads·d]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


RAW, CAPPED, MASKED, SHARES = 0, 1, 2, 3
"""What Attention's fourth result is: scores, after the softcap, after the mask, or their softmax.
"""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    outputs: int,
    scale: float | None = None,
    is_causal: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    softcap: float = 0.0,
    qk_matmul_output_mode: int = 0,
    softmax_precision: int = 1,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Any, ...]:
    """Attention 23 to 25; `valid` is the number of keys that count per sequence."""
    q = split_heads(query, q_num_heads) if query.ndim == 3 else query
    k, v = (split_heads(t, kv_num_heads) if t.ndim == 3 else t for t in (key, value))
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    window = (left_window_size, 0 if is_causal else right_window_size)
    seen = _seen(q, k, valid, past, window) if max(window) >= 0 or valid is not None else None
    bias = _as_bias(mask, seen, k.shape[2], q.dtype)
    if outputs < 4 and not softcap:
        made, shares = attend(q, k, v, scale=factor, bias=bias), None
    else:
        made, shares = _by_steps(q, k, v, factor, softcap, bias, qk_matmul_output_mode)
    if bias is not None:  # what sees no key at all is zero, not NaN
        made = torch.where(_blind(bias), torch.zeros_like(made), made)
    return merge_heads(made) if query.ndim == 3 else made, k, v, shares


def _blind(bias: Tensor) -> Tensor:
    hidden = ~bias if bias.dtype == torch.bool else bias == -math.inf
    return hidden.all(-1, keepdim=True)


def _seen(q: Tensor, k: Tensor, valid: Tensor | None, past: int, window: tuple[int, int]) -> Tensor:
    """Which keys a query may look at, bool[b or 1, 1, queries, keys]."""
    at = torch.arange(q.shape[2], device=q.device)[:, None] + past
    keys = torch.arange(k.shape[2], device=q.device)
    seen: Tensor = keys >= 0
    if valid is not None:
        valid = valid.reshape(-1, 1, 1)
        at = at - past + valid - q.shape[2]
        seen = keys < valid
    left, right = window
    seen = seen & (keys <= at + right) if right >= 0 else seen
    seen = seen & (keys >= at - left) if left >= 0 else seen
    return seen[None, None] if seen.ndim == 2 else seen[:, None]


def _as_bias(mask: Tensor | None, seen: Tensor | None, keys: int, dtype: Any) -> Tensor | None:
    """One mask of truth values, or one bias, out of both."""
    if mask is None:
        return seen
    short = keys - mask.shape[-1]
    is_bool = mask.dtype == torch.bool
    if short > 0:
        mask = F.pad(mask, [0, short], value=False if is_bool else -math.inf)
    if seen is None:
        return mask if mask.ndim > 1 else mask[None]
    return mask & seen if is_bool else torch.where(seen, mask, -math.inf)


def _by_steps(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, bias: Tensor | None, mode: int
) -> tuple[Tensor, Tensor]:
    """Attention with its scores at hand."""
    root = math.sqrt(scale)
    raw = (q * root) @ (shared(k, q) * root).transpose(-1, -2)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    masked = capped
    if bias is not None and bias.dtype == torch.bool:
        masked = torch.where(bias, capped, -math.inf)
    elif bias is not None:
        masked = capped + bias
    shares = torch.softmax(masked, -1)
    shares = torch.where((masked == -math.inf).all(-1, keepdim=True), 0, shares).to(q.dtype)
    return shares @ shared(v, q), (raw, capped, masked, shares)[mode]


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of features; caches are f[max, r/2], or f[b, s, r/2] without positions."""
    heads = x if x.ndim == 4 else split_heads(x, num_heads)
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    made = rotate(heads, cos, sin, bool(interleaved))
    return made if x.ndim == 4 else merge_heads(made)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of f[b, heads, s, d] by f[b or 1, s, r/2]."""
    cos, sin = cos[:, None].to(heads.dtype), sin[:, None].to(heads.dtype)
    half = cos.shape[-1]
    turned, rest = heads[..., : 2 * half], heads[..., 2 * half :]
    if interleaved:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    parts = (first * cos - second * sin, second * cos + first * sin)
    made = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return made if rest.shape[-1] == 0 else torch.cat([made, rest], -1)


STANDARD: Rows = {"Attention": many(attention), "RotaryEmbedding": rotary_embedding}
MICROSOFT: Rows = {}
