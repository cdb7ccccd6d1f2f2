"""Choose the next token from logits whose vocabulary may be split over the ranks.

Every rank looks at its own part and tells the others a few candidates (value, token); from what all
have told, every rank chooses the same token. The logits themselves are never gathered.

A random choice is the largest of logit / temperature + Gumbel noise (Gumbel-max: the same
distribution as drawing from the softmax). The noise belongs to the token, step and row, so one seed
gives one sequence however the vocabulary is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graph.errors import ExecutionError

FIRST_CANDIDATES = 64
"""How many tokens of each rank are looked at first where --top-p alone limits the choice."""

Exchange = Callable[[Sequence[bytes]], list[bytes]]
"""Tells the messages of the ranks in this process to all, and returns those of all."""


@dataclass(frozen=True)
class Sampling:
    """How to choose a token."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Choose among so many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """What one rank holds of the logits of the last position of every row."""

    logits: np.ndarray
    """f32[batch, its part of the vocabulary]."""
    tokens: np.ndarray
    """int64[its part of the vocabulary]: which tokens those are."""


class Sampler:
    """Chooses the tokens of one generation, step by step."""

    def __init__(self, sampling: Sampling, vocabulary: int, exchange: Exchange) -> None:
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._exchange = exchange
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, parts: Sequence[Part]) -> np.ndarray:
        """The next token of every row, int64[batch], from the parts of the ranks that are here."""
        s = self._sampling
        if s.temperature == 0 or s.top_k == 1:
            return self._best(parts)
        batch = parts[0].logits.shape[0]
        drawn = self._random.random((batch, self._vocabulary))
        heat = np.float32(s.temperature)
        parts = [Part(part.logits / heat, part.tokens) for part in parts]
        if s.top_k == 0 and s.top_p >= 1:
            noisy = [
                Part(part.logits + _gumbel(drawn[:, part.tokens]), part.tokens) for part in parts
            ]
            return self._best(noisy)
        found = self._top_k(parts) if s.top_k else self._top_p(parts)
        return np.array([_draw(row, drawn[index]) for index, row in enumerate(found)], np.int64)

    def _best(self, parts: Sequence[Part]) -> np.ndarray:
        """The likeliest token of every row."""
        return np.array([row[0, 1] for row in self._top(parts, 1)[0]], np.int64)

    def _top_k(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Per row the likeliest (logit, token) pairs that --top-k and --top-p leave."""
        s = self._sampling
        rows = [row[: s.top_k] for row in self._top(parts, s.top_k)[0]]
        sums = [log_sum_exp(row[:, 0]) for row in rows]
        return [row[: _nucleus(row, s.top_p, total)] for row, total in zip(rows, sums)]

    def _top_p(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Per row the likeliest pairs that --top-p leaves; asks for more until it knows them."""
        count = FIRST_CANDIDATES
        while True:
            rows, sums = self._top(parts, count)
            counts = [_nucleus(r, self._sampling.top_p, total) for r, total in zip(rows, sums)]
            if count >= self._vocabulary or all(n < len(r) for n, r in zip(counts, rows)):
                return [row[:n] for row, n in zip(rows, counts)]
            count *= 4

    def _top(self, parts: Sequence[Part], count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Per row the likeliest pairs of all ranks, in order, and the log of the sum of all exp.

        A rank tells its `count` likeliest pairs. What is less likely than the last of them is left
        out of the row, as the rank may hold others that are likelier.
        """
        told = [_read(message) for message in self._exchange([_message(p, count) for p in parts])]
        rows = []
        for index in range(len(told[0][1])):
            pairs = [pairs[index] for pairs, _ in told]
            floor = max((p[-1, 0] for p in pairs if len(p) >= count), default=-np.inf)
            merged = np.concatenate(pairs)
            merged = merged[np.lexsort((merged[:, 1], -merged[:, 0]))]
            rows.append(merged[merged[:, 0] >= floor])
        return rows, np.logaddexp.reduce([sums for _, sums in told])


def _nucleus(pairs: np.ndarray, top_p: float, log_sum: float) -> int:
    """How many of the likeliest pairs it takes to have the probability `top_p`."""
    if top_p >= 1:
        return len(pairs)
    reached = np.cumsum(np.exp(pairs[:, 0] - log_sum)) >= top_p
    return int(reached.argmax()) + 1 if reached.any() else len(pairs)


def _draw(pairs: np.ndarray, drawn: np.ndarray) -> int:
    """The token of the largest logit with noise."""
    tokens = pairs[:, 1].astype(np.int64)
    return int(tokens[(pairs[:, 0] + _gumbel(drawn[tokens])).argmax()])


def _gumbel(uniform: np.ndarray) -> np.ndarray:
    """Noise of a Gumbel distribution from numbers in [0, 1)."""
    noise: np.ndarray = -np.log(-np.log(np.maximum(uniform, np.finfo(np.float64).tiny)))
    return noise


def _message(part: Part, count: int) -> bytes:
    """Number of rows; per row the log of the sum of all exp; per row `count` pairs, or all."""
    if np.isnan(part.logits).any():
        raise ExecutionError("the logits are no numbers (NaN), so no token can be chosen.")
    pairs = np.array([_likeliest(row, part.tokens, count) for row in part.logits], np.float64)
    sums = [log_sum_exp(row) if count > 1 else 0.0 for row in part.logits]  # one needs no sum
    return np.concatenate([[len(sums)], sums, pairs.reshape(-1)]).tobytes()


def log_sum_exp(row: np.ndarray) -> float:
    """The log of the sum of all exp; -inf of nothing."""
    if not row.size:
        return -np.inf
    largest = float(row.max())
    return largest + float(np.log(np.exp(row - largest).sum(dtype=np.float64)))


def _likeliest(row: np.ndarray, tokens: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest values with their tokens, equal ones by rising token."""
    if count == 1 and row.size:
        best = int(row.argmax())
        return np.array([[row[best], tokens[best]]], np.float64)
    if count < row.size:
        least = np.partition(row, row.size - count)[row.size - count]
        chosen = np.flatnonzero(row >= least)
        row, tokens = row[chosen], tokens[chosen]
    order = np.lexsort((tokens, -row))[:count]
    return np.stack([row[order], tokens[order].astype(np.float64)], axis=1)


def _read(message: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pairs f64[batch, told, 2] and log-sums f64[batch] of a rank."""
    numbers = np.frombuffer(message, np.float64)
    batch = int(numbers[0])
    return numbers[1 + batch :].reshape(batch, -1, 2), numbers[1 : 1 + batch]
