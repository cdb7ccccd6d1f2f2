"""What the pooling ops of ai.onnx mean: all windows at once (onnx.reference goes one by one).

Inputs come by position, attributes by name, with the operator's defaults. Shapes: x[batch,
channels, d1, …, dn], kernel and strides of n sizes, pads of n begins and n ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from graph.moe_reference import Array, Meanings, Outputs

Sizes = Sequence[int] | None


class _Windows:
    """Where the windows of a pooling op on x lie; the attributes that all of them have."""

    def __init__(
        self,
        x: Array,
        *,
        kernel_shape: Sequence[int],
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sizes = None,
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> None:
        given, count = x.shape[2:], len(kernel_shape)
        self.kernel = tuple(kernel_shape)
        self.dims = tuple(range(x.ndim, x.ndim + count))
        """Of what `of` returns, those of the kernel."""
        self.step, self.spread = strides or [1] * count, dilations or [1] * count
        self.reach = [d * (k - 1) + 1 for d, k in zip(self.spread, kernel_shape)]
        self.begin, self.end, self.sizes = [], [], []
        for i, size in enumerate(given):
            begin, end = (pads[i], pads[count + i]) if pads else (0, 0)
            step, reach = self.step[i], self.reach[i]
            if auto_pad.startswith("SAME"):
                missing = max((-(-size // step) - 1) * step + reach - size, 0)
                begin = missing // 2 if auto_pad == "SAME_UPPER" else missing - missing // 2
                end = missing - begin
            room = size + begin + end - reach
            windows = (-(-room // step) if ceil_mode else room // step) + 1
            if ceil_mode and (windows - 1) * step >= size + begin:
                windows -= 1  # a window must not begin behind the elements
            self.begin.append(begin)
            self.end.append(end)
            self.sizes.append(windows)

    def of(self, x: Array, fill: float, pads: float | None = None) -> Array:
        """The windows of x as [batch, channels, *windows, *kernel].

        Beyond x lies `fill`, and where the op pads `pads` if that is given.
        """
        none = [(0, 0)] * 2
        if pads is not None:
            x = np.pad(x, none + list(zip(self.begin, self.end)), constant_values=pads)
        given = x.shape[2:]
        begin = [0] * len(given) if pads is not None else self.begin
        needed = [(n - 1) * s + r for n, s, r in zip(self.sizes, self.step, self.reach)]
        end = [max(need - b - size, 0) for need, b, size in zip(needed, begin, given)]
        padded = np.pad(x, none + list(zip(begin, end)), constant_values=fill)
        dims = tuple(range(2, x.ndim))
        every = sliding_window_view(padded, self.reach, axis=dims)
        steps = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(self.sizes, self.step))
        taps = tuple(slice(None, None, d) for d in self.spread)
        found: Array = every[np.s_[:, :, *steps, *taps]]
        return found


def average_pool(x: Array, *, count_include_pad: int = 0, **attributes: Any) -> Outputs:
    """The mean of each window; what lies beyond the elements counts if asked, as zero."""
    at = _Windows(x, **attributes)
    ones = np.ones((1, 1, *x.shape[2:]))
    counted = at.of(ones, 0.0, float(count_include_pad)).sum(at.dims)
    return ((at.of(x, 0.0).sum(at.dims, np.float64) / counted).astype(x.dtype),)


def lp_pool(x: Array, *, p: int = 2, **attributes: Any) -> Outputs:
    """The p-norm of each window."""
    at = _Windows(x, **attributes)
    summed = (np.abs(at.of(x, 0.0)).astype(np.float64) ** p).sum(at.dims)
    return ((summed ** (1.0 / p)).astype(x.dtype),)


def max_pool(x: Array, *, storage_order: int = 0, **attributes: Any) -> Outputs:
    """The greatest element of each window, and its number in all of x."""
    at = _Windows(x, **attributes)
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    windows = at.of(x, least)
    flat = windows.reshape(*windows.shape[: x.ndim], prod(at.kernel))
    best = flat.argmax(-1)
    taps = np.unravel_index(best, at.kernel)
    places = list(np.indices(best.shape))
    for i, tap in enumerate(taps):
        places[2 + i] = places[2 + i] * at.step[i] - at.begin[i] + tap * at.spread[i]
    if storage_order:  # only the dims of an image are counted the other way round
        images = np.ravel_multi_index(tuple(places[:2]), x.shape[:2]) * prod(x.shape[2:])
        inner = np.ravel_multi_index(tuple(places[:1:-1]), x.shape[:1:-1])
        numbers = images + inner
    else:
        numbers = np.ravel_multi_index(tuple(places), x.shape)
    return np.take_along_axis(flat, best[..., None], -1)[..., 0], numbers.astype(np.int64)


POOL_MEANINGS: Meanings = {
    ("", "AveragePool"): average_pool,
    ("", "LpPool"): lp_pool,
    ("", "MaxPool"): max_pool,
}
