"""Ops that reduce or scan along dims."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .row import Rows, number, plain, sizes
from .tensors import Tensor

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(function: Reduction, name: str) -> Callable[..., Tensor]:
    """A Reduce op: which dims, whether they stay, and what none at all means."""

    def run(
        x: Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        dims = () if axes is None else sizes(axes)
        if not dims and noop_with_empty_axes:
            return function(x.unsqueeze(0), (0,), False)
        dims = tuple(d % x.ndim for d in dims) or tuple(range(x.ndim))
        return function(x, dims, bool(keepdims)) if x.ndim else function(x[None], (0,), False)

    run.__name__ = run.__qualname__ = name
    return run


def _sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, dims, keep, dtype=x.dtype)


def _mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.mean(x, dims, keep)
    total = torch.sum(x, dims, keep)
    return torch.div(total, x.numel() // total.numel(), rounding_mode="trunc").to(x.dtype)


def _largest(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if x.numel():
        return torch.amax(x, dims, keep)
    low = -math.inf if x.dtype.is_floating_point else _lowest(x.dtype)
    return torch.full_like(torch.sum(x, dims, keep), low, dtype=x.dtype)


def _smallest(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if x.numel():
        return torch.amin(x, dims, keep)
    high = math.inf if x.dtype.is_floating_point else _highest(x.dtype)
    return torch.full_like(torch.sum(x, dims, keep), high, dtype=x.dtype)


def _lowest(dtype: Any) -> Any:
    return False if dtype == torch.bool else torch.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _product(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(torch.abs(x), dims, keep)


def _l2(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sqrt(_sum(x * x, dims, keep)).to(x.dtype)


def _sum_square(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, dims, keep)


def _log_sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.log(_sum(x, dims, keep)).to(x.dtype)


def _log_sum_exp(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    return torch.logsumexp(wide, dims, keep).to(x.dtype)


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest element is: the first such, or the last."""
    if not select_last_index:
        return torch.argmax(x, axis, bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(torch.flip(x, [axis]), axis, bool(keepdims))


def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the smallest element is: the first such, or the last."""
    if not select_last_index:
        return torch.argmin(x, axis, bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(torch.flip(x, [axis]), axis, bool(keepdims))


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Shares of powers of e along a dim."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of softmax."""
    return torch.log_softmax(x, axis)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """One at the first largest element along a dim, zero elsewhere."""
    place = torch.argmax(x, axis, True)
    return torch.zeros_like(x).scatter(axis, place, 1.0)


def bias_softmax(x: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int = 1) -> Tensor:
    """Softmax over all dims from `axis` on, of x plus a bias of the same rank."""
    total = x + bias
    return torch.softmax(total.flatten(axis % x.ndim), -1).reshape(total.shape)


def cum_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sums along a dim."""
    return _running(x, number(axis), bool(exclusive), bool(reverse), torch.cumsum, 0)


def cum_prod(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running products along a dim."""
    return _running(x, number(axis), bool(exclusive), bool(reverse), torch.cumprod, 1)


def _running(
    x: Tensor, dim: int, exclusive: bool, reverse: bool, scan: Callable[..., Tensor], start: int
) -> Tensor:
    whole = torch.flip(x, [dim]) if reverse else x
    if exclusive and x.shape[dim]:
        first = torch.full_like(whole.narrow(dim, 0, 1), start)
        whole = torch.cat([first, whole.narrow(dim, 0, x.shape[dim] - 1)], dim)
    made = scan(whole, dim, dtype=x.dtype)
    return torch.flip(made, [dim]) if reverse else made


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_square,
}
STANDARD: Rows = {
    **{op: plain(_reduction(function, op), 1) for op, function in _REDUCTIONS.items()},
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumProd": plain(cum_prod, 1),
    "CumSum": plain(cum_sum, 1),
    "Hardmax": hardmax,
    "LogSoftmax": log_softmax,
    "Softmax": softmax,
}
MICROSOFT: Rows = {"BiasSoftmax": bias_softmax}
