"""Mixtures of experts: every expert that some token chose runs on all tokens, weighted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .n_bits import unpack
from .row import Rows
from .tensors import Tensor

INTERLEAVED = 1
Linear = Callable[[Tensor, int], Tensor]
"""Tokens through one expert's matrix."""


def moe(
    x: Tensor,
    router: Tensor,
    fc1: Tensor,
    fc1_bias: Tensor | None,
    fc2: Tensor,
    fc2_bias: Tensor | None = None,
    fc3: Tensor | None = None,
    fc3_bias: Tensor | None = None,
    *,
    k: int = 1,
    normalize_routing_weights: int = 0,
    **activation: Any,
) -> Tensor:
    """The best `k` experts of every token, weighted by the softmax of their router logits."""
    first, second = _floats(fc1, fc1_bias), _floats(fc2, fc2_bias)
    third = None if fc3 is None else _floats(fc3, fc3_bias)
    weights = _routing(router, k, bool(normalize_routing_weights), None)
    return _mixed(x, weights, first, second, third, activation)


def quantised_moe(
    x: Tensor,
    router: Tensor,
    fc1: Tensor,
    fc1_scales: Tensor,
    fc1_bias: Tensor | None,
    fc2: Tensor,
    fc2_scales: Tensor,
    fc2_bias: Tensor | None = None,
    fc3: Tensor | None = None,
    fc3_scales: Tensor | None = None,
    fc3_bias: Tensor | None = None,
    *points: Tensor | None,
    k: int = 1,
    normalize_routing_weights: int = 0,
    expert_weight_bits: int = 4,
    fc1_expert_weight_bits: int = 0,
    fc2_expert_weight_bits: int = 0,
    fc3_expert_weight_bits: int = 0,
    block_size: int = 0,
    quant_type: str = "int",
    accuracy_level: int = 0,
    weights_prepacked: int = -1,
    **activation: Any,
) -> Tensor:
    """MoE with integer weights, one expert dequantised at a time.

    The softmax of the router is over the chosen experts alone, unless their weights are given.
    """
    if quant_type != "int" or any(p is not None for p in points[4:]):
        raise NotImplementedError(f"QMoE of type '{quant_type}'")
    zeros = [*points[:4], None, None, None, None]
    own = (fc1_expert_weight_bits, fc2_expert_weight_bits, fc3_expert_weight_bits)
    bits = [number or expert_weight_bits for number in own]
    first = _codes(fc1, fc1_scales, zeros[0], fc1_bias, bits[0], block_size)
    second = _codes(fc2, fc2_scales, zeros[1], fc2_bias, bits[1], block_size)
    third = None
    if fc3 is not None and fc3_scales is not None:
        third = _codes(fc3, fc3_scales, zeros[2], fc3_bias, bits[2], block_size)
    normalize = bool(normalize_routing_weights) or zeros[3] is None
    weights = _routing(router, k, normalize, zeros[3])
    return _mixed(x, weights, first, second, third, activation)


def _floats(weight: Tensor, bias: Tensor | None) -> Linear:
    def run(x: Tensor, expert: int) -> Tensor:
        return F.linear(x, weight[expert], None if bias is None else bias[expert])

    return run


def _codes(
    packed: Tensor,
    scales: Tensor,
    points: Tensor | None,
    bias: Tensor | None,
    bits: int,
    block: int,
) -> Linear:
    def run(x: Tensor, expert: int) -> Tensor:
        rates = scales[expert]
        numbers = unpack(packed[expert], bits).to(rates.dtype)
        middle: Any = 1 << (bits - 1)
        if points is not None:
            middle = unpack(points[expert], bits)[..., : rates.shape[-1]].to(rates.dtype)
        if block:
            shape = numbers.shape
            numbers = numbers.reshape(shape[0], -1, block)
            middle = middle if points is None else middle[..., None]
            whole = ((numbers - middle) * rates[..., None]).reshape(shape)
        else:
            middle = middle if points is None else middle.reshape(-1, 1)
            whole = (numbers - middle) * rates.reshape(-1, 1)
        return F.linear(x, whole.to(x.dtype), None if bias is None else bias[expert].to(x.dtype))

    return run


def _mixed(
    x: Tensor,
    weights: Tensor,
    first: Linear,
    second: Linear,
    third: Linear | None,
    activation: dict[str, Any],
) -> Tensor:
    tokens = x.reshape(-1, x.shape[-1])
    total = None
    for expert in range(weights.shape[1]):
        up = None if third is None else third(tokens, expert)
        inner = _activate(first(tokens, expert), up, **activation)
        made = second(inner.to(x.dtype), expert).to(torch.float32) * weights[:, expert, None]
        total = made if total is None else total + made
    return total.reshape(*x.shape[:-1], -1).to(x.dtype)  # type: ignore[union-attr]


def _routing(router: Tensor, k: int, normalize: bool, given: Tensor | None) -> Tensor:
    """Weight of every expert for every token, 0 for those not chosen, f32[tokens, experts].

    Of equal experts the last are chosen; experts of a weight below zero are passed over.
    """
    logits = router.to(torch.float32)
    weights = torch.softmax(logits, -1) if given is None else given.to(torch.float32)
    order = torch.argsort(logits, dim=-1, stable=True).flip(-1)[:, :k]
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, True)
    kept = torch.where(mask, weights, torch.zeros_like(weights))
    total = kept.sum(-1, True)
    shares = torch.where(total == 0, torch.zeros_like(kept), kept / total)
    return (shares if normalize else kept).clamp(min=0)


def _activate(
    first: Tensor,
    third: Tensor | None,
    *,
    activation_type: str = "relu",
    swiglu_fusion: int = 0,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    swiglu_limit: float = math.inf,
    swiglu_limit_after_activation: int = 0,
    use_sparse_mixer: int = 0,
) -> Tensor:
    if use_sparse_mixer:
        raise NotImplementedError("MoE with the sparse mixer")
    if activation_type != "swiglu":
        made = ACTIVATIONS[activation_type](first)
        return made if third is None else made * third
    gate, up = first, third
    if swiglu_fusion or up is None:
        interleaved = swiglu_fusion == INTERLEAVED
        gate, up = (first[:, ::2], first[:, 1::2]) if interleaved else torch.chunk(first, 2, -1)
    if not swiglu_limit_after_activation:
        gate = gate.clamp(max=swiglu_limit)
    gate = (gate * torch.sigmoid(activation_alpha * gate)).clamp(max=swiglu_limit)
    return gate * (up.clamp(-swiglu_limit, swiglu_limit) + activation_beta)


def gelu(x: Tensor) -> Tensor:
    """Gelu by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def identity(x: Tensor) -> Tensor:
    """The operand itself."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": gelu,
    "silu": F.silu,
    "identity": identity,
}
STANDARD: Rows = {}
MICROSOFT: Rows = {"MoE": moe, "QMoE": quantised_moe}
