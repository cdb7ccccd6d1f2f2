"""Prove the sharding rule of an op against the op itself.

A case is one node with its operands. Every strategy its rule generates is run split, through the
same steps a model goes through, and compared with the unsplit node: a rule is *wrong* where they
differ. Then every placement of operands and results is tried whatever the rule says; those that
happen to be right and are no strategy are *missing*. Data is random and of both signs and a
partial operand is a sum of unlike parts, since equal or positive parts hide ops that are not
linear.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graph.layout import Layout
from graph.mesh import Mesh
from tpcore.atoms import Atom
from tpcore.insert_reshards import ShardedGraph
from tpcore.ops import OPS
from tpcore.planner.options import Choices
from tpcore.sharding import SUM, WHOLE, Chain, DimSplit, Placement, Sharding
from tpcore.trial import Array, Case, Held, Trial

MAX_TRIALS = 400
"""Runs per case; a case that would take more has its missing strategies not looked for."""

LONE_SCALE = "scale and bias are weights, of which no one makes partial sums"
WEIGHT = "it is a weight, of which no one makes partial sums"
SCATTERED = "values are not partial where they are written into others"
MAYBE_LINEAR = "it is linear for some of its attributes only"
HEADS_FIRST = "values are not partial where attention starts: their heads are split before it"
SCALES = "scales are weights, of which no one makes partial sums"
KNOWN_MISSING: tuple[tuple[str, str, str], ...] = (
    ("Cast", r"P\(sum\) -> P\(sum\)", "a narrower type would round every part"),
    ("LayerNormalization", r"R, P.* -> P\(sum\)(, R)*", LONE_SCALE),
    ("RMSNormalization", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("SimplifiedLayerNormalization", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("SkipSimplifiedLayerNormalization", r".*P\(sum\), R, R", "the mean of an RMSNorm is zero"),
    ("SkipSimplifiedLayerNormalization", r"R, R, P.* -> P\(sum\)(, R)*", LONE_SCALE),
    ("SkipLayerNormalization", r"R, R, P.* -> P\(sum\)(, R)*", LONE_SCALE),
    ("Slice", r"S.* -> S.*", "a whole dim and the kept part of it are split evenly each by itself"),
    ("Reshape", r"S.* -> S.*", "a common factor of two dims, neither of which divides the other"),
    ("Attention", r"R, R, S\(3\).* -> S\(3\).*", "heads are split, not what is inside one"),
    ("Attention", r"R, R, P.* -> P\(sum\).*", HEADS_FIRST),
    ("GroupQueryAttention", r"R, R, P.* -> P\(sum\).*", HEADS_FIRST),
    ("MatMulNBits", r"P\(sum\), .* -> P\(sum\)", "activations are rounded, by accuracy_level"),
    ("MatMulNBits", r"S.*, S\(2\).*, R -> P\(sum\)", "a block is never cut"),
    ("MatMulNBits", r"R, R, P.* -> P\(sum\)", SCALES),
    ("GatherBlockQuantized", r"R, R, P.* -> P\(sum\)", SCALES),
    ("DequantizeLinear", r"R, P.* -> P\(sum\)", SCALES),
    ("DequantizeLinear", r"S.*, S.* -> S.*", "blocks that do not fill a dim are not split"),
    ("MatMulIntegerToFloat", r"R, R, .* -> P\(sum\)", SCALES),
    ("DynamicQuantizeMatMul", r"R, R, P.* -> P\(sum\)", SCALES),
    ("QGemm", r"R, .* -> P\(sum\)", SCALES),
    ("QAttention", r"R, R, P.* -> P\(sum\).*", SCALES),
    ("MultiHeadAttention", r"R, R, P.* -> P\(sum\).*", HEADS_FIRST),
    ("LinearAttention", r".*P.* -> P\(sum\).*", HEADS_FIRST),
    ("CausalConvWithState", r".*P.* -> P\(sum\).*", MAYBE_LINEAR),
    ("MoE", r"R, R, R, -, P\(sum\) -> P\(sum\)", WEIGHT),
    ("BatchNormalization", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("InstanceNormalization", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("GroupNormalization", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("GroupNorm", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("SkipGroupNorm", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("GatedRMSNorm", r"R, P.* -> P\(sum\)", LONE_SCALE),
    ("GatedAdd", r"P\(sum\), R, P\(sum\) -> P\(sum\)", MAYBE_LINEAR),
    ("Dropout", r"P.* -> P\(sum\).*", "its mask is no sum"),
    ("Pad", r"P.* -> P\(sum\)", MAYBE_LINEAR),
    ("RoiAlign", r"P\(sum\), R, R -> P\(sum\)", MAYBE_LINEAR),
    ("Scatter", r"P.* -> P\(sum\)", SCATTERED),
    ("ScatterElements", r"P.* -> P\(sum\)", SCATTERED),
    ("ScatterND", r"P.* -> P\(sum\)", SCATTERED),
    ("RotaryEmbedding", r"R,.* P\(sum\), P\(sum\) -> P\(sum\)", "the cache is a constant"),
)
"""(op, pattern of the missing placement, why it is not offered)."""


@dataclass(frozen=True)
class Findings:
    """What the validator found for one case on a number of ranks."""

    case: Case
    ranks: int
    strategies: tuple[str, ...]
    """Placements of every strategy that was run."""
    wrong: tuple[str, ...]
    """Strategies whose result differs, with the numbers."""
    missing: tuple[str, ...]
    """Placements that would be right, are no strategy and have no known reason."""
    excused: tuple[str, ...]
    """Missing placements with the reason why they are not offered."""
    trials: int
    """Placements tried beside the strategies."""
    not_tried: str = ""
    """Why missing strategies were not looked for."""

    @property
    def is_clean(self) -> bool:
        """Whether the rule is right and complete."""
        return not self.wrong and not self.missing

    def __str__(self) -> str:
        lines = [f"{self.case} on {self.ranks} ranks: {len(self.strategies)} strategies"]
        for title in ("wrong", "missing", "excused"):
            lines += [f"  {title}: {text}" for text in getattr(self, title)]
        return "\n".join(lines + ([f"  not tried: {self.not_tried}"] if self.not_tried else []))


def validate(case: Case, ranks: int) -> Findings:
    """Run every strategy of the case's node on `ranks` ranks, and look for missing ones.

    Raises:
        GraphError: the unsplit node itself does not run.
    """
    trial = Trial.of(case, ranks)
    offered: dict[str, str | None] = {}
    for strategy in trial.space.strategies(trial.node):
        held = trial.shardings_of(strategy)
        offered[trial.text(held)] = trial.problem_with(strategy)
    wrong = [f"{text}: {problem}" for text, problem in offered.items() if problem]
    found, excused, trials, not_tried = _search(trial, set(offered))
    return Findings(
        case, ranks, tuple(offered), tuple(wrong), tuple(found), tuple(excused), trials, not_tried
    )


def _search(trial: Trial, offered: set[str]) -> tuple[list[str], list[str], int, str]:
    """Missing placements, those of them with a known reason, number of runs, why there are none."""
    if trial.space.ranks == 1:
        return [], [], 0, "one rank holds everything"
    if any(array.size == 0 for array in trial.inputs.values()):
        return [], [], 0, "an operand is empty, and right however it is held"
    options = [_options(trial, value) for value in trial.values]
    runs = math.prod(len(choices) for choices in options[: _varied(trial)])
    if runs > MAX_TRIALS:
        return [], [], 0, f"it takes {runs} runs, more than {MAX_TRIALS}"
    missing: list[str] = []
    excused: list[str] = []
    for held in _right_placements(trial, options):
        text = trial.text(held)
        reason = _reason(trial.node.op_type, text)
        if text not in offered and reason:
            excused.append(f"{text}: {reason}")
        elif text not in offered:
            missing.append(text)
    return missing, excused, runs, ""


def _varied(trial: Trial) -> int:
    """Number of values whose placement changes what the ranks run: operands, and results if the
    node's local form depends on them."""
    spec = OPS.get((trial.node.domain, trial.node.op_type))
    looks = spec is not None and spec.localize is not None and spec.looks_at_results
    made = len(trial.node.outputs) if looks else 0
    return len(trial.values) - len(trial.node.outputs) + made


