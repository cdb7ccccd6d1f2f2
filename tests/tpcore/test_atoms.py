"""Equations between products of atoms, and what they do to every dim that shares the atoms."""

from __future__ import annotations

import pytest

from graph.dims import Dim, symbol
from tpcore.atoms import Atom, Atoms, Item, atoms_in, extent, normal, resolve, unify, unify_segments


def atoms(*sizes: Dim) -> Atoms:
    return [Atom(size) for size in sizes]


def sizes(items: tuple[Item, ...]) -> list[object]:
    """Sizes of a dim in normal form, segments as nested lists."""
    return [
        [sizes(segment) for segment in item] if isinstance(item, tuple) else item.size
        for item in items
    ]


def test_equal_sizes_become_one_atom() -> None:
    a, b = atoms(8), atoms(8)
    unify(a, b)
    assert normal(a) == normal(b)


def test_equality_reaches_every_dim_that_shares_the_atom() -> None:
    a, b, c = atoms(8), atoms(8), atoms(8)
    unify(a, b)
    unify(b, c)
    assert normal(a) == normal(b) == normal(c)


def test_a_product_refines_the_larger_atom() -> None:
    whole, heads = atoms(128), atoms(8, 16)
    unify(whole, heads)
    assert sizes(normal(whole)) == [8, 16]
    assert normal(whole) == normal(heads)


def test_refinement_reaches_dims_that_were_equal_before() -> None:
    weight, value = atoms(128), atoms(128)
    unify(weight, value)
    unify(value, atoms(8, 16))
    assert sizes(normal(weight)) == [8, 16]


def test_refinements_meet_in_a_common_one() -> None:
    whole = atoms(64)
    unify(whole, atoms(4, 16))
    pairs = atoms(8, 8)
    unify(whole, pairs)
    assert sizes(normal(whole)) == [4, 2, 8]
    assert normal(whole) == normal(pairs)


def test_order_of_the_equations_does_not_matter() -> None:
    first, second = atoms(64), atoms(64)
    for whole, products in ((first, [(4, 16), (8, 8)]), (second, [(8, 8), (4, 16)])):
        for product in products:
            unify(whole, atoms(*product))
    assert sizes(normal(first)) == sizes(normal(second)) == [4, 2, 8]


def test_atoms_of_size_one_do_not_count() -> None:
    a, b = atoms(1, 8, 1), atoms(8)
    unify(a, b)
    assert normal(a) == normal(b) and sizes(normal(a)) == [8]


def test_symbolic_sizes_are_equal_by_name() -> None:
    batch = symbol("batch")
    a, b = atoms(batch * 4), atoms(batch, 4)
    unify(a, b)
    assert normal(a) == normal(b)
    assert sizes(normal(a)) == [batch, 4]


