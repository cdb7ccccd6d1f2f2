"""What ops of ai.onnx mean that onnx.reference lacks or gets wrong: one function each.

Inputs come by position, None where left out; attributes by name, with the operator's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from graph.moe_reference import Array, Meanings, Outputs


def scatter(data: Array, indices: Array, updates: Array, *, axis: int = 0) -> Outputs:
    """ScatterElements, by its name until opset 11."""
    places: list[Array] = list(np.indices(indices.shape))
    places[axis] = indices
    made = data.copy()
    made[tuple(places)] = updates
    return (made,)


def upsample(
    x: Array, scales: Array | None = None, *, mode: str = "nearest", **old: Any
) -> Outputs:
    """Repeat elements by whole factors (opsets 7 to 9)."""
    if mode != "nearest":
        raise NotImplementedError("Upsample other than nearest")
    for axis, scale in enumerate(old["scales"] if scales is None else scales):
        places = (np.arange(int(x.shape[axis] * scale)) / scale).astype(np.int64)
        x = np.take(x, places, axis=axis)
    return (x,)


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Outputs:
    """Each element of x f[b, c, …] adds a kernel f[c, o/group, …] (one in onnx.reference)."""
    count = x.ndim - 2
    step, spread = strides or [1] * count, dilations or [1] * count
    extra = output_padding or [0] * count
    reach = [d * (k - 1) + 1 for d, k in zip(spread, weight.shape[2:], strict=True)]
    full = [s * (n - 1) + r for s, n, r in zip(step, x.shape[2:], reach, strict=True)]
    grouped = x.reshape(x.shape[0], group, -1, *x.shape[2:])
    kernels = weight.reshape(group, -1, *weight.shape[1:])
    made = np.zeros((x.shape[0], group, weight.shape[1], *np.add(full, extra)), x.dtype)
    for tap in np.ndindex(*weight.shape[2:]):
        at = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, spread, step, x.shape[2:], strict=True)
        )
        made[np.s_[:, :, :, *at]] += np.einsum(
            "bgc...,gco->bgo...", grouped, kernels[np.s_[:, :, :, *tap]]
        )
    made = made.reshape(x.shape[0], -1, *made.shape[3:])
    begin, sizes = _window(made.shape[2:], x.shape[2:], step, auto_pad, output_shape, pads)
    cut = tuple(slice(b, b + n) for b, n in zip(begin, sizes, strict=True))
    made = made[np.s_[:, :, *cut]]
    return (made if bias is None else made + bias.reshape(-1, *[1] * count),)


def _window(
    full: Sequence[int],
    given: Sequence[int],
    strides: Sequence[int],
    auto_pad: str,
    output_shape: Sequence[int] | None,
    pads: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """First index and size of what ConvTranspose keeps of the full result, per dim."""
    count = len(full)
    if output_shape is None and not auto_pad.startswith("SAME"):
        pads = pads or [0] * 2 * count
        return list(pads[:count]), [f - pads[i] - pads[count + i] for i, f in enumerate(full)]
    sizes = [n * s for n, s in zip(given, strides, strict=True)]
    sizes = sizes if output_shape is None else list(output_shape[-count:])
    cuts = [f - n for f, n in zip(full, sizes, strict=True)]
    return [cut // 2 if auto_pad == "SAME_UPPER" else cut - cut // 2 for cut in cuts], sizes


def local_response_normalization(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Outputs:
    """Divide by a norm over `size` neighbouring channels (onnx.reference takes one image's)."""
    before = (size - 1) // 2
    widths = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
    squares = sliding_window_view(np.pad(x, widths) ** 2, size, axis=1).sum(axis=-1)
    return ((x / (bias + alpha / size * squares) ** beta).astype(x.dtype),)


def global_lp_pool(x: Array, *, p: int = 2) -> Outputs:
    """The p-norm over all dims but the first two."""
    axes = tuple(range(2, x.ndim))
    return ((np.sum(np.abs(x) ** p, axis=axes, keepdims=True) ** (1 / p)).astype(x.dtype),)


ONNX_MEANINGS: Meanings = {
    ("", "ConvTranspose"): conv_transpose,
    ("", "GlobalLpPool"): global_lp_pool,
    ("", "LRN"): local_response_normalization,
    ("", "Scatter"): scatter,
    ("", "Upsample"): upsample,
}
