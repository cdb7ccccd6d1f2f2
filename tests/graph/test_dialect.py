"""What each collective means, by numbers small enough to check by hand, and its form as a node."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.dialect import (
    COLLECTIVES,
    DOMAIN,
    VERSION,
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    ReduceScatter,
    is_collective,
    make_node,
    parse_node,
    reduce_in_rank_order,
    tag_of,
)
from graph.errors import GraphError
from graph.layout import Layout

HALVES = Layout.even(4, 2)
PACKED = Layout.parse("0:2+4:5 2:4+5:6")
OVERLAPPING = Layout.parse("0:2 0:2 2:3")

EXAMPLES: list[Collective] = [
    AllReduce("tp"),
    AllReduce("dp", "max"),
    AllGather("tp", (1,), (HALVES,)),
    AllGather("tp", (0, 2), (PACKED, HALVES)),
    ReduceScatter("tp", (0,), (PACKED,), "min"),
    AllToAll("tp", 1, 0, HALVES, PACKED),
    Broadcast("tp", 3),
]


def outcome(op: Collective, *parts: Any) -> list[Any]:
    """Results of all ranks as lists, for operands given as lists."""
    return [result.tolist() for result in op.meaning([np.array(part) for part in parts])]


# --- meaning: the drawing in graph/dialect.py --------------------------------------------------


def test_all_reduce() -> None:
    assert outcome(AllReduce("tp"), [1, 2], [3, 4]) == [[4, 6], [4, 6]]
    assert outcome(AllReduce("tp", "max"), [1, 5], [3, 4]) == [[3, 5], [3, 5]]
    assert outcome(AllReduce("tp", "min"), [1, 5], [3, 4]) == [[1, 4], [1, 4]]


def test_all_gather() -> None:
    op = AllGather("tp", (0,), (HALVES,))
    assert outcome(op, [1, 2], [3, 4]) == [[1, 2, 3, 4], [1, 2, 3, 4]]


def test_all_gather_of_a_packed_dim_puts_each_segment_in_its_place() -> None:
    whole = ["q0", "q1", "q2", "q3", "k0", "k1"]
    op = AllGather("tp", (0,), (PACKED,))
    assert outcome(op, ["q0", "q1", "k0"], ["q2", "q3", "k1"]) == [whole, whole]


def test_all_gather_of_overlapping_parts_takes_each_index_once() -> None:
    op = AllGather("tp", (0,), (OVERLAPPING,))
    assert outcome(op, [7, 8], [7, 8], [9]) == [[7, 8, 9]] * 3


def test_all_gather_of_two_dims_places_the_blocks_of_a_diagonal() -> None:
    op = AllGather("tp", (0, 1), (Layout.parse("0:1 0:2"), Layout.parse("0:1 1:2")))
    assert op.meaning([np.array([[1]]), np.array([[2], [3]])])[0][:, 1].tolist() == [2, 3]


def test_reduce_scatter() -> None:
    op = ReduceScatter("tp", (0,), (Layout.even(2, 2),))
    assert outcome(op, [1, 2], [3, 4]) == [[4], [6]]


def test_reduce_scatter_of_uneven_parts() -> None:
    op = ReduceScatter("tp", (1,), (Layout.even(3, 2),), "max")
    assert outcome(op, [[1, 2, 3]], [[3, 1, 4]]) == [[[3, 2]], [[4]]]


def test_all_to_all() -> None:
    op = AllToAll("tp", 1, 0, Layout.even(2, 2), Layout.even(2, 2))
    assert outcome(op, [[1, 2]], [[3, 4]]) == [[[1], [3]], [[2], [4]]]


def test_all_to_all_of_uneven_parts() -> None:
    op = AllToAll("tp", 1, 0, Layout.even(2, 2), Layout.even(3, 2))
    assert outcome(op, [[1, 2], [3, 4]], [[5, 6]]) == [[[1], [3], [5]], [[2], [4], [6]]]


def test_broadcast() -> None:
    assert outcome(Broadcast("tp", 0), [1, 2], [3, 4]) == [[1, 2], [1, 2]]
    assert outcome(Broadcast("tp", 1), [1, 2], [3, 4]) == [[3, 4], [3, 4]]


def test_results_share_no_memory() -> None:
    for op in (AllReduce("tp"), Broadcast("tp"), ReduceScatter("tp", (0,), (HALVES,))):
        first, second = op.meaning([np.zeros(4), np.zeros(4)])
        first += 1
        assert not second.any(), op


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bit_sums_are_rounded_once(dtype: Any) -> None:
    parts = [np.array([value], dtype) for value in (256.0, 0.5, 0.5, 1.0)]
    total = reduce_in_rank_order(parts, "sum")
    assert total.dtype == dtype
    assert total[0] == np.array(258.0, dtype)


def test_sums_run_in_rank_order() -> None:
    parts = [np.array([value], np.float32) for value in (1e8, -1e8, 1.0)]
    assert reduce_in_rank_order(parts, "sum")[0] == 1.0
    assert reduce_in_rank_order([parts[2], *parts[:2]], "sum")[0] == 0.0


def test_a_reduction_leaves_its_operands_alone() -> None:
    parts = [np.ones(3, np.float32), np.ones(3, np.float32)]
    reduce_in_rank_order(parts, "sum")
    assert parts[0].tolist() == [1, 1, 1]


# --- type rule ------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_result_shape_is_that_of_the_meaning(ranks: int, height: int, width: int) -> None:
    rows, columns = Layout.even(height, ranks), Layout.even(width, ranks)
    whole = [(height, width)] * ranks
    split = [(size, width) for size in rows.sizes]
    cases: list[tuple[Collective, list[tuple[int, int]]]] = [
        (AllReduce("tp"), whole),
        (Broadcast("tp"), whole),
        (AllGather("tp", (0,), (rows,)), split),
        (ReduceScatter("tp", (1,), (columns,)), whole),
        (AllToAll("tp", 1, 0, columns, rows), split),
    ]
    for op, shapes in cases:
        results = op.meaning([np.zeros(shape) for shape in shapes])
        assert [r.shape for r in results] == [op.result_shape(s, i) for i, s in enumerate(shapes)]


def test_operand_shape_is_the_inverse_of_result_shape() -> None:
    op = AllGather("tp", (1,), (Layout.even(5, 2),))
    assert op.operand_shape((2, 5), 1) == (2, 2)
    assert op.result_shape((2, 2), 1) == (2, 5)


def test_pieces_of_an_all_to_all_have_the_announced_shapes() -> None:
    op = AllToAll("tp", 1, 0, Layout.even(5, 2), Layout.even(3, 2))
    operand = np.zeros((2, 5))
    assert op.piece(operand, 1).shape == op.piece_shape(operand.shape, 0, 1) == (2, 2)
    assert op.piece_shape(operand.shape, 1, 0) == (1, 3)


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "sent"),
    [
        (AllReduce("tp"), 150),
        (AllGather("tp", (0,), (HALVES,)), 75),
        (ReduceScatter("tp", (0,), (HALVES,)), 75),
        (AllToAll("tp", 1, 0, HALVES, HALVES), 18.75),
        (Broadcast("tp"), 100),
    ],
    ids=lambda item: getattr(item, "op_type", None),
)
def test_bytes_sent_of_100_bytes_on_4_ranks(op: Collective, sent: float) -> None:
    assert op.bytes_sent(100, 4) == sent
    assert op.bytes_sent(100, 1) == 0


# --- nodes ----------------------------------------------------------------------------------------


def node_of(op: Collective, tag: int = 0) -> ir.Node:
    return make_node(op, ir.val("x"), tag)


def through_onnx(node: ir.Node) -> ir.Node:
    """The node as it comes back from a file."""
    node.outputs[0].name = "y"
    return ir.serde.deserialize_node(ir.serde.serialize_node(node))


@pytest.mark.parametrize("op", EXAMPLES, ids=str)
def test_a_node_reads_back(op: Collective) -> None:
    node = through_onnx(node_of(op, tag=7))
    assert (node.domain, node.op_type, node.version) in [
        (DOMAIN, op.op_type, VERSION),
        (DOMAIN, op.op_type, None),
    ]
    assert is_collective(node)
    assert parse_node(node) == op
    assert tag_of(node) == 7


def test_the_examples_show_every_collective() -> None:
    assert {op.op_type for op in EXAMPLES} == set(COLLECTIVES)


def test_other_nodes_are_no_collectives() -> None:
    for node in (ir.node("AllReduce", [ir.val("x")]), ir.node("Fly", [], domain=DOMAIN)):
        assert not is_collective(node)
        with pytest.raises(GraphError, match="no collective. Known collectives: AllReduce, "):
            parse_node(node)


@pytest.mark.parametrize(
    ("op", "name", "value", "reason"),
    [
        (AllReduce("tp"), "reduce", "mean", "reduce 'mean' is none of sum, max, min"),
        (AllReduce("tp"), "reduce", None, "'reduce'"),
        (AllReduce("tp"), "axis", None, "'axis'"),
        (AllGather("tp", (0,), (HALVES,)), "layouts", ["0:2 2"], "malformed layout '0:2 2'"),
        (AllGather("tp", (0,), (HALVES,)), "dims", 3, "not iterable"),
        (EXAMPLES[5], "split_layout", "x:y", "invalid literal"),
        (Broadcast("tp"), "root", None, "'root'"),
    ],
)
def test_bad_attributes_are_named(op: Collective, name: str, value: Any, reason: str) -> None:
    node = node_of(op)
    node.name = "exchange"
    node.attributes.pop(name)
    if value is not None:
        node.attributes.update(
            {a.name: a for a in ir.convenience.convert_attributes({name: value})}
        )
    with pytest.raises(GraphError) as caught:
        parse_node(node)
    message = str(caught.value)
    assert f"collective 'exchange' ({op.op_type}) has a missing or malformed attribute" in message
    assert reason in message
