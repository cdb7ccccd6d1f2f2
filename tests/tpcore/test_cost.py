"""What ops are said to cost: flops and bytes of what a run does, on the rates of a device."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from tests.graph.small import small_model, weight
from tests.tpcore.test_topology import DEVICE, FAST, NODE, RATES
from tpcore.factors import FactorGraph, solve_factors
from tpcore.planner.cost import CostModel, default_price
from tpcore.planner.topology import Topology
from tpcore.planner.work import Measure, moved_bytes, multiply_adds
from tpcore.reshard import ReshardKind
from tpcore.sharding import SUM, WHOLE
from tpcore.strategies import StrategySpace

ATTENTION = "GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, pk, pv, n, t)"


def work_of(model: ir.Model, op_type: str) -> tuple[float, list[float]]:
    """Multiply-adds of the first node of that type, and bytes moved of its values."""
    node, cost, factors = parts(model, op_type)
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    measure = Measure(cost.shapes, {})
    moved = moved_bytes(node, [(v, cost.value_bytes(v)) for v in values])
    return multiply_adds(node, factors.nodes.get(node), measure), moved


def parts(model: ir.Model, op_type: str) -> tuple[ir.Node, CostModel, FactorGraph]:
    """A node of the canonical model, the costs of the model, and its factors."""
    canonical, shapes = canonicalize(model)
    node = next(n for n in canonical.graph if n.op_type == op_type)
    cost = CostModel(NODE, shapes, 2, shapes.equal)
    return node, cost, solve_factors(canonical.graph, shapes)


@pytest.mark.parametrize(
    ("text", "op_type", "weights", "expected"),
    [
        ("(float[3, 8] x) => (float[3, 5] y) { y = MatMul(x, w) }", "MatMul", (8, 5), 3 * 8 * 5),
        (
            "(float[2, 3, 8] x, float[2, 8, 4] z) => (float[2, 3, 4] y) { y = MatMul(x, z) }",
            "MatMul",
            (),
            2 * 3 * 8 * 4,
        ),
        ("(int64[7] i) => (float[7, 6] y) { y = Gather(w, i) }", "Gather", (100, 6), 0),
        ("(float[3, 8] x) => (float[1, 1] y) { y = ReduceMean(x) }", "ReduceMean", (), 0),
        ("(float[3, 8] x) => (float[3, 8] y) { y = Relu(x) }", "Relu", (), 0),
        (
            "(float[1, 4, 9, 9] x) => (float[1, 6, 7, 7] y) { y = Conv(x, w) }",
            "Conv",
            (6, 4, 3, 3),
            6 * 7 * 7 * 4 * 9,
        ),
        (
            "(float[1, 4, 9, 9] x) => (float[1, 8, 7, 7] y) { y = Conv<group=4>(x, w) }",
            "Conv",
            (8, 1, 3, 3),
            8 * 7 * 7 * 9,
        ),
    ],
)
def test_multiply_adds_are_those_of_the_op(
    text: str, op_type: str, weights: tuple[int, ...], expected: int
) -> None:
    model = small_model(text, **({"w": weight(*weights)} if weights else {}))
    assert work_of(model, op_type)[0] == expected


def test_attention_compares_queries_with_the_whole_cache() -> None:
    caches = "float[1, 2, 10, 16] pk, float[1, 2, 10, 16] pv"
    model = small_model(
        f"(float[1, 3, 64] q, float[1, 3, 32] k, float[1, 3, 32] v, {caches}, int32[1] n, int32 t)"
        " => (float[1, 3, 64] y, float[1, 2, 13, 16] k2, float[1, 2, 13, 16] v2)"
        f" {{ y, k2, v2 = com.microsoft.{ATTENTION} }}"
    )
    assert work_of(model, "GroupQueryAttention")[0] == 2 * 3 * 64 * 13


@pytest.mark.parametrize(
    ("text", "op_type", "expected"),
    [
        ("(int64[2] i) => (float[2, 6] y) { y = Gather(w, i) }", "Gather", [48, 16, 48]),
        ("(float[2, 6] x) => (float[3, 4] y) { y = Reshape(x, s) }", "Reshape", [0, 0, 0]),
        ("(float[n, 6] x) => (int64[2] y) { y = Shape(x) }", "Shape", [0, 0]),
        ("(float[2, 6] x) => (float[2, 6] y) { y = Relu(x) }", "Relu", [48, 48]),
    ],
)
def test_bytes_are_those_that_are_touched(text: str, op_type: str, expected: list[int]) -> None:
    weights = {"w": weight(50, 6)} if "w," in text else {}
    weights |= {"s": np.array([3, 4])} if "s)" in text else {}
    assert work_of(small_model(text, **weights), op_type)[1] == expected


def seconds_of(model: ir.Model, op_type: str) -> float:
    """Seconds of the unsplit op on two ranks."""
    node, cost, factors = parts(model, op_type)
    values = [(v, WHOLE) for v in (*node.inputs, *node.outputs) if v is not None]
    return cost.op_seconds(factors.nodes.get(node), values)


def test_a_matrix_times_a_vector_waits_for_the_memory() -> None:
    model = small_model(
        "(float[1, 512] x) => (float[1, 256] y) { a = Relu(x) b = MatMul(a, w) y = Neg(b) }",
        w=weight(512, 256),
    )
    weights, activations = 4 * 512 * 256, 4 * (512 + 256)
    expected = weights / 1e11 + activations / 2e11 + RATES.op_seconds
    assert seconds_of(model, "MatMul") == pytest.approx(expected)


def test_a_matrix_times_many_rows_waits_for_the_flops() -> None:
    model = small_model(
        "(float[64, 512] x) => (float[64, 256] y) { z = Relu(x) y = MatMul(z, w) }",
        w=weight(512, 256),
    )
    flops = 2 * 64 * 512 * 256
    assert seconds_of(model, "MatMul") == pytest.approx(flops / 1e12 + RATES.op_seconds)


def test_what_no_cache_holds_comes_from_the_memory() -> None:
    text = "(float[{0}, 1024] x) => (float[{0}, 1024] y) {{ a = Relu(x) b = Exp(a) y = Neg(b) }}"
    small, large = (seconds_of(small_model(text.format(n)), "Exp") for n in (64, 512))
    assert small == pytest.approx(2 * 4 * 64 * 1024 / 2e11 + RATES.op_seconds)
    assert large == pytest.approx(2 * 4 * 512 * 1024 / 1e11 + RATES.op_seconds)


def test_a_split_op_costs_the_share_of_the_fullest_rank() -> None:
    model, shapes = canonicalize(
        small_model(
            "(float[1, 512] x) => (float[1, 301] y) { y = MatMul(x, w) }", w=weight(512, 301)
        )
    )
    space = StrategySpace(model.graph, solve_factors(model.graph, shapes), 2)
    cost = CostModel(NODE, shapes, 2, {})
    node = next(iter(model.graph))
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    found = {}
    for strategy in space.strategies(node):
        places = zip(values, (*strategy.operands, *strategy.results), strict=True)
        held = [(value, space.sharding(value, place)) for value, place in places]
        found[strategy.name] = cost.op_seconds(space.factors.nodes[node], held)
    whole = found.pop("replicated") - RATES.op_seconds
    split = found["split 301"] - RATES.op_seconds
    assert split / whole == pytest.approx(151 / 301, rel=0.01)


def test_a_reshard_costs_what_the_topology_says() -> None:
    model, shapes = canonicalize(small_model("(float[8] x) => (float[8] y) { y = Relu(x) }"))
    cost = CostModel(NODE, shapes, 4, {})
    expected = NODE.collective_seconds(ReshardKind.ALL_REDUCE, 4096, 4)
    assert cost.reshard_seconds(4096, SUM, WHOLE) == expected
    assert cost.reshard_seconds(4096, WHOLE, WHOLE) == 0
    assert math.isinf(cost.reshard_seconds(4096, SUM, WHOLE, is_weight=True))
    assert len(model.graph) == 1


def test_the_price_of_memory_follows_the_latency_of_the_link() -> None:
    """A plan must not depend on whether all of a machine is twice as slow."""
    model, shapes = canonicalize(
        small_model("(float[1, 8] x) => (float[1, 8] y) { y = MatMul(x, w) }", w=weight(8, 8))
    )
    slower = Topology("slower", DEVICE, (replace(FAST, hop_seconds=5e-6),))
    prices = [default_price(model.graph, CostModel(t, shapes, 2, {})) for t in (slower, NODE)]
    assert prices[0] / prices[1] == pytest.approx(6 / 3, rel=0.01)


def test_the_price_of_memory_follows_what_an_exchange_carries() -> None:
    """Else a plan for many tokens would hold every weight whole to send a little less."""
    model, shapes = canonicalize(
        small_model("(float[n, 8] x) => (float[n, 16] y) { y = MatMul(x, w) }", w=weight(8, 16))
    )
    for tokens in (1, 1 << 20):
        price = default_price(model.graph, CostModel(NODE, shapes, 2, {"n": tokens}))
        latency = NODE.collective_seconds(ReshardKind.ALL_REDUCE, 0, 2)
        carried = NODE.collective_seconds(ReshardKind.ALL_REDUCE, tokens * 8 * 4, 2)
        assert price * 8 * 16 * 4 == pytest.approx(5 * max(latency, carried - latency))
        assert tokens == 1 or carried > 2 * latency
