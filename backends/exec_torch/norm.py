"""Normalisations; means and variances are taken in float32 or wider, as stash_type has it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .row import Rows, many
from .tensors import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, ...]:
    """LayerNorm over the dims from `axis` on, its mean and its inverse deviation."""
    dims = x.shape[axis % x.ndim :]
    if scale.shape == dims:
        made, mean, inverse = torch.native_layer_norm(x, dims, scale, bias, epsilon)
        return made, mean, inverse
    made, mean, inverse = torch.native_layer_norm(x, dims, None, None, epsilon)
    made = made * scale
    return made if bias is None else made + bias, mean, inverse


def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Divide by the root mean square over the dims from `axis` on, then scale."""
    return _rms(x, scale, axis, epsilon)[0].to(x.dtype)


def _rms(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    dims, wide = tuple(range(axis % x.ndim, x.ndim)), _wide(x)
    inverse = torch.rsqrt((wide * wide).mean(dims, True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale, inverse


def simplified_layer_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, Tensor]:
    """RMSNorm, and the inverse root mean square."""
    return _rms(x, scale, axis, epsilon)


def skip_simplified_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Any, ...]:
    """RMSNorm of x + skip + bias; result 3 is that sum."""
    total = x + skip if bias is None else x + skip + bias
    normed, inverse = _rms(total, gamma, -1, epsilon)
    return normed, torch.zeros_like(inverse), inverse, total


def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Any, ...]:
    """LayerNorm of x + skip + bias over the last dim; result 3 is that sum."""
    total = x + skip if bias is None else x + skip + bias
    return *layer_norm(total, gamma, beta, epsilon=epsilon), total


def embed_layer_norm(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    words: Tensor,
    places: Tensor,
    segments: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,
) -> tuple[Any, ...]:
    """LayerNorm of word plus position plus segment embeddings; length of each row; that sum."""
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    total = words[input_ids] + places[steps if position_ids is None else position_ids]
    if segments is not None and segment_ids is not None:
        total = total + segments[segment_ids]
    rows = input_ids.shape[0]
    lengths = torch.zeros(rows, dtype=torch.int32, device=input_ids.device)
    if mask is not None:
        lengths = mask.sum(1, dtype=torch.int32)
    return F.layer_norm(total, gamma.shape, gamma, beta, epsilon), lengths, total


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> tuple[Tensor, ...]:
    """Shift and scale each channel by running statistics, or in training by its own."""
    view = (1, -1, *[1] * (x.ndim - 2))
    running = (mean, variance)
    if training_mode:
        dims = (0, *range(2, x.ndim))
        mean, variance = x.mean(dims), x.var(dims, correction=0)
        pairs = zip(running, (mean, variance))
        running = tuple(old * momentum + new * (1 - momentum) for old, new in pairs)
    factor = scale * torch.rsqrt(variance.to(scale.dtype) + epsilon)
    shift = bias - mean.to(scale.dtype) * factor
    return (x * factor.reshape(view) + shift.reshape(view)).to(x.dtype), *running


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalise every channel of every image."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    opset: int = 21,
) -> Tensor:
    """Normalise groups of channels; until opset 20 scale and bias are one per group."""
    if scale.shape[0] != x.shape[1]:
        each = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def nhwc_group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """GroupNorm of x (+ skip + bias) f[b, h, w, channels], with SiLU if asked; and that sum."""
    total = x if channels_last else torch.movedim(x, 1, -1)
    if skip is not None:
        skip = skip[:, None, None] if skip.ndim == 2 else skip
        total = total + (skip if channels_last else torch.movedim(skip, 1, -1))
    total = total if bias is None else total + bias
    planes = torch.movedim(_wide(total), -1, 1)
    made = F.group_norm(planes, groups, gamma.to(planes.dtype), beta.to(planes.dtype), epsilon)
    made = (F.silu(made) if activation else made).to(x.dtype)
    if not channels_last:
        return made, torch.movedim(total, -1, 1)
    return torch.movedim(made, 1, -1), total


def gated_rms_norm(
    x: Tensor, scale: Tensor, gate: Tensor, *, activation: str = "silu", epsilon: float = 1e-5
) -> Tensor:
    """RMSNorm of every `len(scale)` features, times an activated gate."""
    heads = _wide(x).reshape(*x.shape[:-1], -1, scale.shape[0])
    normed = heads * torch.rsqrt((heads * heads).mean(-1, True) + epsilon) * scale
    wide = _wide(gate)
    gated = torch.sigmoid(wide) if activation == "sigmoid" else F.silu(wide)
    return (normed.reshape(x.shape) * gated).to(x.dtype)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the p-norm along a dim; what is zero stays so."""
    norm = torch.linalg.vector_norm(x, p, axis, True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Divide by a norm over `size` neighbouring channels."""
    before = (size - 1) // 2
    edges = [0, 0] * (x.ndim - 2) + [before, size - 1 - before]
    squares = F.pad(x * x, edges).unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * squares) ** beta


STANDARD: Rows = {
    "BatchNormalization": many(batch_norm),
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response_norm,
    "LayerNormalization": many(layer_norm),
    "LpNormalization": lp_normalization,
    "RMSNormalization": rms_norm,
    "SimplifiedLayerNormalization": many(simplified_layer_norm),
}
MICROSOFT: Rows = {
    "EmbedLayerNormalization": many(embed_layer_norm),
    "GatedRMSNorm": gated_rms_norm,
    "GroupNorm": many(nhwc_group_norm),
    "SkipGroupNorm": many(nhwc_group_norm),
    "SkipLayerNormalization": many(skip_layer_norm),
    "SkipSimplifiedLayerNormalization": many(skip_simplified_layer_norm),
}
