"""Continue prompts: a run over the prompt, then one per token; caches stay on their ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graph.errors import PlanError
from tpcore.caches import Caches
from tpcore.decoder import Decoder, find_decoder
from tpcore.distribute import read_held
from tpcore.feed import Feed, check_prompts, positions_needed
from tpcore.ranks import FIRST, Ranks
from tpcore.sample import Part, Sampler, Sampling

Show = Callable[[Sequence["int | None"]], None]
"""Told the new token of every row as soon as it is chosen; None for a row that has ended."""


@dataclass(frozen=True)
class Wanted:
    """What to continue, and how."""

    prompts: Sequence[Sequence[int]]
    new_tokens: int
    """Most tokens that are added to a row."""
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()
    """Tokens that end a row; they are no part of it."""


@dataclass
class Generated:
    """The new tokens of every row, and what they took."""

    tokens: list[list[int]]
    runs: list[tuple[float, float]] = field(default_factory=list)
    """When the choice of each token began and ended, by `time.perf_counter`."""
    exchange_fraction: float = 0.0
    """Share of the time that went into exchanges, waiting for slower ranks included."""

    @property
    def prefill_seconds(self) -> float:
        """Until the first token was chosen."""
        return sum(ended - began for began, ended in self.runs[:1])

    @property
    def step_seconds(self) -> list[float]:
        """Per token after the first one."""
        return [ended - began for began, ended in self.runs[1:]]

    @property
    def seconds_per_token(self) -> float:
        """Median over the steps; 0 where there was none."""
        return float(np.median(self.step_seconds)) if self.step_seconds else 0.0


def generate(ranks: Ranks, wanted: Wanted, show: Show = lambda tokens: None) -> Generated:
    """Continue the prompts on all ranks of the job; every rank chooses the same tokens.

    Raises:
        PlanError: the target is no decoder, or cannot continue these prompts.
        ExecutionError: a rank failed.
    """
    run = _Run(ranks, _examine(ranks, wanted), wanted)
    made = Generated([[] for _ in wanted.prompts])
    ended = [False] * len(wanted.prompts)
    while not all(ended) and len(run.feed.added) < wanted.new_tokens:
        began = time.perf_counter()
        chosen = run.step()
        made.runs.append((began, time.perf_counter()))
        ended = [end or int(token) in wanted.stops for end, token in zip(ended, chosen)]
        for row, token, end in zip(made.tokens, chosen, ended):
            row += [] if end else [int(token)]
        show([None if end else int(token) for token, end in zip(chosen, ended)])
    total = made.prefill_seconds + sum(made.step_seconds)
    made.exchange_fraction = run.exchanged_seconds / total if total else 0.0
    return made


def _examine(ranks: Ranks, wanted: Wanted) -> Decoder:
    """The decoder, if it can continue the prompts: every rank finds the same, so all raise."""
    try:
        decoder = find_decoder(ranks.target, next(iter(ranks.models.values())))
        check_prompts(decoder, wanted.prompts, wanted.new_tokens)
    except PlanError as error:
        error.agreed = True
        raise
    return decoder


class _Run:
    """The state of one generation."""

    def __init__(self, ranks: Ranks, decoder: Decoder, wanted: Wanted) -> None:
        self.feed = Feed(decoder, wanted.prompts)
        self._ranks, self._decoder = ranks, decoder
        room = positions_needed(self.feed.longest, wanted.new_tokens)
        self._caches = Caches(ranks, decoder, len(wanted.prompts), room)
        if self._caches.in_place and ranks.fixed_shapes:
            self.feed.room = self._caches.room
        self._sampler = Sampler(wanted.sampling, decoder.vocabulary, ranks.exchange)
        self._exchanged = ranks.exchange_seconds
        self._owned = {name: self._tokens_of(name) for name in ranks.models}

    @property
    def exchanged_seconds(self) -> float:
        """Time in exchanges so far."""
        return self._ranks.exchange_seconds - self._exchanged

    def step(self) -> np.ndarray:
        """Run once and choose the next token of every row."""
        ranks, decoder = self._ranks, self._decoder
        program = decoder.decode if self.feed.added else decoder.prefill
        arrays = self.feed.inputs()
        given = {name: ranks.to_tensor(array) for name, array in arrays.items()}
        outputs = ranks.run(program, [given | held for held in self._caches.held])
        self._caches.keep(outputs)
        name = decoder.logits.name
        logits = ranks.read(program, [{name: held[name]} for held in outputs])
        chosen = self._sampler.choose(
            [self._part(held[name], owned) for held, owned in zip(logits, self._owned[program])]
        )
        self.feed.added.append(chosen)
        return chosen

    def _part(self, logits: np.ndarray, tokens: np.ndarray) -> Part:
        places = self.feed.last_places(logits.shape[1])
        last = logits[np.arange(len(places)), places][:, : len(tokens)]
        return Part(np.asarray(last, np.float32), tokens)

    def _tokens_of(self, program: str) -> list[np.ndarray]:
        """Per rank the tokens that it chooses from; of whole logits only one rank does."""
        found = next(p for p in self._ranks.target.programs if p.name == program)
        text = found.shardings.get(self._decoder.logits.name, "R")
        held = read_held(text)
        vocabulary = np.arange(self._decoder.vocabulary)
        if held.is_replicated:
            return [vocabulary if rank == FIRST else vocabulary[:0] for rank in self._ranks.here]
        if held.dims != (2,):
            raise PlanError(
                f"output '{self._decoder.logits.name}' is held as {text}, and tokens can be chosen "
                "only where its vocabulary is whole or split. Shard the model without that pin."
            )
        return [held.layouts[0].indices(rank) for rank in self._ranks.here]


def memory_of(ranks: Ranks) -> list[int]:
    """Bytes of every process of the job; all ranks must ask."""
    messages = ranks.exchange([str(own_bytes()).encode()] * len(ranks.here))
    sizes = [int(message) for message in messages]
    return sizes if len(ranks.here) == 1 else sizes[:1]


def own_bytes() -> int:
    """Memory of this process, pages that it shares counted in proportion (PSS)."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
