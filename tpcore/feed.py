"""What to feed a decoder step by step, and which prompts it can continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graph.errors import PlanError
from tpcore.decoder import APPENDED, BY_PLACE, WHOLE, Decoder


@dataclass
class Feed:
    """The rows of tokens so far, and the inputs of each run on them; caches are left to others."""

    decoder: Decoder
    prompts: Sequence[Sequence[int]]
    added: list[np.ndarray] = field(default_factory=list)
    """The tokens of each step, int64[batch]."""
    room: int = 0
    """Positions that the masks of all steps cover, so that these have one shape; 0 for as many as
    there are tokens."""

    @property
    def counts(self) -> np.ndarray:
        """Tokens per row so far."""
        return np.array([len(prompt) for prompt in self.prompts]) + len(self.added)

    @property
    def longest(self) -> int:
        """Tokens of the longest row so far: the positions of the caches."""
        return int(self.counts.max())

    def inputs(self) -> dict[str, np.ndarray]:
        """Inputs of the next run: the whole prompt, then one token a row."""
        d = self.decoder
        step = bool(self.added) and d.form != WHOLE
        covered = self.room if step and self.room else self.longest
        tokens = self.added[-1][:, None] if step else self._rows()
        places = np.arange(self.longest - tokens.shape[1], self.longest)
        positions = places
        if d.positions is not None and len(d.positions.shape or ()) == 2:
            ahead = self.longest - self.counts  # of a row's first token, or of where it goes on
            behind = ahead if step or d.form == APPENDED else np.zeros_like(ahead)
            positions = np.maximum(places[None, :] - behind[:, None], 0)
        given = {
            d.tokens: tokens,
            d.mask: self._mask(covered),
            d.positions: positions,
            d.lengths: self.counts - 1,
            d.total: np.reshape(covered, [1] * len((d.total and d.total.shape) or ())),
        }
        return {
            spec.name: np.asarray(array, ir.DataType[spec.dtype].numpy(), order="C")
            for spec, array in given.items()
            if spec is not None
        }

    def last_places(self, sequence: int) -> np.ndarray:
        """Where in logits of `sequence` positions each row's last token is."""
        last = np.full(len(self.prompts), sequence - 1)
        if sequence == self.longest and self.decoder.form != APPENDED:
            return self.counts - 1
        return last

    def _mask(self, covered: int) -> np.ndarray:
        """Which positions of the caches hold a token, int64[batch, covered]."""
        places, counts = np.arange(covered)[None, :], self.counts[:, None]
        if self.decoder.form == APPENDED:
            return (places >= self.longest - counts).astype(np.int64)
        return (places < counts).astype(np.int64)

    def _rows(self) -> np.ndarray:
        """All tokens so far, int64[batch, longest]."""
        rows = np.zeros((len(self.prompts), self.longest), np.int64)
        for row, prompt, step in zip(rows, self.prompts, range(len(rows))):
            tokens = [*prompt, *(int(added[step]) for added in self.added)]
            start = self.longest - len(tokens) if self.decoder.form == APPENDED else 0
            row[start : start + len(tokens)] = tokens
        return rows


def positions_needed(prompt: int, new_tokens: int) -> int:
    """Tokens that are run: the last one that is chosen is not."""
    return prompt + new_tokens - 1


def check_prompts(decoder: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Raise PlanError, with all that is wrong, if these prompts cannot be continued."""
    lengths = sorted({len(prompt) for prompt in prompts})
    rows = decoder.tokens.rows or decoder.vocabulary
    batch, sequence = decoder.tokens.shape or ("", "")
    strange = sorted({t for prompt in prompts for t in prompt if t < 0 or (rows and t >= rows)})
    wrong = []
    if lengths[0] == 0:
        wrong.append("a prompt is empty")
    if strange:
        wrong.append(f"token {strange[0]} is none of the model's {rows}")
    if isinstance(batch, int) and batch != len(prompts):
        wrong.append(f"there are {len(prompts)} prompts where the model takes {batch}")
    if isinstance(sequence, int):
        wrong.append(f"the model takes {sequence} tokens at a time, neither more nor fewer")
    if len(lengths) > 1:
        missing = _missing_for_padding(decoder)
        wrong += [f"prompts have {lengths} tokens and the model has no {m}" for m in missing]
    if decoder.limit is not None and positions_needed(lengths[-1], new_tokens) > decoder.limit:
        wrong.append(
            f"{lengths[-1]} and {new_tokens} more tokens are beyond its {decoder.limit} positions"
        )
    if wrong:
        raise PlanError(
            f"the prompts cannot be continued: {'; '.join(wrong)}. Give other prompts, all of one "
            "length if need be, or fewer --max-new-tokens."
        )


def _missing_for_padding(decoder: Decoder) -> list[str]:
    """What a model needs and lacks so that padded rows come out as they would alone."""
    if decoder.form != APPENDED:
        pruned = (decoder.logits.shape or ())[1:2] != (decoder.tokens.shape or ())[1:2]
        blind = decoder.form == BY_PLACE and not (decoder.mask or decoder.lengths)
        needed = {"attention_mask": bool(blind), "logits of every position": pruned}
        needed["cache without a window"] = decoder.slides
        return [name for name, is_missing in needed.items() if is_missing]
    alone = decoder.positions is not None and len(decoder.positions.shape or ()) == 2
    return [
        name
        for name, there in (("attention_mask", decoder.mask), ("position_ids", alone))
        if not there
    ]
