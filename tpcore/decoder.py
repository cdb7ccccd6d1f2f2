"""What a decoder's graph wants to be fed.

Three forms, told apart by the graph alone:

- *by place* (GroupQueryAttention): a row's tokens lie at the start of its cache, and a mask says
  how many there are, so shorter prompts are padded on the right; a cache may hold a window only;
- *appended* (Concat, Attention): a step is joined to the end of the cache, so shorter prompts are
  padded on the left, under a mask;
- *whole* (no cache): every step runs on all tokens so far, padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graph.errors import PlanError
from tpcore.inputs import InputSpec
from tpcore.target import Target
from tpcore.workload import DECODE, PREFILL

BY_PLACE, APPENDED, WHOLE = "by place", "appended", "whole"
GROUPED = "GroupQueryAttention"
COS_CACHE = 7
"""Operand of GroupQueryAttention with a row per position."""
CACHES = {3: 1, 4: 2}
"""Its operands that are caches -> the results that they become."""
LENGTH_DIM = 2
"""The dim of these caches that counts positions."""
CACHE_BRANCH = "use_cache_branch"
"""Input by which optimum's merged decoders choose one of two graphs."""
ENCODED = "encoder_"
"""How names of inputs begin that an encoder has made."""
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
    rooms: Mapping[str, int] = field(default_factory=dict)
    """Caches by place whose length is not ours to choose: the model's, or that of its window."""
    slides: bool = False
    """Whether some of them are windows, which take in new tokens without any padding."""
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
    _refuse_other_kinds(target)
    wrong = [f"it has no idea what to feed '{s.name}' ({s.text})" for s in _unknown(target)]
    if "tokens" not in roles:
        wrong.append("it has no input of token ids, integers of shape [batch, sequence]")
    if len(logits) != 1:
        wrong.append(f"it has {len(logits)} outputs of shape [batch, sequence, vocabulary]")
    wrong += [f"the length of its cache '{name}' is fixed" for name in _fixed(target, outputs)]
    nodes = [node for node in model.graph if node.op_type == GROUPED]
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
        rooms={name: room for node in nodes for name, room in _rooms(node).items()},
        slides=any(map(_slides, nodes)),
        limit=_limit(roles.get("positions"), nodes),
        prefill=programs[0],
        decode=programs[-1],
    )


def _refuse_other_kinds(target: Target) -> None:
    """Raise PlanError for graphs that are known to be something else than one decoder."""
    names = [spec.name for spec in target.inputs]
    if CACHE_BRANCH in names:
        raise PlanError(
            f"tpcore cannot generate with '{target.name}': it joins a graph without and one with a "
            f"cache by an If on its input '{CACHE_BRANCH}', and the branches of an If are not "
            "split. Export the model again with optimum-cli export onnx --no-post-process, and "
            "split its model.onnx, or decoder_with_past_model.onnx where it writes that."
        )
    encoded = [name for name in names if name.startswith(ENCODED)]
    if encoded:
        raise PlanError(
            f"tpcore cannot generate with '{target.name}': it is half of an encoder-decoder model "
            f"and reads '{encoded[0]}' of the other half, where generate runs a decoder alone. "
            "Split both halves, and run them from Python with tpcore.InferenceSession."
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


def _rooms(node: ir.Node) -> dict[str, int]:
    """The caches of a GroupQueryAttention that have a length of their own, and that length."""
    window = node.attributes.get_int("local_window_size", -1) if _slides(node) else None
    pasts = [node.inputs[operand] for operand in CACHES if operand < len(node.inputs)]
    sizes = {p.name or "": p.shape[LENGTH_DIM] for p in pasts if p is not None and p.shape}
    rooms = {name: size if isinstance(size, int) else window for name, size in sizes.items()}
    return {name: room for name, room in rooms.items() if room is not None}


def _slides(node: ir.Node) -> bool:
    """Whether its caches hold the last positions only."""
    return bool(node.attributes.get_int("sliding_window_cache", 0))


def _limit(positions: InputSpec | None, nodes: Sequence[ir.Node]) -> int | None:
    tables = [node.inputs[COS_CACHE] for node in nodes if len(node.inputs) > COS_CACHE]
    rows = [table.shape[0] for table in tables if table is not None and table.shape is not None]
    limits = [size for size in rows if isinstance(size, int)]
    limits += [room for node in nodes if not _slides(node) for room in _rooms(node).values()]
    limits += [positions.rows] if positions is not None and positions.rows else []
    return min(limits, default=None)
