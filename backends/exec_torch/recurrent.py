"""RNN, GRU and LSTM, step by step; the products with the input are taken for all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .row import Rows, many
from .tensors import Tensor

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Products of one step's input and the state before it, to the state after it."""


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "elu": lambda x: F.elu(x, 1.0 if alpha is None else alpha),
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01 if alpha is None else alpha),
        "thresholdedrelu": lambda x: torch.where(x > (1.0 if alpha is None else alpha), x, 0),
        "hardsigmoid": lambda x: torch.clamp(
            (0.2 if alpha is None else alpha) * x + (0.5 if beta is None else beta), 0, 1
        ),
        "affine": lambda x: (alpha or 1.0) * x + (beta or 0.0),
        "scaledtanh": lambda x: (alpha or 1.0) * torch.tanh((beta or 1.0) * x),
    }
    return found[name.lower()]


class _Cell:
    """The weights of one direction."""

    def __init__(self, operands: Sequence[Any], place: int, attributes: dict[str, Any]) -> None:
        parts: list[Any] = [None if t is None else t[place] for t in operands]
        self.w, self.r, bias, *rest = parts
        half = self.r.shape[0]
        self.w_bias = 0 if bias is None else bias[:half]
        self.r_bias = 0 if bias is None else bias[half:]
        self.peepholes = rest[0] if rest else None
        self.clip = attributes.get("clip")
        names = attributes["activations"]
        count = len(names) // attributes["directions"]
        own = range(place * count, (place + 1) * count)
        alphas = list(attributes.get("activation_alpha") or ()) + [None] * len(names)
        betas = list(attributes.get("activation_beta") or ()) + [None] * len(names)
        self.functions = [_activation(names[i], alphas[i], betas[i]) for i in own]

    def limit(self, x: Tensor) -> Tensor:
        """Clip what goes into an activation."""
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


def _rnn_step(cell: _Cell, attributes: dict[str, Any]) -> Step:
    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made = x + state[0] @ cell.r.T + cell.r_bias
        return (cell.functions[0](cell.limit(made)),)

    return step


def _gru_step(cell: _Cell, attributes: dict[str, Any]) -> Step:
    f, g = cell.functions

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        size = h.shape[-1]
        gates = x[..., : 2 * size] + h @ cell.r[: 2 * size].T + _part(cell.r_bias, 0, 2 * size)
        z, r = torch.chunk(f(cell.limit(gates)), 2, -1)
        last, bias = cell.r[2 * size :], _part(cell.r_bias, 2 * size, 3 * size)
        if attributes.get("linear_before_reset"):
            inner = r * (h @ last.T + bias)
        else:
            inner = (r * h) @ last.T + bias
        n = g(cell.limit(x[..., 2 * size :] + inner))
        return ((1 - z) * n + z * h,)

    return step


def _lstm_step(cell: _Cell, attributes: dict[str, Any]) -> Step:
    f, g, h_of = cell.functions

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, o, forget, n = torch.chunk(x + h @ cell.r.T + cell.r_bias, 4, -1)
        seen = [0, 0, 0] if cell.peepholes is None else torch.chunk(cell.peepholes, 3, -1)
        i, n = f(cell.limit(i + seen[0] * c)), g(cell.limit(n))
        forget = 1 - i if attributes.get("input_forget") else f(cell.limit(forget + seen[2] * c))
        c = forget * c + i * n
        return f(cell.limit(o + seen[1] * c)) * h_of(c), c

    return step


def _part(bias: Any, start: int, end: int) -> Any:
    return bias[start:end] if isinstance(bias, torch.Tensor) else bias


def _run(
    kind: Callable[[_Cell, dict[str, Any]], Step],
    defaults: tuple[str, ...],
    x: Tensor,
    weights: Sequence[Any],
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
    attributes: dict[str, Any],
) -> tuple[Tensor, ...]:
    direction = attributes.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    attributes = {"activations": defaults * count, **attributes, "directions": count}
    by_batch = bool(attributes.get("layout"))
    steps = x.transpose(0, 1) if by_batch else x
    size = weights[1].shape[-1]
    rows, ends = [], []
    for place in range(count):
        cell = _Cell(weights, place, attributes)
        start = tuple(
            steps.new_zeros(steps.shape[1], size) if s is None
            else (s[:, place] if by_batch else s[place])
            for s in initial
        )  # fmt: skip
        backwards = direction == "reverse" or place == 1
        made, end = _scan(kind(cell, attributes), cell, steps, start, lengths, backwards)
        rows.append(made)
        ends.append(end)
    whole = torch.stack(rows, 1)
    last = tuple(torch.stack(parts) for parts in zip(*ends))
    if by_batch:
        return whole.permute(2, 0, 1, 3), *(part.transpose(0, 1) for part in last)
    return whole, *last


def _scan(
    step: Step, cell: _Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    products = x @ cell.w.T + cell.w_bias
    rows: list[Any] = [None] * x.shape[0]
    for t in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
        after = step(products[t], state)
        if lengths is None:
            state, rows[t] = after, after[0]
            continue
        inside = (t < lengths)[:, None]
        state = tuple(torch.where(inside, new, old) for new, old in zip(after, state))
        rows[t] = torch.where(inside, after[0], torch.zeros_like(after[0]))
    return torch.stack(rows), state


def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    initial_h: Tensor | None = None, **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Elman's network, f[steps, directions, b, hidden]."""
    return _run(_rnn_step, ("Tanh",), x, (w, r, b), lengths, (initial_h,), attributes)


def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    initial_h: Tensor | None = None, **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gated recurrent unit."""
    names = ("Sigmoid", "Tanh")
    return _run(_gru_step, names, x, (w, r, b), lengths, (initial_h,), attributes)


def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    initial_h: Tensor | None = None, initial_c: Tensor | None = None, p: Tensor | None = None,
    **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Long short-term memory."""
    names, initial = ("Sigmoid", "Tanh", "Tanh"), (initial_h, initial_c)
    return _run(_lstm_step, names, x, (w, r, b, p), lengths, initial, attributes)


STANDARD: Rows = {"GRU": many(gru), "LSTM": many(lstm), "RNN": many(rnn)}
MICROSOFT: Rows = {}
