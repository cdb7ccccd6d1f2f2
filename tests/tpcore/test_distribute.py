"""Cutting arrays into what ranks hold, and joining them again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.comm_local import run_together
from graph.layout import Layout
from tpcore.distribute import Held, cut_inputs, read_held


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("R", [(6, 8), (6, 8)]),
        ("S(1) 0:4 4:8", [(6, 4), (6, 4)]),
        ("S(0) 0:5 5:6", [(5, 8), (1, 8)]),
        ("S(0) 0:6 6:6", [(6, 8), (0, 8)]),
        ("S(1) 0:4 0:4 4:8 4:8", [(6, 4)] * 4),
        ("S(1) 0:2+4:6 2:4+6:8", [(6, 4), (6, 4)]),
        ("S(0,1) 0:3 3:6 | 0:4 4:8", [(3, 4), (3, 4)]),
    ],
)
def test_every_rank_gets_its_ranges(text: str, shapes: list[tuple[int, int]]) -> None:
    whole = np.arange(48).reshape(6, 8)
    held = read_held(text)
    parts = [held.cut(whole, rank) for rank in range(len(shapes))]
    assert [part.shape for part in parts] == shapes
    assert all(part.flags.c_contiguous for part in parts)
    if "," not in text:
        assert np.array_equal(held.join(parts), whole)


def test_a_packed_dim_comes_back_in_order() -> None:
    held = read_held("S(0) 0:2+4:6 2:4+6:8")
    parts = [held.cut(np.arange(8), rank) for rank in range(2)]
    assert [part.tolist() for part in parts] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert held.join(parts).tolist() == list(range(8))


def test_a_partial_value_is_the_sum_of_its_parts() -> None:
    held = read_held("P(sum)")
    assert held == Held(partial=True) and not held.is_replicated
    assert held.join([np.array([1.0, 2]), np.array([-4.0, 0])]).tolist() == [-3, 2]
    whole = np.array([1.0, -2])
    assert held.join([held.cut(whole, rank) for rank in range(3)]).tolist() == whole.tolist()


def test_a_replicated_value_is_passed_on() -> None:
    whole = np.arange(3)
    assert read_held("R").cut(whole, 1) is whole and read_held("R").join([whole, whole]) is whole


@pytest.mark.parametrize("text", ["", "r", "S", "S() 0:1", "S(0)", "P(max)", "S(-1) 0:1 1:2"])
def test_texts_that_are_no_sharding(text: str) -> None:
    with pytest.raises(ValueError, match="is no sharding"):
        read_held(text)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Ranges of one dim for 1 to 5 ranks that cover it in order, some of them empty."""
    borders = sorted(draw(st.lists(st.integers(0, 9), min_size=0, max_size=4)))
    ends = [0, *borders, 9]
    return Layout.parse(" ".join(f"{a}:{b}" for a, b in pairwise(ends)))


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 2))
def test_joining_is_the_inverse_of_cutting_and_what_ranks_gather(layout: Layout, dim: int) -> None:
    held = read_held(f"S({dim}) {layout}")
    shape = [2, 3, 4]
    shape[dim] = 9
    whole = np.random.default_rng(0).standard_normal(shape)
    ranks = len(str(layout).split())
    parts = [held.cut(whole, rank) for rank in range(ranks)]
    assert np.array_equal(held.join(parts), whole)
    for gathered in run_together(held.gather, parts):
        assert np.array_equal(gathered, whole)


def test_inputs_without_a_sharding_are_whole() -> None:
    x, y = np.arange(4), np.arange(6)
    cut = cut_inputs({"x": x, "y": y}, {"y": "S(0) 0:2 2:6", "other": "R"}, 1)
    assert cut["x"] is x and cut["y"].tolist() == [2, 3, 4, 5]
