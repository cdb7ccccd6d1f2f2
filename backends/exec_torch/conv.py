"""Convolutions, of floats and of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .quant import quantize
from .row import Rows
from .tensors import Tensor
from .windows import edges_of, padded, reach_of

Sizes = Sequence[int]


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Convolution over any number of dims."""
    count = x.ndim - 2
    step, spread = strides or [1] * count, dilations or [1] * count
    edges = edges_of(x.shape[2:], reach_of(weight.shape[2:], spread), step, pads, auto_pad)
    around = [low for low, _ in edges]
    if any(low != high for low, high in edges):
        x, around = padded(x, edges), [0] * count
    return torch.convolution(x, weight, bias, step, around, spread, False, [0] * count, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Each element of x f[b, c, …] adds a kernel f[c, o/group, …]."""
    count = x.ndim - 2
    step, spread = strides or [1] * count, dilations or [1] * count
    extra = output_padding or [0] * count
    made = torch.convolution(x, weight, bias, step, [0] * count, spread, True, [0] * count, group)
    for dim, more in enumerate(extra):
        full, same = made.shape[2 + dim] + more, x.shape[2 + dim] * step[dim]
        wanted = None if output_shape is None else output_shape[dim - count]
        edges = None if pads is None else (pads[dim], pads[dim + count])
        made = _cut(made, 2 + dim, _cuts(full, same, auto_pad, wanted, edges), more, bias)
    return made


def _cuts(
    full: int, same: int, auto_pad: str, wanted: int | None, pads: tuple[int, int] | None
) -> tuple[int, int]:
    """How much of a dim of the full result is left out before and after."""
    if wanted is None and not auto_pad.startswith("SAME"):
        return pads or (0, 0)
    less = full - (same if wanted is None else wanted)
    before = less // 2 if auto_pad == "SAME_UPPER" else less - less // 2
    return before, less - before


def _cut(x: Tensor, dim: int, cuts: tuple[int, int], more: int, bias: Tensor | None) -> Tensor:
    before, after = cuts[0], cuts[1] - more
    if after < 0:
        # Beyond the last kernel there is nothing but the bias.
        shape = list(x.shape)
        shape[dim] = -after
        rest = x.new_zeros(shape)
        if bias is not None:
            rest = rest + bias.reshape(1, -1, *[1] * (x.ndim - 2))
        x, after = torch.cat([x, rest], dim), 0
    return x.narrow(dim, before, x.shape[dim] - before - after)


def _centred(x: Tensor, zero: Tensor | None, rows: bool = False) -> Tensor:
    wide = x.to(torch.float64)
    if zero is None:
        return wide
    point = zero.to(torch.float64)
    return wide - (point.reshape(-1, *[1] * (x.ndim - 1)) if rows and point.numel() > 1 else point)


def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    """Convolution of codes minus their zero points, i32."""
    made = conv(_centred(x, x_zero), _centred(weight, weight_zero, True), **attributes)
    return made.to(torch.int32)


def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
    *,
    channels_last: int = 0,
    **attributes: Any,
) -> Tensor:
    """Convolution of codes, quantised; the bias is i32 in the scale of the product."""
    planes = torch.movedim(x, -1, 1) if channels_last else x
    total = conv(_centred(planes, x_zero), _centred(weight, weight_zero, True), **attributes)
    view = (1, -1, *[1] * (total.ndim - 2))
    total = total if bias is None else total + bias.to(torch.float64).reshape(view)
    factor = (x_scale * weight_scale / y_scale).to(torch.float32)
    y = total.to(torch.float32) * (factor.reshape(view) if factor.numel() > 1 else factor)
    made = quantize(y, torch.ones_like(y_scale), y_zero, y_zero.dtype)
    return torch.movedim(made, 1, -1) if channels_last else made


def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    offset_group: int = 1,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Convolution of an image whose taps are moved by offsets f[b, groups·taps·2, h, w]."""
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    step, spread, edge = strides or [1, 1], dilations or [1, 1], pads or [0] * 4
    out_h, out_w = offset.shape[2:]
    moved = offset.reshape(batch, offset_group, rows * columns, 2, out_h, out_w)
    device = x.device
    tap = torch.arange(rows * columns, device=device)
    starts = (torch.arange(out_h, device=device) * step[0] - edge[0])[None, :, None]
    lefts = (torch.arange(out_w, device=device) * step[1] - edge[1])[None, None]
    at_y = starts + (tap // columns * spread[0])[:, None, None] + moved[:, :, :, 0]
    at_x = lefts + (tap % columns * spread[1])[:, None, None] + moved[:, :, :, 1]
    grid = torch.stack([(2 * at_x + 1) / width - 1, (2 * at_y + 1) / height - 1], -1)
    each = x.reshape(batch * offset_group, -1, height, width)
    grid = grid.reshape(batch * offset_group, rows * columns * out_h, out_w, 2)
    taps = torch.nn.functional.grid_sample(each, grid.to(x.dtype), align_corners=False)
    taps = taps.reshape(batch, offset_group, -1, rows * columns, out_h, out_w)
    if mask is not None:
        taps = taps * mask.reshape(batch, offset_group, 1, rows * columns, out_h, out_w)
    taps = taps.reshape(batch, group, channels // group * rows * columns, out_h, out_w)
    kernels = weight.reshape(group, -1, taps.shape[2])
    made = torch.einsum("bgkhw,gok->bgohw", taps, kernels).reshape(batch, -1, out_h, out_w)
    return made if bias is None else made + bias.reshape(1, -1, 1, 1)


STANDARD: Rows = {
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "QLinearConv": q_linear_conv,
}
MICROSOFT: Rows = {"QLinearConv": q_linear_conv}
