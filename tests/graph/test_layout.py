"""Index ranges per rank: text form, boxes, and the layouts that splits are made of."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.layout import Layout, Range, box_of, put_box, take_box

EVEN = Layout.parse("0:4 4:8")
UNEVEN = Layout.parse("0:3 3:6 6:8")
PACKED = Layout.parse("0:2+4:5+6:7 2:4+5:6+7:8")
"""q of 4, k of 2 and v of 2 in one dim, two ranks."""
OVERLAPPING = Layout.parse("0:1 0:1 1:2 1:2")
"""Two kv heads on four ranks."""


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Cut a dim at random places and deal the pieces out to ranks, some of them twice."""
    size = draw(st.integers(1, 12))
    cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=4))})
    ranks = draw(st.integers(1, 4))
    held: list[list[Range]] = [[] for _ in range(ranks)]
    for piece in pairwise(cuts):
        for rank in draw(st.sets(st.integers(0, ranks - 1), min_size=1, max_size=2)):
            held[rank].append(piece)
    return Layout(tuple(map(tuple, held)))


@given(layouts())
def test_text_reads_back(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@given(st.integers(0, 40), st.integers(1, 9))
def test_even_layouts_cover_and_differ_by_one(size: int, ranks: int) -> None:
    layout = Layout.even(size, ranks)
    assert layout.ranks == ranks and layout.global_size == size and layout.disjoint
    assert max(layout.sizes) - min(layout.sizes) <= 1
    assert sorted(layout.sizes, reverse=True) == list(layout.sizes)
    assert np.concatenate([layout.indices(rank) for rank in range(ranks)]).tolist() == [
        *range(size)
    ]


@given(layouts(), layouts())
def test_parts_put_back_give_the_whole(rows: Layout, columns: Layout) -> None:
    whole = np.arange(rows.global_size * columns.global_size).reshape(rows.global_size, -1)
    again = np.full_like(whole, -1)
    for row in range(rows.ranks):
        for column in range(columns.ranks):
            box = (rows.ranges[row], columns.ranges[column])
            part = take_box(whole, box)
            assert part.tolist() == whole[rows.indices(row)][:, columns.indices(column)].tolist()
            put_box(again, box, part)
    assert again.tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("layout", "sizes", "disjoint"),
    [
        (EVEN, (4, 4), True),
        (UNEVEN, (3, 3, 2), True),
        (PACKED, (4, 4), True),
        (OVERLAPPING, (1, 1, 1, 1), False),
        (Layout.parse("0:2 -"), (2, 0), True),
    ],
)
def test_sizes(layout: Layout, sizes: tuple[int, ...], disjoint: bool) -> None:
    assert layout.sizes == sizes
    assert layout.disjoint is disjoint


def test_packed_part_is_the_ranks_q_then_its_k_then_its_v() -> None:
    whole = np.array([["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]])
    box = box_of([1], [PACKED], 1, 2)
    assert box == (None, ((2, 4), (5, 6), (7, 8)))
    assert take_box(whole, box).tolist() == [["q2", "q3", "k1", "v1"]]


def test_overlapping_parts_are_equal() -> None:
    whole = np.array([10, 20])
    parts = [take_box(whole, box_of([0], [OVERLAPPING], rank, 1)).tolist() for rank in range(4)]
    assert parts == [[10], [10], [20], [20]]


def test_one_range_is_a_view_and_nothing_is_an_empty_part() -> None:
    whole = np.zeros((8, 3))
    assert np.shares_memory(take_box(whole, box_of([0], [EVEN], 1, 2)), whole)
    assert take_box(whole, ((), None)).shape == (0, 3)
    assert take_box(np.array(7.0), ()).shape == ()


@pytest.mark.parametrize("text", ["", "0:2  2:4", "0:2,2:4", "0-2", "0:2:4", "a:b", "0:2+", "3:1"])
def test_malformed_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Layout.parse(text)
