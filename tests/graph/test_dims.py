"""Sizes as polynomials: arithmetic, exact division, and the text form that exporters share."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from graph.dims import Dim, Expr, bind, divide, from_text, product, symbol

A, B, C = symbol("a"), symbol("b"), symbol("c")
VALUES = {"a": 3, "b": 5, "c": 7}


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    """A sum of products of small numbers and of the symbols a, b, c."""
    factors = st.lists(st.sampled_from([A, B, C]), max_size=3)
    terms = draw(st.lists(st.tuples(st.integers(-4, 4), factors), max_size=4))
    total: Dim = 0
    for number, symbols in terms:
        total = total + number * product(symbols)
    return total


def at_values(size: Dim) -> int:
    return size.substitute(VALUES) if isinstance(size, Expr) else size


@given(dims(), dims())
def test_arithmetic_agrees_with_numbers(x: Dim, y: Dim) -> None:
    assert at_values(x + y) == at_values(x) + at_values(y)
    assert at_values(x - y) == at_values(x) - at_values(y)
    assert at_values(x * y) == at_values(x) * at_values(y)
    assert x + y == y + x and x * y == y * x and x - x == 0


@given(dims())
def test_text_reads_back(x: Dim) -> None:
    assert from_text(str(x)) == x


@given(dims(), st.integers(1, 4), st.lists(st.sampled_from([A, B, C]), max_size=3))
def test_a_product_divides_by_its_factors(x: Dim, number: int, symbols: list[Expr]) -> None:
    part = number * product(symbols)
    assume(x != 0)
    assert divide(x * part, part) == x


@pytest.mark.parametrize(
    ("whole", "part", "quotient"),
    [
        (12, 4, 3),
        (12, 5, None),
        (12, 0, None),
        (0, 4, 0),
        (8 * A * B, 2 * B, 4 * A),
        (8 * A, 3, None),
        (A, B, None),
        (A, A * A, None),
        (A + B, A + B, 1),
        (2 * A + 4, 2, A + 2),
        (2 * A + 4, A, None),
        (A * B, A + B, None),
    ],
)
def test_division_is_exact_or_nothing(whole: Dim, part: Dim, quotient: Dim | None) -> None:
    assert divide(whole, part) == quotient


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12", 12),
        ("a", A),
        ("2*a", 2 * A),
        ("a*b + 1", A * B + 1),
        ("1 + a", A + 1),
        ("a - 1", A - 1),
        ("a - b + 2*c", A - B + 2 * C),
        ("-1*a + b", B - A),
        ("past.length", symbol("past.length")),
    ],
)
def test_sums_of_products_are_understood(text: str, size: Dim) -> None:
    assert from_text(text) == size


@pytest.mark.parametrize("text", ["Min(128, a)", "Max(a, 1 + b)", "(a + b)*2", "a//2", "a b", "?"])
def test_other_texts_are_one_opaque_symbol(text: str) -> None:
    size = from_text(text)
    assert isinstance(size, Expr)
    assert size.symbols == {text}


def test_texts() -> None:
    assert str(2 * A * B + 3) == "3 + 2*a*b"
    assert str(A - B) == "a + -1*b"
    assert repr(A) == "a"


def test_symbols_and_binding() -> None:
    size = 2 * A * B - C
    assert isinstance(size, Expr)
    assert size.symbols == {"a", "b", "c"}
    assert bind(size, VALUES) == 2 * 3 * 5 - 7
    assert bind(size, {}) == 1
    assert bind(4, VALUES) == 4
    assert bind(A - 9, VALUES) == 0, "a size is never negative"
    with pytest.raises(KeyError, match="c"):
        size.substitute({"a": 3, "b": 5})
