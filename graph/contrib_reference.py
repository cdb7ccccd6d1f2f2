"""What operators mean that onnx.reference does not know or gets wrong: one function each.

Inputs come by position, None where left out; attributes by name, with the operator's defaults. The
definitions of ONNX Runtime's own operators follow its ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graph.quant_reference import QUANTISED

Array = np.ndarray[Any, Any]
Outputs = tuple[Array, ...]


def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Outputs:
    """Pick data[.., indices[..], ..] along `axis` (onnx.reference fails on dims above 64)."""
    places: list[Array] = list(np.indices(indices.shape))
    places[axis] = indices
    return (data[tuple(places)],)


def simplified_layer_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Outputs:
    """Divide by the root mean square over the dims from `axis` on, then scale (RMSNorm)."""
    wide = x.astype(np.float32)
    dims = tuple(range(axis % x.ndim, x.ndim))
    inverse = 1 / np.sqrt(np.mean(wide**2, axis=dims, keepdims=True) + np.float32(epsilon))
    return (wide * inverse).astype(x.dtype) * scale, inverse


def skip_simplified_layer_normalization(
    x: Array, skip: Array, gamma: Array, bias: Array | None = None, *, epsilon: float = 1e-5
) -> Outputs:
    """RMSNorm of x + skip + bias; output 3 is that sum."""
    total = _skip_sum(x, skip, bias)
    normed, inverse = simplified_layer_normalization(total, gamma, epsilon=epsilon)
    return normed, np.zeros_like(inverse), inverse, total


def skip_layer_normalization(
    x: Array,
    skip: Array,
    gamma: Array,
    beta: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
) -> Outputs:
    """LayerNorm of x + skip + bias over the last dim; output 3 is that sum."""
    total = _skip_sum(x, skip, bias)
    wide = total.astype(np.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(wide.var(axis=-1, keepdims=True) + np.float32(epsilon))
    normed = ((wide - mean) * inverse).astype(x.dtype) * gamma
    return normed if beta is None else normed + beta, mean, inverse, total


def gelu(x: Array) -> Outputs:
    """x times the normal distribution function of x."""
    return ((0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype),)


def bias_gelu(x: Array, bias: Array) -> Outputs:
    """Gelu of x + bias."""
    return gelu(x + bias)


def fast_gelu(x: Array, bias: Array | None = None) -> Outputs:
    """Gelu of x + bias by its tanh approximation."""
    x = x if bias is None else x + bias
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return ((0.5 * x * (1 + np.tanh(inner))).astype(x.dtype),)


def quick_gelu(x: Array, *, alpha: float = 1.702) -> Outputs:
    """x times the logistic function of alpha x."""
    return ((x / (1 + np.exp(-alpha * x))).astype(x.dtype),)


def fused_matmul(
    a: Array,
    b: Array,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Outputs:
    """Alpha times the matrix product, either operand transposed first."""
    left = _transposed(a, transA, transBatchA)
    right = _transposed(b, transB, transBatchB)
    return ((np.float32(alpha) * (left @ right)).astype(a.dtype),)


def rotary_embedding(
    x: Array,
    position_ids: Array,
    cos_cache: Array,
    sin_cache: Array,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
    is_packed_batching: int = 0,
) -> Outputs:
    """Rotate pairs of features by their position; x is [b, s, heads*d] or [b, heads, s, d]."""
    if x.ndim == 4:
        heads = x
    else:
        size = x.shape[-1] // num_heads if num_heads else 2 * cos_cache.shape[-1]
        heads = _split_heads(x, x.shape[-1] // size)
    positions = position_ids
    if position_ids.size == 1:
        positions = position_ids.reshape(()) + np.arange(heads.shape[2])[None]
    rotated = rotate(heads, positions, cos_cache, sin_cache, bool(interleaved))
    return ((rotated if x.ndim == 4 else _merge_heads(rotated)),)


def rotate(
    heads: Array, positions: Array, cos_cache: Array, sin_cache: Array, interleaved: bool
) -> Array:
    """Rotary embedding of [b, heads, s, d] at `positions` [b or 1, s]; caches are [max, r/2]."""
    half = cos_cache.shape[-1]
    cos, sin = cos_cache[positions][:, None], sin_cache[positions][:, None]
    first = np.s_[..., 0 : 2 * half : 2] if interleaved else np.s_[..., :half]
    second = np.s_[..., 1 : 2 * half : 2] if interleaved else np.s_[..., half : 2 * half]
    rotated = heads.copy()
    rotated[first] = heads[first] * cos - heads[second] * sin
    rotated[second] = heads[second] * cos + heads[first] * sin
    return rotated


def group_query_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array | None,
    past_value: Array | None,
    seqlens_k: Array,
    total_sequence_length: Array,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    position_ids: Array | None = None,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    *unsupported: Array | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    softcap: float = 0.0,
    smooth_softmax: int = 0,
    **other: Any,
) -> Outputs:
    """Causal attention whose query heads share kv heads, with rotary embedding and a cache.

    `query` f[b, s, heads*d] or packed f[b, s, (heads + 2 kv)*d]; past and present f[b, kv, t, d];
    `seqlens_k` i32[b] is the number of valid keys minus one, padding being on the right.
    """
    _refuse_extras(unsupported, other)
    q, k, v = _query_key_value(query, key, value, num_heads, kv_num_heads)
    past, total = _lengths(q.shape[2], seqlens_k, total_sequence_length)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        at = past[:, None] + np.arange(q.shape[2]) if position_ids is None else position_ids
        q, k = (rotate(t, at, cos_cache, sin_cache, bool(rotary_interleaved)) for t in (q, k))
    keys, values = _present(past_key, k, past, total), _present(past_value, v, past, total)
    bias = _bias(_visible(past, q.shape[2], keys.shape[2], local_window_size), attention_bias)
    scores = _scores(q, keys, scale, softcap) + bias
    weights = _softmax(scores, head_sink, bool(smooth_softmax)).astype(q.dtype)
    return _merge_heads(weights @ _shared(values, q)), keys, values


def _refuse_extras(operands: tuple[Array | None, ...], attributes: dict[str, Any]) -> None:
    if any(extra is not None for extra in operands) or attributes.get("qk_output"):
        raise NotImplementedError("GroupQueryAttention with quantised cache, q/k norm or qk output")


def _query_key_value(
    query: Array, key: Array | None, value: Array | None, heads: int, kv_heads: int
) -> tuple[Array, Array, Array]:
    if key is None or value is None:
        packed = _split_heads(query, heads + 2 * kv_heads)
        return (
            packed[:, :heads],
            packed[:, heads : heads + kv_heads],
            packed[:, heads + kv_heads :],
        )
    k, v = (t if t.ndim == 4 else _split_heads(t, kv_heads) for t in (key, value))
    return _split_heads(query, heads), k, v


def _lengths(new: int, seqlens_k: Array, total: Array) -> tuple[Array, int]:
    """Keys in the cache before this call, i64[b], and the room for keys after it."""
    longest, valid = int(np.max(total)), seqlens_k.reshape(-1).astype(np.int64) + 1
    return (np.zeros_like(valid) if new == longest else valid - new), longest


def _present(cache: Array | None, new: Array, past: Array, total: int) -> Array:
    """The cache with each sequence's new keys (or values) behind its `past[b]` old ones."""
    length = max(total, 0 if cache is None else cache.shape[2])
    present = np.zeros((*new.shape[:2], length, new.shape[3]), new.dtype)
    for b, start in enumerate(past):
        if cache is not None:
            present[b, :, :start] = cache[b, :, :start]
        present[b, :, start : start + new.shape[2]] = new[b]
    return present


