"""What the ops mean that ONNX Runtime's optimizer fuses: one function each.

Inputs come by position, None where left out; attributes by name, with the operator's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graph.contrib_reference import fast_gelu, fused_matmul, gelu
from graph.moe_reference import Array, Meanings, Outputs, sigmoid

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
}


def fused_gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    activation: str = "",
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    **_: Any,
) -> Outputs:
    """Gemm, then an activation."""
    made = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return (ACTIVATIONS[activation](made if c is None else made + beta * c).astype(a.dtype),)


def gemm_fast_gelu(x: Array, weight: Array, bias: Array | None = None) -> Outputs:
    """FastGelu of a matrix product."""
    return fast_gelu(x @ weight, bias)


def multi_head_attention(
    query: Array,
    key: Array | None = None,
    value: Array | None = None,
    bias: Array | None = None,
    key_padding_mask: Array | None = None,
    attention_bias: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    *unsupported: Array | None,
    num_heads: int,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
    unidirectional: int = 0,
) -> Outputs:
    """Attention of `num_heads` heads; query f[b, s, n·d], key and value alike or f[b, n, t, d]."""
    if key is None or value is None or any(a is not None for a in unsupported):
        raise NotImplementedError("MultiHeadAttention with packed operands or a shared buffer")
    if bias is not None:
        width, values = query.shape[2], bias.shape[0] - 2 * query.shape[2]
        query = query + bias[:width]
        key = key + bias[width : 2 * width] if key.ndim == 3 else key
        value = value + bias[-values:] if value.ndim == 3 else value
    q, k, v = (t if t.ndim == 4 else _heads(t, num_heads) for t in (query, key, value))
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], 2), np.concatenate([past_value, v], 2)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    scores = factor * (q @ k.swapaxes(-1, -2))
    scores = scores if attention_bias is None else scores + attention_bias
    scores = scores + _mask(key_padding_mask, mask_filter_value)
    if unidirectional:
        rows, columns = scores.shape[-2:]
        seen = np.tril(np.ones((rows, columns), bool), columns - rows)
        scores = np.where(seen, scores, mask_filter_value)
    mixed = _softmax(scores) @ v
    return (_merged(mixed).astype(query.dtype), k, v, scores)


def _mask(mask: Array | None, low: float) -> Array:
    """0 where a key counts and `low` elsewhere, f32[b, 1, 1 or queries, keys]."""
    if mask is None:
        return np.zeros(1, np.float32)
    if mask.ndim == 1:
        raise NotImplementedError("a mask that counts keys")
    added = np.where(mask > 0, np.float32(0), np.float32(low))
    return added[:, None, None] if mask.ndim == 2 else added[:, None]


def packed_attention(
    x: Array,
    weights: Array,
    bias: Array | None = None,
    mask_index: Array | None = None,
    past: Array | None = None,
    attention_bias: Array | None = None,
    past_sequence_length: Array | None = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
    unidirectional: int = 0,
    **other: Any,
) -> Outputs:
    """Project x f[b, s, c] by f[c, q|k|v], then attend; the state is f[2, b, heads, t, d]."""
    if any(other.values()):
        raise NotImplementedError("Attention with rotary embedding or a shared buffer")
    packed = x @ weights if bias is None else x @ weights + bias
    widths = list(qkv_hidden_sizes) if qkv_hidden_sizes else [packed.shape[-1] // 3] * 3
    query, key, value = np.split(packed, [widths[0], widths[0] + widths[1]], axis=-1)
    made, k, v, _ = multi_head_attention(
        query, key, value, None, mask_index, attention_bias,
        *((None, None) if past is None else (past[0], past[1])),
        num_heads=num_heads, scale=scale, mask_filter_value=mask_filter_value,
        unidirectional=unidirectional,
    )  # fmt: skip
    return (made, np.stack([k, v])) if k.shape == v.shape else (made,)


def group_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    skip: Array | None = None,
    bias: Array | None = None,
    *,
    groups: int,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
) -> Outputs:
    """GroupNorm of x (+ skip + bias) f[b, h, w, channels], with SiLU if asked; and that sum."""
    total = x if channels_last else np.moveaxis(x, 1, -1)
    if skip is not None:
        skip = skip[:, None, None] if skip.ndim == 2 else skip
        total = total + (skip if channels_last else np.moveaxis(skip, 1, -1))
    total = total if bias is None else total + bias
    grouped = total.reshape(*total.shape[:3], groups, -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    inverse = 1 / np.sqrt(grouped.var(axis=(1, 2, 4), keepdims=True) + epsilon)
    made = ((grouped - mean) * inverse).reshape(total.shape) * gamma + beta
    results = (made * sigmoid(made) if activation else made, total)
    return tuple((r if channels_last else np.moveaxis(r, -1, 1)).astype(x.dtype) for r in results)


def gated_rms_norm(
    x: Array, scale: Array, gate: Array, *, activation: str = "silu", epsilon: float = 1e-5
) -> Outputs:
    """RMSNorm of every `len(scale)` features, times an activated gate."""
    heads = x.reshape(*x.shape[:-1], -1, len(scale))
    normed = heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + epsilon) * scale
    gated = sigmoid(gate) if activation == "sigmoid" else gate * sigmoid(gate)
    return ((normed.reshape(x.shape) * gated).astype(x.dtype),)


def bias_softmax(x: Array, bias: Array, *, axis: int = 1, is_inner_broadcast: int = 1) -> Outputs:
    """Softmax over all dims from `axis` on, of x plus a bias of the same rank."""
    total = x + bias
    flat = total.reshape(*total.shape[: axis % x.ndim], -1)
    return (_softmax(flat).reshape(x.shape).astype(x.dtype),)


def bias_add(x: Array, bias: Array, skip: Array) -> Outputs:
    """x + bias + skip."""
    return (x + bias + skip,)


def bias_split_gelu(x: Array, bias: Array) -> Outputs:
    """One half of x + bias times the Gelu of the other."""
    left, right = np.split(x + bias, 2, axis=-1)
    return ((left * gelu(right)[0]).astype(x.dtype),)


def swiglu(
    gate: Array,
    up: Array | None = None,
    *,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    limit: float = 0.0,
    round_activation: int = 0,
) -> Outputs:
    """gate · sigmoid(alpha · gate) · (up + beta), both clamped."""
    left, right = np.split(gate, 2, axis=-1) if up is None else (gate, up)
    if limit > 0:
        left, right = np.minimum(left, limit), np.clip(right, -limit, limit)
    made = left * sigmoid(activation_alpha * left) * (right + activation_beta)
    return (made.astype(gate.dtype),)


def scaled_silu(x: Array, scale: Array | None = None, *, alpha: float = 1.0) -> Outputs:
    """SiLU of a multiple of x."""
    scaled = x * (alpha if scale is None else scale)
    return ((scaled * sigmoid(scaled)).astype(x.dtype),)


def gated_add(x: Array, y: Array, gate: Array, weight: Array | None = None) -> Outputs:
    """x + y · gate, the gate being sigmoid(gate @ weight) where there is a weight."""
    factor = gate if weight is None else sigmoid(gate @ weight)
    return ((x + y * factor).astype(x.dtype),)


def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Outputs:
    """The upper or lower triangles of matrices."""
    diagonal = 0 if k is None else int(k)
    return (np.triu(x, diagonal) if upper else np.tril(x, diagonal),)


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _merged(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


_MICROSOFT: dict[str, Callable[..., Outputs]] = {
    "Attention": packed_attention,
    "BiasAdd": bias_add,
    "BiasSoftmax": bias_softmax,
    "BiasSplitGelu": bias_split_gelu,
    "FusedGemm": fused_gemm,
    "GatedAdd": gated_add,
    "GatedRMSNorm": gated_rms_norm,
    "GemmFastGelu": gemm_fast_gelu,
    "GroupNorm": group_norm,
    "MultiHeadAttention": multi_head_attention,
    "ScaledSiLU": scaled_silu,
    "SkipGroupNorm": group_norm,
    "SwiGLU": swiglu,
    "TransposeMatMul": fused_matmul,
    "Trilu": trilu,
}
FUSED_MEANINGS: Meanings = {("com.microsoft", op): meaning for op, meaning in _MICROSOFT.items()}
