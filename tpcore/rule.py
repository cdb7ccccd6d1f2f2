"""Sharding rules: what an op allows, as an einsum-like text.

    ... m k+, k n -> ... m n            MatMul: split k, and the result is a partial sum
    b s (q|k|v) -> b s q, b s k, b s v  Split of a packed dim
    b s (h g d) -> b s h g d            Reshape: a compound dim, major factor first

Per operand and result, separated by commas, one dim each separated by spaces:

- a name is a factor; the same name is the same split everywhere in the rule;
- `+` marks a reduction factor: its split makes the result `Partial(sum)`;
- `!` marks a factor that must stay whole;
- `(a b)` is a compound dim, `(a|b)` a packed one (segments one after another), `1` a dim of size
  one;
- `*` is an operand of any shape that must be whole, `-` one that is left out.

Sizes of factors that no dim gives by itself are written behind a semicolon: `; h=8 d=16`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from graph.dims import Dim

Segment = tuple[str, ...]
DimSpec = tuple[Segment, ...]
"""Segments of a packed dim; an ordinary dim is one segment, a dim of size one an empty segment."""
TensorSpec = tuple[DimSpec, ...]


class RuleSyntaxError(ValueError):
    """The text of a rule is malformed: an error in tpcore's own tables."""


@dataclass(frozen=True)
class Draws:
    """A run works on some indices of a factor only: on some of the experts."""

    factor: str
    count: Dim
    """How many indices it draws, one that is drawn twice counting twice."""
    multiply_adds: Dim
    """Of all draws together."""


@dataclass(frozen=True)
class Rule:
    """A parsed sharding rule."""

    text: str
    operands: tuple[TensorSpec | None, ...]
    """None for an operand that must be whole or is left out."""
    results: tuple[TensorSpec | None, ...]
    sums: frozenset[str]
    """Reduction factors."""
    whole: frozenset[str]
    """Factors that must not be split."""
    sizes: Mapping[str, Dim] = field(default_factory=dict)
    """Sizes of factors inside compound dims."""
    draws: Draws | None = None
    """What a run works on where it depends on the data."""

    def __str__(self) -> str:
        return self.text


def parse(text: str, sizes: Mapping[str, Dim] | None = None) -> Rule:
    """Parse the text of a rule; `sizes` adds to those behind its semicolon.

    Raises:
        RuleSyntaxError: with the place and what was expected there.
    """
    rule = _parsed(text)
    return replace(rule, sizes={**sizes, **rule.sizes}) if sizes else rule


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Rule:
    body, _, tail = text.partition(";")
    left, arrow, right = body.partition("->")
    if not arrow:
        raise RuleSyntaxError(f"rule '{text}' has no '->' between operands and results.")
    known: dict[str, Dim] = {}
    for item in tail.split():
        name, _, size = item.partition("=")
        if not size.isdigit():
            raise RuleSyntaxError(f"rule '{text}': '{item}' is no factor=size.")
        known[name] = int(size)
    marks: dict[str, set[str]] = {"+": set(), "!": set()}
    operands = tuple(_parse_tensor(part, text, marks) for part in left.split(","))
    results = tuple(_parse_tensor(part, text, marks) for part in right.split(","))
    rule = Rule(text, operands, results, frozenset(marks["+"]), frozenset(marks["!"]), known)
    _check(rule)
    return rule


def _parse_tensor(text: str, rule: str, marks: dict[str, set[str]]) -> TensorSpec | None:
    text = text.strip()
    if text in ("*", "-"):
        return None
    dims = re.findall(r"\([^()]*\)|[^\s()]+", text)
    if "".join(dims).replace(" ", "") != text.replace(" ", ""):
        raise RuleSyntaxError(f"rule '{rule}': unbalanced parentheses in '{text}'.")
    return tuple(_parse_dim(dim, rule, marks) for dim in dims)


def _parse_dim(text: str, rule: str, marks: dict[str, set[str]]) -> DimSpec:
    segments = text.strip("()").split("|")
    return tuple(
        tuple(_parse_factor(f, rule, marks) for f in segment.split() if f != "1")
        for segment in segments
    )


def _parse_factor(text: str, rule: str, marks: dict[str, set[str]]) -> str:
    match = re.fullmatch(r"([A-Za-z_]\w*)([+!]?)", text)
    if match is None:
        raise RuleSyntaxError(f"rule '{rule}': '{text}' is no factor name with an optional + or !.")
    name, mark = match.groups()
    if mark:
        marks[mark].add(name)
    return name


def factors_of(spec: TensorSpec | None) -> set[str]:
    """Names of all factors of a tensor."""
    return {name for dim in spec or () for segment in dim for name in segment}


def _check(rule: Rule) -> None:
    given = set().union(*(factors_of(spec) for spec in rule.operands))
    made = set().union(*(factors_of(spec) for spec in rule.results))
    both = rule.sums & made
    if both:
        raise RuleSyntaxError(
            f"rule '{rule.text}': reduction factor '{min(both)}' occurs in a result."
        )
    if rule.sums & rule.whole:
        raise RuleSyntaxError(
            f"rule '{rule.text}': factor '{min(rule.sums & rule.whole)}' is marked + and !."
        )
    packed = {
        name
        for spec in rule.operands
        for dim in spec or ()
        if len(dim) > 1
        for segment in dim
        for name in segment
    }
    lost = given - made - rule.sums - rule.whole - packed
    if lost and any(spec is not None for spec in rule.results):
        raise RuleSyntaxError(
            f"rule '{rule.text}': factor '{min(lost)}' occurs in no result. Mark it + or !."
        )