def _reason(op_type: str, text: str) -> str | None:
    for op, pattern, reason in KNOWN_MISSING:
        if op == op_type and re.fullmatch(pattern, text):
            return reason
    return None


def _options(trial: Trial, value: ir.Value) -> list[Sharding]:
    """Replicated, partial, or split evenly on one dim."""
    if value.const_value is not None or value.dtype is None:
        return [WHOLE]
    dims = trial.shapes.dims.get(value, ())
    options = [WHOLE, SUM] if value.dtype.is_floating_point() else [WHOLE]
    for dim, size in enumerate(dims):
        if isinstance(size, int) and size >= trial.space.ranks:
            layout = Layout.even(size, trial.space.ranks)
            split = DimSplit(dim, size, layout)
            options.append(Sharding(Placement("S"), (split,)))
    return options


def _right_placements(trial: Trial, options: list[list[Sharding]]) -> Iterator[Held]:
    """All placements whose results are right; the node is localized for each of them."""
    varied = _varied(trial)
    for given in itertools.product(*options[:varied]):
        results = _run(trial, dict(zip(trial.values, given, strict=False)))
        if results is None:
            continue
        for rest in itertools.product(*options[varied:]):
            held = dict(zip(trial.values, (*given, *rest), strict=True))
            if trial.difference(held, results) is None:
                yield held


def _run(trial: Trial, held: Held) -> list[dict[str, Array]] | None:
    """Results of all ranks, None where the placement makes the op fail."""
    sharded = ShardedGraph(
        trial.model, Mesh.of(tp=trial.space.ranks), trial.shapes, trial.plan(Choices())
    )
    sharded.shardings = {v.name or "": s for v, s in held.items() if not s.is_replicated}
    sharded.chains = {trial.node.name or "": _chain(trial, held)}
    try:
        return trial.run(sharded, held)
    except Exception:  # the ranks' shapes do not fit each other, one way or another
        return None


def _chain(trial: Trial, held: Held) -> Chain:
    """The major atom of a split dim, by which attributes that hold sizes are made local."""
    for value, sharding in held.items():
        for dim in sharding.dims:
            items = trial.space.factors.normal_dims(value)[dim]
            if items and isinstance(items[0], Atom) and isinstance(items[0].size, int):
                return Chain((items[0],), trial.space.ranks)
    return Chain((), trial.space.ranks)
