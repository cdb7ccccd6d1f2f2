"""Fourier transforms and random numbers."""

from __future__ import annotations

from typing import Any

import torch

from .row import Rows, number, plain, sizes
from .tensors import Tensor


def dft(
    x: Tensor,
    length: Any = None,
    axis: Any = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
    opset: int = 20,
) -> Tensor:
    """Discrete Fourier transform of f[..., 1 or 2 (real, imaginary)]; `axis` was an attribute."""
    default = -2 if opset >= 20 else 1
    dim, count = number(axis, default), number(length)
    dim = dim % x.ndim
    if inverse and onesided:  # the other half is the mirror image of this one
        half = torch.view_as_complex(x.contiguous())
        return torch.fft.irfft(half, count or 2 * (x.shape[dim] - 1), dim)[..., None]
    whole = torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    if x.shape[-1] == 2:
        whole = torch.view_as_complex(x.contiguous())
    made = (torch.fft.ifft if inverse else torch.fft.fft)(whole, count, dim)
    if onesided:
        made = made.narrow(dim, 0, made.shape[dim] // 2 + 1)
    return torch.view_as_real(made).to(x.dtype)


def stft(
    x: Tensor, step: Any, window: Tensor | None = None, length: Any = None, *, onesided: int = 1
) -> Tensor:
    """Fourier transforms of overlapping frames, f[b, frames, bins, 2]."""
    size = number(length) if length is not None else window.shape[0]  # type: ignore[union-attr]
    frames = x[..., 0].unfold(1, size, number(step))
    frames = frames if window is None else frames * window
    if x.shape[-1] == 2:
        other = x[..., 1].unfold(1, size, number(step))
        frames = torch.complex(frames, other if window is None else other * window)
    made = torch.fft.fft(frames)
    made = made[..., : size // 2 + 1] if onesided else made
    return torch.view_as_real(made)


def _generator(seed: float | None, device: Any) -> Any:
    return torch.Generator(device).manual_seed(int(seed or 0))


def random_normal(
    *, shape: Any, device: Any, made: Any = None, dtype: Any = None, mean: float = 0.0,
    scale: float = 1.0, seed: float | None = None,
) -> Tensor:  # fmt: skip
    """Numbers of a normal distribution, the same in each run of one seed."""
    drawn = torch.randn(sizes(shape), generator=_generator(seed, device), device=device)
    return (drawn * scale + mean).to(dtype or made or torch.float32)


def random_uniform(
    *, shape: Any, device: Any, made: Any = None, dtype: Any = None, low: float = 0.0,
    high: float = 1.0, seed: float | None = None,
) -> Tensor:  # fmt: skip
    """Numbers of a uniform distribution, the same in each run of one seed."""
    drawn = torch.rand(sizes(shape), generator=_generator(seed, device), device=device)
    return (drawn * (high - low) + low).to(dtype or made or torch.float32)


def random_normal_like(x: Tensor, *, dtype: Any = None, **attributes: Any) -> Tensor:
    """Normal numbers of the shape of x."""
    return random_normal(shape=x.shape, device=x.device, dtype=dtype or x.dtype, **attributes)


def random_uniform_like(x: Tensor, *, dtype: Any = None, **attributes: Any) -> Tensor:
    """Uniform numbers of the shape of x."""
    return random_uniform(shape=x.shape, device=x.device, dtype=dtype or x.dtype, **attributes)


STANDARD: Rows = {
    "DFT": plain(dft, 1, 2),
    "RandomNormal": random_normal,
    "RandomNormalLike": random_normal_like,
    "RandomUniform": random_uniform,
    "RandomUniformLike": random_uniform_like,
    "STFT": plain(stft, 1, 3),
}
MICROSOFT: Rows = {}