def _visible(past: Array, queries: int, keys: int, window: int) -> Array:
    """Whether a query may look at a key, bool[b, queries, keys]."""
    i, j = past[:, None, None] + np.arange(queries)[:, None], np.arange(keys)
    return np.asarray((j <= i) & ((window < 0) | (j > i - window)))


def _bias(visible: Array, extra: Array | None) -> Array:
    """0 where visible and -inf elsewhere, f32[b, 1 or heads, queries, keys], plus `extra`."""
    bias = np.where(visible[:, None], np.float32(0), np.float32(-np.inf))
    if extra is None:
        return bias
    short = visible.shape[-1] - extra.shape[-1]
    return np.asarray(bias + np.pad(extra, [(0, 0)] * 3 + [(0, short)]))


def _scores(q: Array, keys: Array, scale: float, softcap: float) -> Array:
    """Scaled and capped products of queries and keys, f32[b, heads, queries, keys]."""
    scaled = q * q.dtype.type(scale or 1 / math.sqrt(q.shape[-1]))
    scores = (scaled @ _shared(keys, q).swapaxes(-1, -2)).astype(np.float32)
    return np.asarray(softcap * np.tanh(scores / softcap) if softcap else scores)


def _shared(cache: Array, q: Array) -> Array:
    """Each kv head once per query head that shares it."""
    return np.repeat(cache, q.shape[1] // cache.shape[1], axis=1)


def _softmax(scores: Array, sink: Array | None, smooth: bool) -> Array:
    """Softmax over keys; a sink (per head, or 0 if smooth) takes part in the sum only."""
    extra = sink if sink is not None else np.zeros(scores.shape[1], np.float32)
    extra = extra.reshape(1, -1, 1, 1).astype(np.float32)
    top = scores.max(axis=-1, keepdims=True)
    with_sink = sink is not None or smooth
    top = np.maximum(top, extra) if with_sink else top
    powers = np.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True)
    return np.asarray(powers / (total + np.exp(extra - top) if with_sink else total))


def _split_heads(x: Array, heads: int) -> Array:
    """[b, s, heads*d] to [b, heads, s, d]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _merge_heads(x: Array) -> Array:
    """[b, heads, s, d] to [b, s, heads*d]."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def _skip_sum(x: Array, skip: Array, bias: Array | None) -> Array:
    total = x + skip
    return total if bias is None else total + bias


def _transposed(x: Array, last: int, batch: int) -> Array:
    if batch:
        x = np.moveaxis(x, 0, -2)
    return x.swapaxes(-1, -2) if last and x.ndim > 1 else x


_erf_of_one: Callable[[Any], Any] = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: Array) -> Array:
    return np.asarray(_erf_of_one(x))


CONTRIB: dict[tuple[str, str], Callable[..., Outputs]] = {
    ("", "GatherElements"): gather_elements,
    ("", "SimplifiedLayerNormalization"): simplified_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_simplified_layer_normalization,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "Gelu"): gelu,
    ("com.microsoft", "BiasGelu"): bias_gelu,
    ("com.microsoft", "FastGelu"): fast_gelu,
    ("com.microsoft", "QuickGelu"): quick_gelu,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "RotaryEmbedding"): rotary_embedding,
    ("com.microsoft", "GroupQueryAttention"): group_query_attention,
    **QUANTISED,
}
"""Meaning by (domain, operator); ONNX Runtime has one operator of its own in ONNX's domain."""
