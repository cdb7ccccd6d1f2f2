"""onnxruntime's fused elementwise ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .elementwise import gelu
from .row import Rows
from .tensors import Tensor


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Gelu of x + bias."""
    return F.gelu(x + bias)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu of x + bias by its tanh approximation."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """x · sigmoid(alpha · x)."""
    return x * torch.sigmoid(alpha * x)


def scaled_silu(x: Tensor, scale: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
    """SiLU of a multiple of x."""
    return F.silu(x * (alpha if scale is None else scale))


def swiglu(
    gate: Tensor,
    up: Tensor | None = None,
    *,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    limit: float = 0.0,
    round_activation: int = 0,
) -> Tensor:
    """gate · sigmoid(alpha · gate) · (up + beta), both clamped."""
    left, right = torch.chunk(gate, 2, -1) if up is None else (gate, up)
    if limit > 0:
        left, right = left.clamp(max=limit), right.clamp(-limit, limit)
    return left * torch.sigmoid(activation_alpha * left) * (right + activation_beta)


def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """x + bias + skip."""
    return x + bias + skip


def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """One half of x + bias times the Gelu of the other."""
    left, right = torch.chunk(x + bias, 2, -1)
    return left * F.gelu(right)


def gated_add(x: Tensor, y: Tensor, gate: Tensor, weight: Tensor | None = None) -> Tensor:
    """x + y · gate, the gate being sigmoid(gate @ weight) where there is a weight."""
    return x + y * (gate if weight is None else torch.sigmoid(gate @ weight))


STANDARD: Rows = {}
MICROSOFT: Rows = {
    "BiasAdd": bias_add,
    "BiasGelu": bias_gelu,
    "BiasSplitGelu": bias_split_gelu,
    "FastGelu": fast_gelu,
    "GatedAdd": gated_add,
    "Gelu": gelu,
    "QuickGelu": quick_gelu,
    "ScaledSiLU": scaled_silu,
    "SwiGLU": swiglu,
}
