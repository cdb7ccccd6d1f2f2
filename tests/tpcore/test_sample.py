"""Choosing tokens from parts of the logits: what whole logits would give, by plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from graph.errors import ExecutionError
from graph.layout import Layout
from tpcore.sample import Part, Sampler, Sampling

SIZE = 40
LAYOUTS = {
    "whole": Layout.even(SIZE, 1),
    "even": Layout.even(SIZE, 4),
    "uneven": Layout.even(SIZE, 3),
    "packed": Layout.parse("0:10+30:40 10:30"),
    "on one rank": Layout.parse("0:40 - -"),
}


def parts_of(logits: np.ndarray, layout: Layout) -> list[Part]:
    """What each rank holds."""
    owned = [layout.indices(rank) for rank in range(layout.ranks)]
    return [Part(logits[:, tokens], tokens) for tokens in owned]


def draws(sampling: Sampling, logits: np.ndarray, steps: int, layout: Layout) -> np.ndarray:
    """Tokens of several steps on the same logits."""
    sampler = Sampler(sampling, logits.shape[1], list)
    return np.array([sampler.choose(parts_of(logits, layout)) for _ in range(steps)])


def logits_with_ties(rows: int = 2) -> np.ndarray:
    """Coarse values, so that many are equal."""
    random = np.random.default_rng(5)
    return np.round(random.standard_normal((rows, SIZE)) * 2, 0).astype(np.float32)


def allowed(row: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """Token -> probability, by the definition: temperature, then --top-k, then --top-p."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    order = order[: sampling.top_k or len(row)]
    weights = np.exp(row[order].astype(np.float64) / sampling.temperature)
    weights /= weights.sum()
    count = int((np.cumsum(weights) - weights < sampling.top_p).sum())
    weights = weights[:count] / weights[:count].sum()
    return dict(zip(order[:count], weights.tolist()))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_likeliest_token_is_the_first_of_equals(layout: Layout) -> None:
    logits = logits_with_ties()
    assert draws(Sampling(), logits, 1, layout)[0].tolist() == logits.argmax(1).tolist()
    one = Sampling(1.0, top_k=1)
    assert draws(one, logits, 1, layout)[0].tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(2.0, top_k=5),
        Sampling(1.0, top_p=0.7),
        Sampling(3.0, top_p=0.97),
        Sampling(1.5, top_k=12, top_p=0.6),
    ],
)
def test_tokens_come_as_often_as_the_definition_says(sampling: Sampling) -> None:
    """And no other ones; a share is off by less than five standard deviations."""
    logits, steps = logits_with_ties(), 4000
    chosen = draws(sampling, logits, steps, LAYOUTS["uneven"])
    for row, tokens in zip(logits, chosen.T):
        wanted = allowed(row, sampling)
        assert set(tokens.tolist()) <= set(wanted)
        for token, share in wanted.items():
            error = np.sqrt(share * (1 - share) / steps)
            assert abs((tokens == token).mean() - share) <= 5 * error + 1e-9


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_split_of_the_vocabulary_changes_nothing(layout: Layout) -> None:
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=7), Sampling(2.0, top_p=0.8)):
        logits = logits_with_ties()
        want = draws(sampling, logits, 20, LAYOUTS["whole"])
        assert (draws(sampling, logits, 20, layout) == want).all()


def test_a_wide_nucleus_is_asked_for_until_it_is_whole() -> None:
    """Nearly equal logits: most of the vocabulary is needed for 0.9, more than is first told."""
    logits = np.linspace(0, 0.01, 1000, dtype=np.float32)[None]
    asked = []

    def exchange(messages: Sequence[bytes]) -> list[bytes]:
        asked.append(len(messages))
        return list(messages)

    sampler = Sampler(Sampling(1.0, top_p=0.9), 1000, exchange)
    chosen = [sampler.choose(parts_of(logits, Layout.even(1000, 3)))[0] for _ in range(200)]
    assert 95 <= min(chosen) < 200 and len(asked) > 200


def test_logits_that_are_no_numbers_are_refused() -> None:
    logits = np.full((1, SIZE), np.nan, np.float32)
    with pytest.raises(ExecutionError, match="are no numbers"):
        draws(Sampling(), logits, 1, LAYOUTS["even"])
