"""Sizes of dimensions: an int, or a polynomial in named symbols.

>>> batch, seq = symbol("batch"), symbol("seq")
>>> str(batch * seq * 8), str(divide(batch * seq * 8, seq * 2))
('8*batch*seq', '4*batch')
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Monomial = tuple[str, ...]


@dataclass(frozen=True)
class Expr:
    """A polynomial with integer coefficients that is not a constant."""

    terms: tuple[tuple[Monomial, int], ...]
    """(sorted symbol names, coefficient) pairs, sorted."""

    def __add__(self, other: Dim) -> Dim:
        return _build([*self.terms, *_terms(other)])

    def __mul__(self, other: Dim) -> Dim:
        return _build(
            (tuple(sorted(a + b)), x * y) for a, x in self.terms for b, y in _terms(other)
        )

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: int) -> Dim:
        return self * -1 + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        return " + ".join(_term_text(names, factor) for names, factor in self.terms)

    __repr__ = __str__

    def substitute(self, values: Mapping[str, int], default: int | None = None) -> int:
        """Value of the polynomial; symbols missing in `values` count as `default`."""
        total = 0
        for names, factor in self.terms:
            for name in names:
                bound = values.get(name, default)
                if bound is None:
                    raise KeyError(name)
                factor *= bound
            total += factor
        return total

    @property
    def symbols(self) -> set[str]:
        """Names that occur in it."""
        return {name for names, _ in self.terms for name in names}


Dim = int | Expr
Dims = tuple[Dim, ...]


def symbol(name: str) -> Expr:
    """The size called `name`."""
    return Expr((((name,), 1),))


def from_text(text: str) -> Dim:
    """Read an exporter's dim or ours: sums of products, `2*s0*s1 - s2 + 1`; others are opaque."""
    total: Dim = 0
    for term in re.sub(r"\s-\s", " + -1*", text).split("+"):
        product: Dim = 1
        for factor in term.strip().split("*"):
            factor = factor.strip()
            if re.fullmatch(r"-?\d+", factor):
                product = product * int(factor)
            elif re.fullmatch(r"[A-Za-z_][\w.]*", factor):
                product = product * symbol(factor)
            else:
                return symbol(text)
        total = total + product
    return total


def divide(whole: Dim, part: Dim) -> Dim | None:
    """The exact quotient, or None where it is none that holds for all sizes."""
    if whole == part:
        return 1
    if part == 0:
        return None
    divisor = _terms(part)
    if len(divisor) != 1:
        return None
    names, factor = divisor[0]
    quotient = []
    for have, amount in _terms(whole):
        rest = Counter(have)
        rest.subtract(names)
        if amount % factor or min(rest.values(), default=0) < 0:
            return None
        quotient.append((tuple(sorted(rest.elements())), amount // factor))
    return _build(quotient)


def product(sizes: Iterable[Dim]) -> Dim:
    """Product of all sizes."""
    total: Dim = 1
    for size in sizes:
        total = total * size
    return total


def bind(size: Dim, values: Mapping[str, int], default: int = 1) -> int:
    """The size as a number; symbols missing in `values` count as `default`."""
    return size if isinstance(size, int) else max(size.substitute(values, default), 0)


def _terms(value: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(value, Expr):
        return value.terms
    return (((), int(value)),) if value else ()


def _build(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: Counter[Monomial] = Counter()
    for names, factor in terms:
        total[names] += factor
    kept = tuple(sorted((names, factor) for names, factor in total.items() if factor))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Expr(kept)


def _term_text(names: Monomial, factor: int) -> str:
    parts = ([] if factor == 1 and names else [str(factor)]) + list(names)
    return "*".join(parts)
