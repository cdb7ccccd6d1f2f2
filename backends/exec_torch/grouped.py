"""GroupQueryAttention: causal attention with a cache, rotary embedding and shared kv heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .attention import attend, merge_heads, rotate, shared, split_heads
from .row import Row, Rows, number
from .tensors import Tensor


def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Any,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    *unsupported: Tensor | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    softcap: float = 0.0,
    smooth_softmax: int = -1,
    sliding_window_cache: int = 0,
    causal: int = 1,
    qk_output: int = 0,
    k_quant_type: str = "NONE",
    v_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    grows: bool = False,
) -> tuple[Any, ...]:
    """Query f[b, s, heads·d] or packed f[b, s, (heads + 2 kv)·d]; past and present f[b, kv, t, d].

    `seqlens_k` i32[b] is the number of valid keys minus one. Where there is one sequence its length
    is the total, so nothing is read back from the device. If `grows`, new entries are written into
    the caches themselves; a total as long as those then says nothing of the length, so that steps
    of one shape can follow each other.
    """
    quantised = kv_cache_bit_width or {k_quant_type, v_quant_type} != {"NONE"}
    if any(extra is not None for extra in unsupported) or qk_output or quantised or not causal:
        raise NotImplementedError("GroupQueryAttention with quantised cache, q/k norm or qk output")
    q, k, v = _query_key_value(query, key, value, num_heads, kv_num_heads)
    total = number(total_sequence_length)
    is_full = grows and past_key is not None and past_key.shape[2] == total
    past = _past(q, seqlens_k, total, known=not is_full)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        at = _positions(past, q) if position_ids is None else position_ids
        turn = (cos_cache[at], sin_cache[at], bool(rotary_interleaved))
        q, k = rotate(q, *turn), rotate(k, *turn)
    pairs = ((past_key, k), (past_value, v))
    if sliding_window_cache:
        past, (keys, values) = _recent(pairs, past, local_window_size)
        presents = [_last(whole, local_window_size) for whole in (keys, values)]
    else:
        presents = [_present(cache, new, past, total, grows) for cache, new in pairs]
        keys, values = presents
    sink = _sink(head_sink, smooth_softmax > 0, q)
    scores = _Scores(scale or 1 / math.sqrt(q.shape[-1]), softcap, sink, attention_bias)
    return merge_heads(scores.mix(q, keys, values, past, local_window_size)), *presents


@dataclass(frozen=True)
class _Scores:
    """What happens to the products of queries and keys."""

    scale: float
    softcap: float
    sink: Tensor | None
    bias: Tensor | None

    def mix(self, q: Tensor, keys: Tensor, values: Tensor, past: Any, window: int) -> Tensor:
        """Values by their shares, fused where nothing is done to the scores in between."""
        fused = not self.softcap and self.sink is None
        if _is_number(past):  # the rest of a buffer that is longer holds nothing yet
            keys, values = (x[:, :, : past + q.shape[2]] for x in (keys, values))
        if fused and self.bias is None and window < 0 and _is_number(past):
            if past == 0 and keys.shape[2] == q.shape[2]:
                return attend(q, keys, values, scale=self.scale, causal=True)
            if q.shape[2] == 1:  # one token sees every valid key
                return attend(q, keys, values, scale=self.scale)
        seen = _visible(past, q, keys.shape[2], window)
        bias = seen if self.bias is None else _with(seen, self.bias)
        if fused:
            return attend(q, keys, values, scale=self.scale, bias=bias)
        scores = ((q * self.scale) @ shared(keys, q).transpose(-1, -2)).to(torch.float32)
        scores = self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores
        scores = torch.where(seen, scores, -math.inf) if bias is seen else scores + bias
        return _softmax(scores, self.sink).to(q.dtype) @ shared(values, q)


def _is_number(past: Any) -> bool:
    return not isinstance(past, torch.Tensor)


def _positions(past: Any, q: Tensor) -> Tensor:
    """Of the new tokens, i64[b or 1, s]."""
    steps = torch.arange(q.shape[2], device=q.device)
    return (past + steps)[None] if _is_number(past) else past[:, None] + steps


def _recent(
    pairs: Sequence[tuple[Tensor | None, Tensor]], past: Any, window: int
) -> tuple[int, list[Tensor]]:
    """Keys (and values) of a cache that holds the last `window` tokens, then the new ones."""
    (cache, _), _ = pairs
    if not _is_number(past) or (cache is not None and cache.shape[2] != window):
        raise NotImplementedError("a sliding cache of several sequences or of more than its window")
    held = 0 if cache is None else min(past, window)
    return held, [n if c is None else torch.cat([c[:, :, :held], n], 2) for c, n in pairs]


def _last(whole: Tensor, window: int) -> Tensor:
    """The last `window` entries; behind fewer of them are zeros."""
    length = whole.shape[2]
    return whole[:, :, length - window :] if length >= window else _room(whole, window)


def _sink(sink: Tensor | None, smooth: bool, q: Tensor) -> Tensor | None:
    """A score per head that takes part in the sum only: given, or 0 if smooth."""
    if sink is None and smooth:
        return torch.zeros(q.shape[1], device=q.device)
    return sink


def _query_key_value(
    query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    if key is None or value is None:
        packed = split_heads(query, heads + 2 * kv_heads)
        q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], 1)
        return q, k, v
    k, v = (t if t.ndim == 4 else split_heads(t, kv_heads) for t in (key, value))
    return split_heads(query, heads), k, v


def _past(q: Tensor, seqlens_k: Tensor, total: int, known: bool) -> Any:
    """Keys in the cache before this call: a number if `known`, or i64[b] where they may differ."""
    new = q.shape[2]
    if new == total:
        return 0
    return (
        total - new
        if known and q.shape[0] == 1
        else seqlens_k.reshape(-1).to(torch.int64) + 1 - new
    )


def _present(cache: Tensor | None, new: Tensor, past: Any, total: int, grows: bool) -> Tensor:
    """The cache with each sequence's new entries behind its old ones."""
    if cache is None or cache.shape[2] == 0:
        return new if total == new.shape[2] else _room(new, total)
    if grows and cache.shape[2] >= total:
        if _is_number(past):
            cache[:, :, past : past + new.shape[2]] = new
            return cache
        return cache.scatter_(2, _places(past, new), new)
    if _is_number(past) and past == cache.shape[2]:
        return torch.cat([cache, new], 2)
    whole = cache.clone() if cache.shape[2] >= total else _room(cache, total)
    if _is_number(past):
        whole[:, :, past : past + new.shape[2]] = new
        whole[:, :, past + new.shape[2] :] = 0
        return whole
    rest = torch.arange(whole.shape[2], device=new.device) >= past[:, None]
    whole = torch.where(rest[:, None, :, None], 0, whole)
    return whole.scatter(2, _places(past, new), new)


