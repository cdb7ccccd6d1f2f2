"""What a user prescribes: patterns of names, and how what they match is to be held.

    {"*.q_proj*": "colwise", "layers.*.mlp.down_proj": "rowwise", "embed*": "R", "h_3": "S(2)"}

A pattern (of `fnmatch`) is looked for among the names of values, of nodes, and of the modules that
torch.onnx writes into nodes; `layers.*.q_proj` finds `model.layers.0.q_proj` as well. A word says
what a weight means to its op, so it is the same for MatMul, MatMulNBits, Gather or Conv:

- `colwise`: a dim is split that the result has and the activations have not: output features;
- `rowwise`: a dim that is summed over, so that the results are partial: input features, vocabulary;
- `replicate`: the weight is whole on every rank;
- a placement, `R`, `P(sum)`, `S(1)` or `S(1) 0:8 8:16`, for weights and activations.

Hugging Face's other words for the same are known, so that a `base_model_tp_plan` can be given.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import onnx_ir as ir

from graph.errors import PlanError
from tpcore.planner.options import Choices
from tpcore.rule import factors_of
from tpcore.strategies import StrategySpace

COLWISE, ROWWISE, REPLICATE = "colwise", "rowwise", "replicate"
WORDS = {
    **dict.fromkeys(
        (COLWISE, "colwise_rep", "colwise_gather_output", "local_colwise", "packed_colwise",
         "local_packed_colwise", "embedding_colwise"), COLWISE,
    ),
    **dict.fromkeys(
        (ROWWISE, "rowwise_rep", "rowwise_split_input", "local_rowwise", "packed_rowwise",
         "local_packed_rowwise", "embedding_rowwise"), ROWWISE,
    ),
    **dict.fromkeys((REPLICATE, "replicated", "replicated_with_grad_allreduce"), REPLICATE),
}  # fmt: skip
FREE_WORDS = {
    "sequence_parallel", "gather", "all_reduce", "local", "isolated", "local_params",
    "ep_router", "grouped_gemm", "moe_tp_experts", "moe_identity_expert", "mla_kv_a_proj",
}  # fmt: skip
"""Hugging Face's words for what is no choice here, or none of a weight: the planner decides."""
PLACEMENT = re.compile(r"R|P\(sum\)|S\([0-9,]+\)( .*)?")
SCOPES = "pkg.torch.onnx.name_scopes"
PASSED_ON = {"Transpose", "Identity", "Cast"}
"""Ops that a weight may go through on its way to the op that means something to it."""


def resolve(space: StrategySpace, options: Choices, patterns: Mapping[str, str]) -> dict[str, str]:
    """Placement text per value name; of several patterns that match a value the last one counts.

    Raises:
        PlanError: a pattern matches nothing, or nothing that its word could mean.
    """
    names = _names(space.graph)
    values_of = {value.name or "": value for value in options.hubs}
    pins: dict[str, str] = {}
    for pattern, word in patterns.items():
        if not PLACEMENT.fullmatch(word) and word not in WORDS and word not in FREE_WORDS:
            raise PlanError(
                f"'{pattern}' is pinned to '{word}', which is neither a word nor a placement. "
                f"Words: {COLWISE}, {ROWWISE}, {REPLICATE}; placements: R, S(1), P(sum)."
            )
        # A name may hold what a pattern gives a meaning to.
        values = [values_of[pattern]] if pattern in values_of else _matches(names, pattern)
        found = {value.name or "": _placement(space, options, value, word) for value in values}
        chosen = {name: text for name, text in found.items() if text is not None}
        if not chosen and word not in FREE_WORDS:
            raise PlanError(
                f"'{pattern}' is pinned to '{word}', but nothing it matches can be held so: "
                f"{', '.join(list(found)[:3])}. Look at the placements with --explain NAME."
            )
        pins.update(chosen)
    return pins


def all_weights(space: StrategySpace, options: Choices, word: str) -> dict[str, str]:
    """Pins of all weights that can be held as `word` says: a baseline to compare plans with."""
    found = {
        value.name or "": _placement(space, options, value, word)
        for value in space.graph.initializers.values()
    }
    return {name: text for name, text in found.items() if text is not None}


def _names(graph: ir.Graph) -> dict[str, list[ir.Value]]:
    """Values by every name that they go by; nodes and modules stand for their weights."""
    names: dict[str, dict[ir.Value, None]] = {}
    for value in [*graph.inputs, *graph.initializers.values()]:
        names.setdefault(value.name or "", {})[value] = None
    for node in graph:
        for value in node.outputs:
            names.setdefault(value.name or "", {})[value] = None
        weights = [v for v in node.inputs if v is not None and v.const_value is not None]
        for name in (node.name or "", *_scopes(node)):
            if name:
                names.setdefault(name, {}).update(dict.fromkeys(weights))
    return {name: list(values) for name, values in names.items() if values}


def _scopes(node: ir.Node) -> list[str]:
    """Names of the modules that a node was exported from."""
    try:
        found = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return []
    return [scope for scope in found if isinstance(scope, str)] if isinstance(found, list) else []


def _matches(names: Mapping[str, list[ir.Value]], pattern: str) -> list[ir.Value]:
    forms = [before + pattern + after for before in ("", "*.") for after in ("", ".weight")]
    found = dict.fromkeys(
        value
        for name, values in names.items()
        if any(fnmatchcase(name, form) for form in forms)
        for value in values
    )
    if not found:
        raise PlanError(
            f"pattern '{pattern}' matches no value, node or module. {_nearest(names, pattern)}"
        )
    return list(found)


def _nearest(names: Iterable[str], pattern: str) -> str:
    plain = re.sub(r"[*?]", "", pattern).strip(".")
    wholes = {part: name for name in names for part in (name, *re.split(r"[./]", name))}
    found = get_close_matches(plain, sorted(wholes), n=1, cutoff=0.0)
    return f"The nearest name is '{wholes[found[0]]}'." if found else "The model has no names."


def _placement(space: StrategySpace, options: Choices, value: ir.Value, word: str) -> str | None:
    """The placement that a word means for a value, None where it means none."""
    if PLACEMENT.fullmatch(word):
        return word
    if value.const_value is None or word in FREE_WORDS:
        return None
    meaning = WORDS[word]
    if meaning == REPLICATE:
        return "R"
    possible = {space.sharding(value, place).dims for place in options.hubs[value]}
    for dim in _dims(space, value, meaning):
        if (dim,) in possible:
            return f"S({dim})"
    return None


def _dims(space: StrategySpace, value: ir.Value, meaning: str) -> list[int]:
    """Dims of a weight that are output or input features of the ops that read it."""
    found: list[int] = []
    for node, index in value.uses():
        bound = space.factors.nodes.get(node)
        if bound is None or index >= len(bound.rule.operands):
            continue
        if node.op_type in PASSED_ON:
            wanted = [
                space.atoms_of(node.outputs[0])[d] for d in _dims(space, node.outputs[0], meaning)
            ]
            own = space.atoms_of(value)
            found += [d for atoms in wanted for d, mine in enumerate(own) if mine and mine == atoms]
            continue
        rule, spec = bound.rule, bound.rule.operands[index] or ()
        active = set().union(
            *(
                factors_of(rule.operands[i])
                for i, v in enumerate(node.inputs[: len(rule.operands)])
                if v is not None and v.const_value is None
            )
        )
        made = set().union(*(factors_of(result) for result in rule.results)) - active
        names = rule.sums if meaning == ROWWISE else made
        found += [d for d in range(len(spec)) if factors_of(spec[d : d + 1]) & names]
    return found
