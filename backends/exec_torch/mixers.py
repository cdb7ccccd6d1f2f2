"""Mixers with a state in place of a cache: linear attention, causal convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from .attention import split_heads
from .row import Rows, many
from .tensors import Tensor


def causal_conv_with_state(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    *,
    activation: str = "none",
    channels_last: int = 0,
    dilation: int = 1,
    ndim: int = 1,
    **special: Any,
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over the past; x f[b, c, t] and state f[b, c, (k-1)·d]."""
    if ndim != 1 or any(v not in (0, -1) for v in special.values()):
        raise NotImplementedError("CausalConvWithState beyond one dim of time")
    data = x.transpose(1, 2) if channels_last else x
    reach = (weight.shape[-1] - 1) * dilation
    if past is None:
        whole = F.pad(data, [reach, 0])
    else:
        whole = torch.cat([past.transpose(1, 2) if channels_last else past, data], -1)
    made = F.conv1d(whole, weight, bias, dilation=dilation, groups=data.shape[1])
    made = made if activation == "none" else F.silu(made)
    after = whole[..., whole.shape[-1] - reach :]
    return (made.transpose(1, 2), after.transpose(1, 2)) if channels_last else (made, after)


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
    chunk_size: int = 64,
    state_window: int = 0,
) -> tuple[Tensor, Tensor]:
    """A state f[b, kv heads, d_k, d_v] read and updated token by token."""
    if state_window:
        raise NotImplementedError("LinearAttention with a window of states")
    q = split_heads(query, q_num_heads).to(torch.float32)
    k, v = (split_heads(t, kv_num_heads).to(torch.float32) for t in (key, value))
    if past is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    else:
        state = past.to(torch.float32)
    factor, heads = scale or 1 / math.sqrt(q.shape[-1]), max(q_num_heads, kv_num_heads)
    rows = []
    for t in range(query.shape[1]):
        rates = _at(decay, t, k), _at(beta, t, k)
        state = _updated(state, k[:, :, t], v[:, :, t], *rates, update_rule)
        one = q[:, :, t].repeat_interleave(heads // q_num_heads, 1)
        read = state.repeat_interleave(heads // kv_num_heads, 1)
        rows.append(factor * torch.einsum("bhk,bhkv->bhv", one, read).flatten(1))
    return torch.stack(rows, 1).to(query.dtype), state.to(query.dtype)


def _updated(
    state: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, beta: Tensor | None, rule: str
) -> Tensor:
    if "gated" in rule and decay is not None:
        state = state * torch.exp(decay)
    if "delta" in rule and beta is not None:
        v = beta[..., 0] * (v - torch.einsum("bhk,bhkv->bhv", k, state))
    return state + k[..., None] * v[:, :, None]


def _at(x: Tensor | None, t: int, keys: Tensor) -> Tensor | None:
    """Decay or update rate of step `t`, f32[b, heads, 1 or d_k, 1]."""
    if x is None:
        return None
    heads = keys.shape[1] if x.shape[-1] > 1 else 1
    return x[:, t].reshape(x.shape[0], heads, -1, 1).to(torch.float32)


STANDARD: Rows = {}
MICROSOFT: Rows = {
    "CausalConvWithState": many(causal_conv_with_state),
    "LinearAttention": many(linear_attention),
}