@pytest.mark.parametrize(("left", "right"), [((6,), (4,)), ((6, 4), (9, 4)), ((4,), ())])
def test_a_mismatch_equates_nothing(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = atoms(*left), atoms(*right)
    unify(a, b)
    assert not atoms_in(normal(a)) & atoms_in(normal(b))


def test_two_forms_of_one_dim_share_a_factor_of_their_major_parts() -> None:
    heads, blocks = atoms(28, 96), atoms(21, 128)
    unify(heads, blocks)
    assert sizes(normal(heads)) == [7, 4, 96] and sizes(normal(blocks)) == [7, 3, 128]
    assert normal(heads)[0] is normal(blocks)[0]
    assert not atoms_in(normal(heads)[1:]) & atoms_in(normal(blocks)[1:])


def test_a_mismatch_keeps_what_matched_before_it() -> None:
    a, b = atoms(2, 6), atoms(2, 4)
    unify(a, b)
    assert normal(a)[0] is normal(b)[0]
    assert normal(a)[1] is not normal(b)[1]


# --- packed dims ----------------------------------------------------------------------------------


def test_a_packed_dim_is_its_segments() -> None:
    packed, q, k, v = atoms(24), atoms(8), atoms(8), atoms(8)
    unify_segments(packed, [q, k, v])
    assert sizes(normal(packed)) == [[[8], [8], [8]]]
    assert atoms_in(normal(packed)) == {q[0], k[0], v[0]}


def test_one_segment_is_an_ordinary_dim() -> None:
    a, b = atoms(8), atoms(8)
    unify_segments(a, [b])
    assert normal(a) == normal(b) and sizes(normal(a)) == [8]


def test_segments_refine_with_their_consumers() -> None:
    packed, parts = atoms(24), [atoms(8), atoms(8), atoms(8)]
    unify_segments(packed, parts)
    heads = atoms(4, 2)
    for part in parts:
        unify(part, heads)
    assert sizes(normal(packed)) == [[[4, 2], [4, 2], [4, 2]]]
    assert atoms_in(normal(packed)) == set(resolve(heads))


def test_segments_reach_the_dim_that_was_equal_before() -> None:
    weight, value = atoms(24), atoms(24)
    unify(weight, value)
    unify_segments(value, [atoms(16), atoms(8)])
    assert normal(weight) == normal(value)
    assert sizes(normal(weight)) == [[[16], [8]]]


def test_two_packed_dims_that_become_equal() -> None:
    one, other = atoms(24), atoms(24)
    a, b = [atoms(16), atoms(8)], [atoms(16), atoms(8)]
    unify_segments(one, a)
    unify_segments(other, b)
    unify(one, other)
    assert normal(one) == normal(other)
    assert normal(a[0]) == normal(b[0]) and normal(a[1]) == normal(b[1])


def test_a_segment_that_is_packed_itself() -> None:
    """Queries beside a packed key and value, or three in a row, are the same thing."""
    packed, flat = atoms(32), atoms(32)
    rest, q, k, v = atoms(16), atoms(16), atoms(8), atoms(8)
    unify_segments(packed, [q, rest])
    unify_segments(rest, [k, v])
    unify_segments(flat, [atoms(16), atoms(8), atoms(8)])
    unify(packed, flat)
    assert sizes(normal(packed)) == [[[16], [8], [8]]]
    assert normal(packed) == normal(flat)


def test_coarser_segments_are_cut_by_finer_ones() -> None:
    packed, rest = atoms(32), atoms(16)
    unify_segments(packed, [atoms(16), atoms(8), atoms(8)])
    unify_segments(packed, [atoms(16), rest])
    assert sizes(normal(rest)) == [[[8], [8]]]
    assert sizes(normal(packed)) == [[[16], [8], [8]]]


def test_segments_with_borders_that_cross_are_cut_at_all_of_them() -> None:
    packed, crossing = atoms(12), [atoms(6), atoms(6)]
    unify_segments(packed, [atoms(4), atoms(8)])
    unify_segments(packed, crossing)
    assert sizes(normal(packed)) == [[[4], [2], [6]]]
    assert sizes(normal(crossing[0])) == [[[4], [2]]]
    assert atoms_in(normal(crossing[1])) <= atoms_in(normal(packed))


def test_three_slices_of_a_packed_dim() -> None:
    """q | k | v, each cut out by a Slice of its own, as Phi-3 is exported."""
    packed = atoms(256)
    q, k, v = atoms(128), atoms(64), atoms(64)
    unify_segments(packed, [q, atoms(128)])
    unify_segments(packed, [atoms(128), k, atoms(64)])
    unify_segments(packed, [atoms(192), v])
    assert sizes(normal(packed)) == [[[128], [64], [64]]]
    for part in (q, k, v):
        assert atoms_in(normal(part)) <= atoms_in(normal(packed))


def test_a_product_that_lies_across_a_border_is_not_cut() -> None:
    packed, product = atoms(24), atoms(2, 6)
    unify_segments(packed, [product, atoms(12)])
    unify_segments(packed, [atoms(9), atoms(15)])
    assert sizes(normal(product)) == [2, 6]


def test_a_packed_dim_is_not_refined_to_a_product() -> None:
    packed, product = atoms(24), atoms(4, 6)
    unify_segments(packed, [atoms(16), atoms(8)])
    unify(packed, product)
    assert sizes(normal(packed)) == [[[16], [8]]]
    assert not atoms_in(normal(product)) & atoms_in(normal(packed))


def test_extent_counts_static_segments() -> None:
    assert extent([atoms(4, 2), atoms(8)]) == 16
    assert extent([atoms(symbol("n")), atoms(8)]) == 8


def test_resolve_follows_merged_and_refined_atoms() -> None:
    a, b = atoms(12), atoms(3, 4)
    unify(a, b)
    assert resolve(a) == [atom.root() for atom in b]
