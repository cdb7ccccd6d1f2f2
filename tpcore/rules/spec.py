"""What tpcore knows of one op, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from graph.dims import Dim, Dims
from graph.shapes import Context
from tpcore.rule import Rule, RuleSyntaxError, parse

if TYPE_CHECKING:
    from tpcore.localizers import Localizer

RuleMaker = Callable[[Context], "Rule | None"]

ALL: tuple[int, ...] = ()
"""Every operand, in `OpSpec.linear`."""


@dataclass(frozen=True)
class OpSpec:
    """Rule and local form of one op."""

    rule: RuleMaker
    """Makes the rule for a node; None where this node's attributes or shapes allow no split."""
    linear: tuple[tuple[int, ...], ...] = ()
    """Sets of operands that may be `Partial(sum)` together, the others but addends replicated."""
    addends: tuple[int, ...] = ()
    """Operands added to a partial result: under a split contraction only one rank may hold them."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> product of factors whose local size it must hold: {"num_heads": "h g"}."""
    localize: Localizer | None = None
    """Rewrites a node whose operands or results became local."""
    looks_at_results: bool = True
    """Whether `localize` depends on how results are held, not on operands alone."""
    reads_shape_only: bool = False
    """The result depends on the operand's shape alone, so any placement of the operand will do."""
    states: tuple[tuple[int, int], ...] = ()
    """(operand, result) pairs that carry a state from one run to the next, as a KV cache does."""
    carries: Callable[[ir.Node], bool] = lambda node: True
    """Whether they do so in this node."""

    def rule_of(self, context: Context) -> Rule | None:
        """The rule of a node, None where its shapes are not known well enough or not the op's."""
        try:
            return self.rule(context)
        except RuleSyntaxError:
            raise
        except (KeyError, IndexError, ValueError, TypeError):
            return None


def fixed(text: str) -> RuleMaker:
    """A rule that is the same for every node of the op."""
    rule = parse(text)
    return lambda context: rule


def names(count: int, prefix: str = "d") -> list[str]:
    """Factor names d0, d1, …"""
    return [f"{prefix}{i}" for i in range(count)]


def mark(labels: Sequence[str], chosen: Sequence[int], sign: str) -> list[str]:
    """Labels with `sign` behind the chosen ones."""
    return [name + sign if i in chosen else name for i, name in enumerate(labels)]


def ones_as_1(labels: Sequence[str], dims: Dims) -> str:
    """Text of a tensor whose dims of size one carry no factor."""
    return " ".join("1" if size == 1 else name for name, size in zip(labels, dims, strict=True))


def broadcast_text(labels: Sequence[str], dims: Dims) -> str:
    """Text of an operand that is broadcast, right-aligned, to the dims named `labels`."""
    return ones_as_1(labels[len(labels) - len(dims) :], dims)


def axes_of(context: Context, operand: int, rank: int) -> list[int] | None:
    """Axes given as attribute or operand; None where left out. KeyError if not constant."""
    axes = context.attribute("axes")
    if axes is None:
        if context.operand(operand) is None:
            return None
        axes = list(context.contents(operand).flat)
    return [int(axis) % rank for axis in axes]


def make(text: str, sizes: Mapping[str, Dim] | None = None) -> Rule:
    """Parse a rule's text, with the gaps closed that absent dims leave in it."""
    return parse(" ".join(text.split()), sizes)
