"""The reshard table is total: every sharding becomes every other one by at most one collective."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from graph.dialect import is_collective
from graph.dims import symbol
from graph.errors import VerifyError
from graph.infer import infer_shapes
from graph.interpret import interpret
from graph.layout import Layout, box_of, take_box
from graph.mesh import Mesh
from tests.graph.small import Array, small_model
from tpcore.atoms import Atom, normal
from tpcore.insert_reshards import ShardedGraph, insert_reshards
from tpcore.legalize import legalize
from tpcore.localize import localize
from tpcore.plan import Plan
from tpcore.planner.options import Choices, placement_text
from tpcore.reshard import ReshardKind, reshard_kind
from tpcore.sharding import (
    PARTIAL,
    REPLICATE,
    SUM,
    WHOLE,
    Chain,
    DimSplit,
    Placement,
    Sharding,
    split_dim,
)
from tpcore.simplify import simplify
from tpcore.strategies import Strategy

SHAPE = (6, 8)


def split(dim: int, layout: Layout) -> DimSplit:
    return DimSplit(dim, SHAPE[dim], layout)


def sharded_on(*splits: DimSplit) -> Sharding:
    return Sharding(Placement("S"), splits)


def uneven(size: int, ranks: int) -> Layout:
    """One index on every rank but the last."""
    stops = [*range(ranks), size]
    return Layout(tuple(((a, b),) for a, b in itertools.pairwise(stops)))


def packed(size: int, ranks: int) -> Layout:
    """Two segments, each split evenly."""
    half = Layout.even(size // 2, ranks).ranges
    shift = size // 2
    return Layout(tuple((a, (a[0] + shift, a[1] + shift)) for (a,) in half))


def overlapping(size: int, ranks: int) -> Layout:
    """Every part on two ranks, as with half as many kv heads as ranks."""
    halves = Layout.even(size, max(ranks // 2, 1)).ranges
    return Layout(tuple(halves[min(rank // 2, len(halves) - 1)] for rank in range(ranks)))


def shardings(ranks: int) -> dict[str, Sharding]:
    """All kinds of shardings of a value of f32[6, 8]."""
    nested = Chain((Atom(2), Atom(4)), ranks)
    both = [
        s
        for dim, atom in enumerate(nested.atoms)
        if (s := split_dim(dim, (atom, Atom(SHAPE[dim] // cast(int, atom.size))), nested))
    ]
    return {
        "R": WHOLE,
        "P": SUM,
        "S(0) even": sharded_on(split(0, Layout.even(SHAPE[0], ranks))),
        "S(1) even": sharded_on(split(1, Layout.even(SHAPE[1], ranks))),
        "S(0) uneven": sharded_on(split(0, uneven(SHAPE[0], ranks))),
        "S(1) uneven": sharded_on(split(1, uneven(SHAPE[1], ranks))),
        "S(1) packed": sharded_on(split(1, packed(SHAPE[1], ranks))),
        "S(0) overlapping": sharded_on(split(0, overlapping(SHAPE[0], ranks))),
        "S(0, 1)": sharded_on(*both),
    }


class ByPlacement:
    """A strategy space whose shardings are given, whatever the value."""

    def __init__(self, table: dict[Placement, Sharding]) -> None:
        self.table = table
        self.factors = self
        self.nodes: dict[ir.Node, None] = {}

    def sharding(self, value: ir.Value, placement: Placement) -> Sharding:
        return self.table[placement]


TWO_READERS = """(float[6, 8] x) => (float[6, 8] y, float[6, 8] z) {
    a = Identity(x)
    y = Abs(a)
    z = Neg(a)
}"""
ONE_READER = "(float[6, 8] x) => (float[6, 8] y) { a = Identity(x) y = Neg(a) }"


def sharded_graph(
    text: str, ranks: int, made: Sharding, hub: Sharding, reads: Sequence[Sharding]
) -> ShardedGraph:
    """`a` is made and held as given, and each of its readers reads it in its own way."""
    model = small_model(text)
    places = {
        s: Placement("S", Chain((Atom(i + 1),), ranks)) for i, s in enumerate({made, hub, *reads})
    }
    space = ByPlacement({place: sharding for sharding, place in places.items()})
    first, *readers = model.graph
    choices = Choices()
    choices.strategy[first] = Strategy("", (places[made],), (places[made],))
    choices.hub[first.inputs[0]] = places[made]  # type: ignore[index]
    choices.hub[first.outputs[0]] = places[hub]
    for reader, read in zip(readers, reads, strict=True):
        choices.strategy[reader] = Strategy("", (places[read],), (places[read],))
        choices.hub[reader.outputs[0]] = places[read]
    shapes = infer_shapes(model)
    plan = Plan(Mesh.of(tp=ranks), model, shapes, cast(Any, space), choices)
    return insert_reshards(plan)


def collectives(sharded: ShardedGraph) -> list[str]:
    return [node.op_type for node in sharded.model.graph if is_collective(node)]


def parts_of(whole: Array, held: Sharding, ranks: int) -> list[Array]:
    """What the ranks hold of a value."""
    if held.is_partial:
        random = np.random.default_rng(5)
        parts = [
            np.asarray(random.standard_normal(whole.shape), np.float32) for _ in range(1, ranks)
        ]
        return [np.asarray(whole - sum(parts), np.float32), *parts]
    boxes = [box_of(held.dims, held.layouts, rank, whole.ndim) for rank in range(ranks)]
    return [take_box(whole, box).copy() for box in boxes]


def run(sharded: ShardedGraph, held: Sharding, ranks: int) -> tuple[Array, list[dict[str, Array]]]:
    """The whole input, and the ranks' outputs when each gets its part of it."""
    whole = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    models = [localize(sharded, rank) for rank in range(ranks)]
    inputs = [{"x": part} for part in parts_of(whole, held, ranks)]
    return whole, interpret(models, inputs)