def _places(past: Tensor, new: Tensor) -> Tensor:
    """Where new entries go in the cache, i64 of their shape."""
    at = past[:, None] + torch.arange(new.shape[2], device=new.device)
    return at[:, None, :, None].expand(new.shape)


def _room(x: Tensor, total: int) -> Tensor:
    return torch.nn.functional.pad(x, [0, 0, 0, total - x.shape[2]])


def _visible(past: Any, q: Tensor, keys: int, window: int) -> Tensor:
    """Whether a query may look at a key, bool[b or 1, 1, queries, keys]."""
    i = _positions(past, q)[:, None, :, None]
    j = torch.arange(keys, device=q.device)
    return (j <= i) & (j > i - window) if window >= 0 else j <= i


def _with(seen: Tensor, bias: Tensor) -> Tensor:
    short = seen.shape[-1] - bias.shape[-1]
    padded = torch.nn.functional.pad(bias, [0, short]) if short else bias
    return torch.where(seen, padded, -math.inf)


def _softmax(scores: Tensor, sink: Tensor | None) -> Tensor:
    """Softmax over keys and the sink, without the sink's share."""
    if sink is None:
        return torch.softmax(scores, -1)
    extra = sink.to(torch.float32).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]


STANDARD: Rows = {}
MICROSOFT: Rows = {"GroupQueryAttention": Row(group_query_attention, plain=(6,), many=True)}
