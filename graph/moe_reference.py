"""What ONNX Runtime's mixtures of experts and recurrent mixers mean, in plain numpy.

Inputs come by position, None where left out; attributes by name, with the operator's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graph.packing import unpack

Array = np.ndarray[Any, Any]
Outputs = tuple[Array, ...]
Meanings = dict[tuple[str, str], Callable[..., Outputs]]

INTERLEAVED = 1


def moe(
    x: Array,
    router: Array,
    fc1: Array,
    fc1_bias: Array | None,
    fc2: Array,
    fc2_bias: Array | None = None,
    fc3: Array | None = None,
    fc3_bias: Array | None = None,
    *,
    k: int = 1,
    normalize_routing_weights: int = 0,
    router_weights: Array | None = None,
    **activation: Any,
) -> Outputs:
    """The best `k` experts of every token, weighted by the softmax of their router logits.

    `x` f[tokens, hidden], `router` f[tokens, experts], fc1 f[experts, features, hidden], fc2
    f[experts, hidden, inner].
    """
    if activation.get("use_sparse_mixer"):
        raise NotImplementedError("MoE with the sparse mixer")
    if fc2.shape[1] != x.shape[-1] or router.shape[1] != fc1.shape[0]:
        raise ValueError("MoE whose result or experts do not fit its input or router")
    tokens = x.reshape(-1, x.shape[-1])
    weights = _routing(router, k, bool(normalize_routing_weights), router_weights)
    total = np.zeros((tokens.shape[0], fc2.shape[1]), np.float32)
    for e in range(fc1.shape[0]):
        first = _linear(tokens, fc1, fc1_bias, e)
        third = None if fc3 is None else _linear(tokens, fc3, fc3_bias, e)
        total += weights[:, e, None] * _linear(
            _activate(first, third, **activation), fc2, fc2_bias, e
        )
    return (total.reshape(*x.shape[:-1], -1).astype(x.dtype),)


def _linear(x: Array, weight: Array, bias: Array | None, expert: int) -> Array:
    product = x.astype(np.float32) @ weight[expert].astype(np.float32).T
    return np.asarray(product if bias is None else product + bias[expert])


def _routing(router: Array, k: int, normalize: bool, given: Array | None) -> Array:
    """Weight of every expert for every token, 0 for those not chosen, f32[tokens, experts].

    Of equal experts the last are chosen; experts of a weight below zero are passed over.
    """
    logits = router.astype(np.float32)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    weights = powers / powers.sum(-1, keepdims=True) if given is None else given.astype(np.float32)
    chosen = np.argsort(router, axis=-1, kind="stable")[:, ::-1][:, :k]
    mask = np.zeros_like(router, bool)
    np.put_along_axis(mask, chosen, True, axis=-1)
    kept = np.where(mask, weights, 0)
    total = kept.sum(-1, keepdims=True)
    shares = np.divide(kept, total, out=np.zeros_like(kept), where=total != 0)
    return np.asarray(np.maximum(shares if normalize else kept, 0))


def _activate(
    first: Array,
    third: Array | None,
    *,
    activation_type: str = "relu",
    swiglu_fusion: int = 0,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    swiglu_limit: float = math.inf,
    swiglu_limit_after_activation: int = 0,
    use_sparse_mixer: int = 0,
) -> Array:
    if activation_type == "swiglu":
        gate, up = first, third
        if swiglu_fusion or up is None:
            half = first.shape[-1] // 2
            pairs = (first[:, ::2], first[:, 1::2])
            gate, up = pairs if swiglu_fusion == INTERLEAVED else (first[:, :half], first[:, half:])
        first_limit = math.inf if swiglu_limit_after_activation else swiglu_limit
        gate = np.minimum(gate, first_limit)
        gate = np.minimum(gate * sigmoid(activation_alpha * gate), swiglu_limit)
        up = np.clip(up, -swiglu_limit, swiglu_limit)
        return np.asarray(gate * (up + activation_beta))
    made = ACTIVATIONS[activation_type](first)
    return made if third is None else np.asarray(made * third)


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": _gelu,
    "silu": lambda x: np.asarray(x * sigmoid(x)),
    "identity": lambda x: x,
}


def quantised_moe(
    x: Array,
    router: Array,
    fc1: Array,
    fc1_scales: Array,
    fc1_bias: Array | None,
    fc2: Array,
    fc2_scales: Array,
    fc2_bias: Array | None = None,
    fc3: Array | None = None,
    fc3_scales: Array | None = None,
    fc3_bias: Array | None = None,
    *points: Array | None,
    expert_weight_bits: int = 4,
    fc1_expert_weight_bits: int = 0,
    fc2_expert_weight_bits: int = 0,
    fc3_expert_weight_bits: int = 0,
    block_size: int = 0,
    quant_type: str = "int",
    accuracy_level: int = 0,
    weights_prepacked: int = -1,
    **attributes: Any,
) -> Outputs:
    """MoE with integer weights: packed low bits first, one scale per row or per block of a row.

    The softmax of the router is over the chosen experts alone, unless their weights are given.
    """
    if quant_type != "int" or any(p is not None for p in points[4:]):
        raise NotImplementedError(f"QMoE of type '{quant_type}'")
    zeros = [*points[:4], None, None, None, None]
    own = (fc1_expert_weight_bits, fc2_expert_weight_bits, fc3_expert_weight_bits)
    bits = [number or expert_weight_bits for number in own]
    first = _dequantised(fc1, fc1_scales, zeros[0], bits[0], block_size)
    second = _dequantised(fc2, fc2_scales, zeros[1], bits[1], block_size)
    if zeros[3] is None:
        attributes["normalize_routing_weights"] = 1
    third = None
    if fc3 is not None and fc3_scales is not None:
        third = _dequantised(fc3, fc3_scales, zeros[2], bits[2], block_size)
    return moe(
        x, router, first, fc1_bias, second, fc2_bias, third, fc3_bias,
        router_weights=zeros[3], **attributes,
    )  # fmt: skip


def _dequantised(
    packed: Array, scales: Array, points: Array | None, bits: int, block: int
) -> Array:
    whole = unpack(packed, bits).astype(np.float32)
    zero: Array | int = 2 ** (bits - 1)
    if points is not None:
        zero = unpack(points, bits)[..., : scales.shape[-1]].astype(np.float32)
    if not block:
        zero = zero if isinstance(zero, int) else zero[..., None]
        return np.asarray((whole - zero) * scales[..., None])
    zero = zero if isinstance(zero, int) else np.repeat(zero, block, axis=-1)
    return np.asarray((whole - zero) * np.repeat(scales, block, axis=-1))


def causal_conv_with_state(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    past: Array | None = None,
    *,
    activation: str = "none",
    channels_last: int = 0,
    dilation: int = 1,
    ndim: int = 1,
    **special: Any,
) -> Outputs:
    """Depthwise convolution over the past; x f[b, c, t] and state f[b, c, (k-1)·d]."""
    if ndim != 1 or any(v not in (0, -1) for v in special.values()):
        raise NotImplementedError("CausalConvWithState beyond one dim of time")
    data = x.swapaxes(1, 2) if channels_last else x
    state = past.swapaxes(1, 2) if channels_last and past is not None else past
    taps = weight.shape[-1]
    reach = (taps - 1) * dilation
    before = np.zeros((*data.shape[:2], reach), x.dtype) if state is None else state
    whole = np.concatenate([before, data], axis=-1)
    length = data.shape[-1]
    made = sum(
        weight[:, 0, j, None] * whole[..., j * dilation : j * dilation + length]
        for j in range(taps)
    )
    made = np.asarray(made if bias is None else made + bias[:, None])
    made = made if activation == "none" else made * sigmoid(made)
    after = whole[..., whole.shape[-1] - reach :]
    results = (made.astype(x.dtype), after)
    return tuple(r.swapaxes(1, 2) for r in results) if channels_last else results


def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    past: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
    chunk_size: int = 64,
    state_window: int = 0,
) -> Outputs:
    """A state f[b, kv heads, d_k, d_v] read and updated token by token."""
    if state_window:
        raise NotImplementedError("LinearAttention with a window of states")
    q, k, v = _heads(query, q_num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    state = np.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), np.float32)
    state = state if past is None else past.astype(np.float32)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    rows = []
    for t in range(query.shape[1]):
        state = _updated(
            state, k[:, :, t], v[:, :, t], _at(decay, t, k), _at(beta, t, k), update_rule
        )
        heads = max(q_num_heads, kv_num_heads)
        one = np.repeat(q[:, :, t], heads // q_num_heads, axis=1)
        read = np.repeat(state, heads // kv_num_heads, axis=1)
        rows.append(factor * np.einsum("bhk,bhkv->bhv", one, read).reshape(query.shape[0], -1))
    return np.stack(rows, axis=1).astype(query.dtype), state.astype(query.dtype)


def _updated(
    state: Array, k: Array, v: Array, decay: Array | None, beta: Array | None, rule: str
) -> Array:
    if "gated" in rule and decay is not None:
        state = state * np.exp(decay)
    if "delta" in rule and beta is not None:
        v = beta[..., 0] * (v - np.einsum("bhk,bhkv->bhv", k, state))
    return np.asarray(state + k[..., None] * v[:, :, None])


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3).astype(np.float32)


def _at(x: Array | None, t: int, keys: Array) -> Array | None:
    """Decay or update rate of step `t`, f32[b, heads, 1 or d_k, 1]."""
    if x is None:
        return None
    heads = keys.shape[1] if x.shape[-1] > 1 else 1
    return np.asarray(x[:, t].reshape(x.shape[0], heads, -1, 1), np.float32)


MOE_MEANINGS: Meanings = {
    ("com.microsoft", "MoE"): moe,
    ("com.microsoft", "QMoE"): quantised_moe,
    ("com.microsoft", "CausalConvWithState"): causal_conv_with_state,
    ("com.microsoft", "LinearAttention"): linear_attention,
}
