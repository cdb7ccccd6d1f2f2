"""What a decoder's graph wants to be fed, and what to feed it step by step.

Three forms, told apart by the graph alone:

- *by place* (GroupQueryAttention): a row's tokens lie at the start of its cache, and a mask says
  how many there are, so shorter prompts are padded on the right;
- *appended* (Concat, Attention): a step is joined to the end of the cache, so shorter prompts are
  padded on the left, under a mask;
- *whole* (no cache): every step runs on all tokens so far, padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graph.errors import PlanError
from tpcore.inputs import InputSpec
from tpcore.target import Target
from tpcore.workload import DECODE, PREFILL

BY_PLACE, APPENDED, WHOLE = "by place", "appended", "whole"
GROUPED = "GroupQueryAttention"
COS_CACHE = 7
"""Operand of GroupQueryAttention with a row per position."""
LOGITS, LOGITS_DIMS = "logits", 3


@dataclass(frozen=True)
class Decoder:
    """The inputs and outputs of a model that continues token sequences."""

    tokens: InputSpec
    logits: InputSpec
    mask: InputSpec | None = None
    positions: InputSpec | None = None
    lengths: InputSpec | None = None
    """Number of the last position in each row's cache."""
    total: InputSpec | None = None
    """Positions in the caches, as one number."""
    caches: tuple[tuple[InputSpec, str], ...] = ()
    """Inputs that carry a state, and the outputs that they come from."""
    form: str = WHOLE
    limit: int | None = None
    """Most positions that it has an embedding for."""
    prefill: str = ""
    """The program for the prompt."""
    decode: str = ""
    """The program for a step."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens that logits are made for."""
        size = (self.logits.shape or ("",))[-1]
        return size if isinstance(size, int) else 0


def find_decoder(target: Target, model: ir.Model) -> Decoder:
    """Find out how to generate with a target; `model` is the graph of one of its ranks.

    Raises:
        PlanError: it does not continue token sequences, or wants what nobody here knows of.
    """
    specs = {spec.name: spec for spec in target.inputs}
    roles = {_role(spec, target.states): spec for spec in target.inputs}
    outputs = {spec.name: spec for spec in target.outputs}
    logits = [o for n, o in outputs.items() if n not in target.states.values() and _is_logits(o)]
    logits = [o for o in logits if o.name == LOGITS] or logits
    wrong = [f"it has no idea what to feed '{s.name}' ({s.text})" for s in _unknown(target)]
    if "tokens" not in roles:
        wrong.append("it has no input of token ids, integers of shape [batch, sequence]")
    if len(logits) != 1:
        wrong.append(f"it has {len(logits)} outputs of shape [batch, sequence, vocabulary]")
    wrong += [f"the length of its cache '{name}' is fixed" for name in _fixed(target, outputs)]
    nodes = [node for node in model.graph if node.op_type == GROUPED]
    if any(node.attributes.get_int("sliding_window_cache", 0) for node in nodes):
        wrong.append("its cache is a window that slides")
    if wrong:
        raise PlanError(
            f"tpcore cannot generate with '{target.name}': {'; '.join(wrong)}. Export a decoder "
            "with open batch and sequence, with its caches as inputs past… and outputs present…."
        )
    programs = program_names(target)
    return Decoder(
        tokens=roles["tokens"],
        logits=logits[0],
        **{role: roles.get(role) for role in ("mask", "positions", "lengths", "total")},
        caches=tuple((specs[past], present) for past, present in target.states.items()),
        form=WHOLE if not target.states else BY_PLACE if nodes else APPENDED,
        limit=_limit(roles.get("positions"), nodes),
        prefill=programs[0],
        decode=programs[-1],
    )


def program_names(target: Target) -> list[str]:
    """The programs that generation runs: for the prompt and for a step, or one for both."""
    names = [program.name for program in target.programs]
    return [PREFILL, DECODE] if {PREFILL, DECODE} <= set(names) else names[:1]


def _role(spec: InputSpec, states: Mapping[str, str]) -> str:
    """What an input is for; '' where nobody knows."""
    dims = len(spec.shape or ())
    if spec.name in states:
        return "cache"
    if "INT" not in spec.dtype:
        return "mask" if "mask" in spec.name and dims == 2 else ""
    for word, role, wanted in _ROLES:
        if word in spec.name and dims in wanted:
            return role
    return "tokens" if dims == 2 and spec.rows is not None else ""


_ROLES = (
    ("mask", "mask", (2,)),
    ("seqlens_k", "lengths", (1,)),
    ("total_seq", "total", (0, 1)),
    ("position", "positions", (1, 2)),
    ("input_ids", "tokens", (2,)),
)
"""Part of a name, what it means, and with how many dims."""


def _unknown(target: Target) -> list[InputSpec]:
    """Inputs without a meaning, or with the meaning of another one."""
    seen: set[str] = set()
    found = []
    for spec in target.inputs:
        role = _role(spec, target.states)
        if role == "" or (role != "cache" and role in seen):
            found.append(spec)
        seen.add(role)
    return found


def _is_logits(spec: InputSpec) -> bool:
    return len(spec.shape or ()) == LOGITS_DIMS and "FLOAT" in spec.dtype


def _fixed(target: Target, outputs: Mapping[str, InputSpec]) -> list[str]:
    """Caches that get longer although their length is a constant."""
    return [
        spec.name
        for spec in target.inputs
        if spec.name in target.states
        and all(isinstance(size, int) for size in spec.shape or ("",))
        and spec.shape != outputs[target.states[spec.name]].shape
    ]


def _limit(positions: InputSpec | None, nodes: Sequence[ir.Node]) -> int | None:
    tables = [node.inputs[COS_CACHE] for node in nodes if len(node.inputs) > COS_CACHE]
    rows = [table.shape[0] for table in tables if table is not None and table.shape is not None]
    limits = [size for size in rows if isinstance(size, int)]
    limits += [positions.rows] if positions is not None and positions.rows else []
    return min(limits, default=None)


@dataclass
class Feed:
    """The rows of tokens so far, and the inputs of each run on them; caches are left to others."""

    decoder: Decoder
    prompts: Sequence[Sequence[int]]
    added: list[np.ndarray] = field(default_factory=list)
    """The tokens of each step, int64[batch]."""

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
        tokens = self.added[-1][:, None] if step else self._rows()
        places = np.arange(self.longest - tokens.shape[1], self.longest)
        positions = places
        if d.positions is not None and len(d.positions.shape or ()) == 2:
            ahead = self.longest - self.counts  # of a row's first token, or of where it goes on
            behind = ahead if step or d.form == APPENDED else np.zeros_like(ahead)
            positions = np.maximum(places[None, :] - behind[:, None], 0)
        given = {
            d.tokens: tokens,
            d.mask: self._mask(),
            d.positions: positions,
            d.lengths: self.counts - 1,
            d.total: np.reshape(self.longest, [1] * len((d.total and d.total.shape) or ())),
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

    def _mask(self) -> np.ndarray:
        """Which positions of the caches hold a token, int64[batch, positions]."""
        places, counts = np.arange(self.longest)[None, :], self.counts[:, None]
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
        return ["attention_mask"] * blind + ["logits of every position"] * pruned
    alone = decoder.positions is not None and len(decoder.positions.shape or ()) == 2
    return [
        name
        for name, there in (("attention_mask", decoder.mask), ("position_ids", alone))
        if not there
    ]