def assert_held(results: Sequence[Array], whole: Array, held: Sharding) -> None:
    """The ranks hold `whole` as they should."""
    if held.is_partial:
        np.testing.assert_allclose(np.asarray(sum(results)), whole, atol=1e-5)
        return
    for part, want in zip(results, parts_of(whole, held, len(results)), strict=True):
        np.testing.assert_allclose(part, want, atol=1e-5)


NAMES = list(shardings(2))


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("want", NAMES)
@pytest.mark.parametrize("have", NAMES)
def test_every_change_of_sharding(have: str, want: str, ranks: int) -> None:
    before, after = shardings(ranks)[have], shardings(ranks)[want]
    sharded = simplify(legalize(sharded_graph(ONE_READER, ranks, before, after, [after])))
    whole, results = run(sharded, before, ranks)
    assert_held([result["y"] for result in results], -whole, after)
    assert len(collectives(sharded)) <= 1


def test_cases_are_what_they_are_called() -> None:
    texts = {name: placement_text(sharding) for name, sharding in shardings(4).items()}
    assert texts == {
        "R": "R",
        "P": "P(sum)",
        "S(0) even": "S(0) 0:2 2:4 4:5 5:6",
        "S(1) even": "S(1) 0:2 2:4 4:6 6:8",
        "S(0) uneven": "S(0) 0:1 1:2 2:3 3:6",
        "S(1) uneven": "S(1) 0:1 1:2 2:3 3:8",
        "S(1) packed": "S(1) 0:1+4:5 1:2+5:6 2:3+6:7 3:4+7:8",
        "S(0) overlapping": "S(0) 0:3 0:3 3:6 3:6",
        "S(0, 1)": "S(0,1) 0:3 0:3 3:6 3:6 | 0:4 4:8 0:4 4:8",
    }


@pytest.mark.parametrize(
    ("have", "want", "kind"),
    [
        ("R", "R", ReshardKind.NONE),
        ("R", "S(0) even", ReshardKind.SLICE),
        ("R", "P", ReshardKind.KEEP_ON_ROOT),
        ("S(0) even", "S(0) even", ReshardKind.NONE),
        ("S(0) even", "R", ReshardKind.ALL_GATHER),
        ("S(0) even", "P", ReshardKind.ALL_GATHER),
        ("S(0) even", "S(1) packed", ReshardKind.ALL_TO_ALL),
        ("S(0) overlapping", "S(1) uneven", ReshardKind.ALL_TO_ALL),
        ("S(0) even", "S(0) uneven", ReshardKind.ALL_GATHER),
        ("S(0, 1)", "S(1) even", ReshardKind.ALL_GATHER),
        ("P", "R", ReshardKind.ALL_REDUCE),
        ("P", "S(0, 1)", ReshardKind.REDUCE_SCATTER),
        ("P", "P", ReshardKind.NONE),
    ],
)
def test_table(have: str, want: str, kind: ReshardKind) -> None:
    table = shardings(3)
    assert reshard_kind(table[have], table[want]) is kind


@pytest.mark.parametrize("ranks", [2, 4])
def test_readers_that_differ_from_the_hub(ranks: int) -> None:
    """`a` is partial, held split, and read whole by one node and otherwise split by another."""
    table = shardings(ranks)
    reads = [table["R"], table["S(1) even"]]
    sharded = sharded_graph(TWO_READERS, ranks, table["P"], table["S(0) even"], reads)
    assert len(sharded.reshards) == 3
    sharded = simplify(legalize(sharded))
    assert sorted(collectives(sharded)) == ["AllGather", "AllToAll", "ReduceScatter"]
    whole, results = run(sharded, table["P"], ranks)
    assert_held([result["y"] for result in results], np.abs(whole), reads[0])
    assert_held([result["z"] for result in results], -whole, reads[1])


