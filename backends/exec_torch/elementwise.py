"""Ops that treat every element alone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from .row import Row, Rows
from .tensors import UNSIGNED, Tensor

NEAREST = 0.5


def identity(x: Tensor) -> Tensor:
    """The operand itself; what leaves a segment gets a buffer of its own there."""
    return x


def _dtype(*operands: Any) -> Any:
    return next(x.dtype for x in operands if isinstance(x, torch.Tensor))


def _in_int64(function: Callable[..., Tensor], keep: bool = True) -> Callable[..., Tensor]:
    """Compute on unsigned numbers of more than 8 bits in int64, which wraps alike."""

    def run(*operands: Any) -> Tensor:
        dtype = _dtype(*operands)
        if dtype not in UNSIGNED:
            return function(*operands)
        wide = (x.to(torch.int64) if isinstance(x, torch.Tensor) else x for x in operands)
        made = function(*wide)
        return made.to(dtype) if keep else made

    run.__name__ = run.__qualname__ = f"int64_{getattr(function, '__name__', 'op')}"
    return run


def divide(a: Any, b: Any) -> Tensor:
    """Quotient, of integers rounded towards zero."""
    if _dtype(a, b).is_floating_point:
        return operator.truediv(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder, with the sign of the divisor or, for fmod, of the dividend."""
    return _in_int64(torch.fmod if fmod else torch.remainder)(a, b)


def power(a: Tensor, b: Any) -> Tensor:
    """a to the power of b, in the type of a."""
    return torch.pow(a, b).to(a.dtype)


def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    """Shift bits left or right."""
    bits = UNSIGNED.get(a.dtype)
    if bits is None:
        return torch.bitwise_left_shift(a, b) if direction == "LEFT" else a >> b
    wide, by = a.to(torch.int64), b.to(torch.int64)
    if direction == "LEFT":
        return torch.where(by < bits, wide << by, 0).to(a.dtype)
    # int64 shifts its sign in: what a uint64 above its range shows is masked away.
    mask = torch.where(by == 0, -1, (1 << (63 - (by - 1).clamp(0, 62))) - 1)
    return ((wide >> by) & mask if bits == 64 else wide >> by).to(a.dtype)


def _of_all(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Fold a function of two tensors over any number of them."""

    def run(*operands: Tensor) -> Tensor:
        return reduce(function, operands)

    run.__name__ = run.__qualname__ = f"all_{getattr(function, '__name__', 'op')}"
    return run


def mean_of(*operands: Tensor) -> Tensor:
    """Mean of several tensors."""
    return reduce(torch.add, operands) / len(operands)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Limit from below, then from above."""
    if x.dtype in UNSIGNED:
        return _in_int64(clip)(x, low, high)
    x = x if low is None else _limit(x, low, torch.maximum, "min")
    return x if high is None else _limit(x, high, torch.minimum, "max")


def _limit(x: Tensor, bound: Any, by: Callable[..., Tensor], side: str) -> Tensor:
    return by(x, bound) if isinstance(bound, torch.Tensor) else torch.clamp(x, **{side: bound})


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether infinite, of the signs asked for."""
    positive = torch.isposinf(x) if detect_positive else torch.zeros_like(x, dtype=torch.bool)
    return positive | torch.isneginf(x) if detect_negative else positive


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha · (exp(x) - 1) below zero."""
    return F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha · (exp(x / alpha) - 1) below zero."""
    return F.celu(x, alpha)


def selu(
    x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    """gamma · elu(x)."""
    return gamma * F.elu(x, alpha)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """alpha · x below zero."""
    return F.leaky_relu(x, alpha)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x above alpha, else zero."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """A line, limited to 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


def shrink(x: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    """Towards zero by bias outside of ±lambd, zero inside."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def p_relu(x: Tensor, slope: Tensor) -> Tensor:
    """slope · x below zero."""
    return torch.where(x < 0, slope * x, x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x · sigmoid(alpha · x)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x."""
    return F.gelu(x, approximate=approximate)


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition holds, else y."""
    return torch.where(condition, x, y)


def dropout(
    x: Tensor,
    ratio: Any = None,
    training: Any = None,
    *,
    seed: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """The operand itself, unless in training."""
    share = NEAREST if ratio is None else float(ratio)
    if training is None or not bool(training) or share == 0:
        mask = torch.ones_like(x, dtype=torch.bool) if outputs > 1 else None
        return x, mask
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return torch.where(kept, x / (1 - share), torch.zeros_like(x)), kept


def _both(function: Callable[..., Tensor], keep: bool = True) -> Row:
    return Row(_in_int64(function, keep), scalar=(0, 1))


_UNARY = """Abs=abs Acos=acos Acosh=acosh Asin=asin Asinh=asinh Atan=atan Atanh=atanh
Ceil=ceil Cos=cos Cosh=cosh Erf=erf Exp=exp Floor=floor IsNaN=isnan Log=log
Neg=neg Not=logical_not Reciprocal=reciprocal Relu=relu Round=round Sigmoid=sigmoid Sign=sign
Sin=sin Sinh=sinh Sqrt=sqrt Tan=tan Tanh=tanh"""
_PAIRS = "And=logical_and Or=logical_or Xor=logical_xor"
_BITS = {
    f"Bitwise{op}": f"bitwise_{name}"
    for op, name in (("And", "and"), ("Not", "not"), ("Or", "or"), ("Xor", "xor"))
}


def _by_name(text: str) -> Rows:
    pairs = (item.partition("=") for item in text.split())
    return {op: getattr(torch, name) for op, _, name in pairs}


STANDARD: Rows = {
    **_by_name(_UNARY),
    **_by_name(_PAIRS),
    **{op: _in_int64(getattr(torch, name)) for op, name in _BITS.items()},
    "Add": _both(operator.add),
    "Sub": _both(operator.sub),
    "Mul": _both(operator.mul),
    "Div": _both(divide),
    "Equal": _both(operator.eq, keep=False),
    "Greater": _both(operator.gt, keep=False),
    "GreaterOrEqual": _both(operator.ge, keep=False),
    "Less": _both(operator.lt, keep=False),
    "LessOrEqual": _both(operator.le, keep=False),
    "BitShift": bit_shift,
    "Celu": celu,
    "Clip": Row(clip, scalar=(1, 2)),
    "Dropout": Row(dropout, scalar=(1, 2), many=True),
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": F.hardswish,
    "Identity": identity,
    "IsInf": is_inf,
    "LeakyRelu": leaky_relu,
    "Max": _of_all(_in_int64(torch.maximum)),
    "Mean": mean_of,
    "Min": _of_all(_in_int64(torch.minimum)),
    "Mish": F.mish,
    "Mod": modulo,
    "PRelu": p_relu,
    "Pow": Row(power, scalar=(1,)),
    "Selu": selu,
    "Shrink": shrink,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sum": _of_all(torch.add),
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    "Where": where,
}
MICROSOFT: Rows = {}
