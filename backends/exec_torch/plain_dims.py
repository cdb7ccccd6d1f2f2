"""How many dims the plain results of ops have: at most one, known before the run.

Each function takes what is known of the operands and gives what is known of the result: None where
it has more dims, or where that cannot be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dims:
    """What is known of a plain value before the run."""

    rank: int
    length: int | None = None
    """Of a list, where it is known."""


Rank = Callable[[Sequence[Dims], dict[str, Any]], Dims | None]


def widest(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    lengths = [d.length for d in given if d.rank]
    known = [n for n in lengths if n is not None]
    length = max(known) if known and len(known) == len(lengths) else None
    return Dims(max((d.rank for d in given), default=0), length)


def as_first(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    return given[0]


def list(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    return Dims(1) if given[0].rank == 1 else None


def picked(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    return given[1] if given[0].rank == 1 else None


def joined(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    lengths = [d.length for d in given]
    known = [n for n in lengths if n is not None]
    return Dims(1, sum(known) if len(known) == len(lengths) else None)


def squeezed(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    return Dims(0)


def unsqueezed(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    return Dims(1, 1) if given[0].rank == 0 and given[1].length in (1, None) else None


def shaped(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    length = given[-1].length
    return Dims(length) if length is not None and length <= 1 else None


def counted(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    return Dims(1)


def reduced(given: Sequence[Dims], attributes: dict[str, Any]) -> Dims | None:
    if len(given) == 1 and attributes.get("noop_with_empty_axes"):
        return None
    keep = given[0].rank == 1 and attributes.get("keepdims", 1)
    return Dims(1, 1) if keep else Dims(0)