def test_slices_of_one_value_that_differ_are_both_kept() -> None:
    table = shardings(2)
    reads = [table["S(0) even"], table["S(1) packed"]]
    sharded = simplify(legalize(sharded_graph(TWO_READERS, 2, WHOLE, WHOLE, reads)))
    assert [n.op_type for n in sharded.model.graph].count("LocalSlice") == 2
    whole, results = run(sharded, WHOLE, 2)
    assert_held([result["y"] for result in results], np.abs(whole), reads[0])
    assert_held([result["z"] for result in results], -whole, reads[1])


def test_readers_that_agree_share_one_reshard() -> None:
    table = shardings(2)
    sharded = sharded_graph(TWO_READERS, 2, table["P"], table["P"], [table["R"], table["R"]])
    assert collectives(simplify(legalize(sharded))) == ["AllReduce"]


def test_a_graph_output_keeps_its_name() -> None:
    """What is made partial and held whole leaves the graph under the name it had."""
    sharded = sharded_graph(ONE_READER, 2, WHOLE, WHOLE, [WHOLE])
    plan = sharded.plan
    output = plan.model.graph.outputs[0]
    table = cast(ByPlacement, plan.space).table
    table[PARTIAL], table[REPLICATE] = SUM, WHOLE
    node = output.producer()
    assert node is not None
    plan.choices.strategy[node] = Strategy("", (REPLICATE,), (PARTIAL,))
    plan.choices.hub[output] = REPLICATE
    sharded = simplify(legalize(insert_reshards(plan)))
    assert [value.name for value in sharded.model.graph.outputs] == ["y"]
    assert collectives(sharded) == ["AllReduce"]
    whole, results = run(sharded, WHOLE, 2)
    for result in results:
        np.testing.assert_allclose(result["y"], -2 * whole, atol=1e-5)


def test_equal_ranges_of_different_chains_are_no_change() -> None:
    """Four heads on eight ranks leave pairs of ranks with one head each, whatever else is split."""
    even = (split(0, Layout.even(SHAPE[0], 2)),)
    value, other = (Sharding(Placement("S", Chain((Atom(n),), 2)), even) for n in (3, 5))
    assert value != other and value.same_as(other)
    assert reshard_kind(value, other) is ReshardKind.NONE
    sharded = sharded_graph(ONE_READER, 2, value, other, [value])
    assert not sharded.reshards
    whole, results = run(simplify(legalize(sharded)), value, 2)
    assert_held([result["y"] for result in results], -whole, other)


def test_ranges_behind_a_symbolic_factor_are_told_apart() -> None:
    """Both halves have four of eight units, but not the same ones."""
    batch, major, minor = Atom(symbol("batch")), Atom(2), Atom(4)
    found = [split_dim(0, (batch, major, minor), Chain((atom,), 2)) for atom in (major, minor)]
    by_major, by_minor = (Sharding(Placement("S"), (s,)) for s in found if s is not None)
    assert by_major.splits[0].parts == by_minor.splits[0].parts == (4, 4)
    assert not by_major.same_as(by_minor)
    assert reshard_kind(by_major, by_minor) is ReshardKind.IMPOSSIBLE


def test_overlaps() -> None:
    overlapping_ones = {name for name, s in shardings(4).items() if s.overlaps}
    assert overlapping_ones == {"S(0) overlapping"}


def symbolic_split() -> Sharding:
    """A split behind a factor of symbolic size: its ranges are no constants."""
    chain = Chain((Atom(8),), 2)
    dim = split_dim(0, normal([Atom(symbol("batch")), *chain.atoms]), chain)
    assert dim is not None and dim.layout is None and dim.parts == (4, 4)
    return Sharding(Placement("S", chain), (dim,))


@pytest.mark.parametrize("other", [WHOLE, SUM])
def test_ranges_that_are_no_constants_cannot_be_changed(other: Sharding) -> None:
    held = symbolic_split()
    assert reshard_kind(held, held) is ReshardKind.NONE
    assert reshard_kind(held, other) is ReshardKind.IMPOSSIBLE
    assert reshard_kind(other, held) is ReshardKind.IMPOSSIBLE


def test_an_impossible_reshard_is_a_bug_of_the_planner() -> None:
    held = symbolic_split()
    sharded = sharded_graph(ONE_READER, 2, held, WHOLE, [WHOLE])
    with pytest.raises(VerifyError, match="a reshard that no collective does"):
        legalize(sharded)
