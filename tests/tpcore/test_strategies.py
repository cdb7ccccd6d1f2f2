"""What splits a graph offers: head splits reach the weights, packed and uneven dims, squares."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from graph.errors import PlanError
from tests.graph.small import small_model, weight
from tests.tpcore.toys import (
    error_of,
    grouped_attention,
    mlp,
    packed_attention,
    placements,
    planned,
    shapes_of,
)
from tpcore.factors import solve_factors
from tpcore.planner.options import placement_text
from tpcore.planner.plans import make_plan
from tpcore.sharding import PARTIAL, REPLICATE, Chain, Placement
from tpcore.strategies import StrategySpace


def space_of(model: ir.Model, ranks: int) -> StrategySpace:
    """Chains and strategies of a model."""
    canonical, shapes = canonicalize(model.clone())
    return StrategySpace(canonical.graph, solve_factors(canonical.graph, shapes), ranks)


def value_of(space: StrategySpace, name: str) -> ir.Value:
    """A value of the graph, by name."""
    outputs = [out for node in space.graph for out in node.outputs]
    return next(v for v in (*space.graph.initializers.values(), *outputs) if v.name == name)


def chain_along(space: StrategySpace, name: str, dim: int) -> Chain:
    """The only chain that splits dim `dim` of a value, no other dim of it, and without overlap."""
    value = value_of(space, name)
    found = []
    for chain in space.chains:
        splits = space.sharding(value, Placement("S", chain)).splits
        if [s.dim for s in splits] == [dim] and sum(splits[0].parts) == splits[0].whole:
            found.append(chain)
    assert len(found) == 1, [str(chain) for chain in found]
    return found[0]


def texts(space: StrategySpace, chain: Chain, *names: str) -> tuple[str, ...]:
    """How the named values are held when split along `chain`."""
    place = Placement("S", chain)
    return tuple(placement_text(space.sharding(value_of(space, name), place)) for name in names)


def strategy_texts(space: StrategySpace, node: ir.Node) -> list[str]:
    """Placements of operands and results of every strategy of a node."""

    def text(value: ir.Value | None, place: Placement) -> str:
        return "-" if value is None else placement_text(space.sharding(value, place))

    return [
        ", ".join(text(v, p) for v, p in zip(node.inputs, s.operands, strict=True))
        + " -> "
        + ", ".join(text(v, p) for v, p in zip(node.outputs, s.results, strict=True))
        for s in space.strategies(node)
    ]


# --- heads ----------------------------------------------------------------------------------------

QUERIES = {
    2: "S(1) 0:16 16:32",
    3: "S(1) 0:16 16:24 24:32",
    4: "S(1) 0:8 8:16 16:24 24:32",
    8: "S(1) 0:4 4:8 8:12 12:16 16:20 20:24 24:28 28:32",
}
KEYS = {
    2: "S(1) 0:8 8:16",
    3: "S(1) 0:8 8:12 12:16",
    4: "S(1) 0:4 4:8 8:12 12:16",
    8: "S(1) 0:4 0:4 4:8 4:8 8:12 8:12 12:16 12:16",
}


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_a_split_of_grouped_heads_reaches_the_weights(ranks: int) -> None:
    """Eight query heads of four on four kv heads: met in a Reshape, found again in the weights."""
    space = space_of(grouped_attention(8, 4), ranks)
    chain = chain_along(space, "s", 1)
    wq, wk, wv, wo = texts(space, chain, "wq", "wk", "wv", "wo")
    assert wq == QUERIES[ranks]
    assert wk == wv == KEYS[ranks]
    assert wo == wq.replace("S(1)", "S(0)")


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_grouped_attention_is_right(ranks: int) -> None:
    model = grouped_attention(8, 4)
    assert error_of(model, planned(model, ranks)) < 1e-5


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_every_query_head_meets_its_kv_head(ranks: int) -> None:
    """The kv heads of a rank are those its query heads share, whatever the number of ranks."""
    space = space_of(grouped_attention(8, 4), ranks)
    place = Placement("S", chain_along(space, "s", 1))
    (queries,) = space.sharding(value_of(space, "qt"), place).layouts
    (keys,) = space.sharding(value_of(space, "k1"), place).layouts
    for rank in range(ranks):
        assert {int(head) // 2 for head in queries.indices(rank)} == set(keys.indices(rank))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_one_kv_head_stays_whole(ranks: int) -> None:
    """Multi-query attention: every rank has query heads, and all of the one key and value."""
    space = space_of(grouped_attention(8, 1), ranks)
    place = Placement("S", chain_along(space, "s", 1))
    assert space.sharding(value_of(space, "wq"), place).dims == (1,)
    assert space.sharding(value_of(space, "wk"), place).dims == ()
    model = grouped_attention(8, 1)
    assert error_of(model, planned(model, ranks)) < 1e-5


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (2, "S(1) 0:8+16:24+32:40 8:16+24:32+40:48"),
        (3, "S(1) 0:8+16:24+32:40 8:12+24:28+40:44 12:16+28:32+44:48"),
        (4, "S(1) 0:4+16:20+32:36 4:8+20:24+36:40 8:12+24:28+40:44 12:16+28:32+44:48"),
    ],
)
def test_a_packed_weight_is_split_in_each_of_its_parts(ranks: int, text: str) -> None:
    """As Megatron does: by cost four heads on three ranks might be too uneven."""
    model = packed_attention(heads=4)
    plan = make_plan(*canonicalize(model.clone()), ranks, preset="megatron")
    assert placements(plan)["wqkv"] == text
    assert placements(plan)["bqkv"] == text.replace("S(1)", "S(0)")
    assert error_of(model, plan) < 1e-5


FUSED = """(float[2, 5, 6] x, int32[2] last, int32[1] total) => (float[2, 5, 6] y) {
    packed = MatMul(x, w)
    o, k, v = com.microsoft.GroupQueryAttention <num_heads = 8, kv_num_heads = 4>
        (packed, , , , , last, total)
    y = MatMul(o, wo)
}"""


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (2, "S(1) 0:16+32:40+48:56 16:32+40:48+56:64"),
        (3, "S(1) 0:16+32:40+48:56 16:24+40:44+56:60 24:32+44:48+60:64"),
        (8, "S(1) 0:4+32:36+48:52 4:8+32:36+48:52 8:12+36:40+52:56 12:16+36:40+52:56 "
            "16:20+40:44+56:60 20:24+40:44+56:60 24:28+44:48+60:64 28:32+44:48+60:64"),
    ],
)  # fmt: skip
def test_a_packed_weight_of_fused_attention(ranks: int, text: str) -> None:
    """Queries, keys and values have different sizes, and kv heads overlap on eight ranks."""
    space = space_of(small_model(FUSED, w=weight(6, 64), wo=weight(32, 6)), ranks)
    fused = space.graph[1]
    (split,) = [s for s in space.strategies(fused) if s.name != "replicated"]
    chain = split.operands[0].chain
    assert chain is not None
    assert texts(space, chain, "w") == (text,)


# --- uneven dims, squares -------------------------------------------------------------------------


def test_features_that_the_ranks_do_not_divide() -> None:
    model = mlp(hidden=250)
    plan = planned(model, 4)
    held = placements(plan)
    assert held["w1"] == "S(1) 0:63 63:126 126:188 188:250"
    assert held["b1"] == held["w2"] == "S(0) 0:63 63:126 126:188 188:250"
    assert error_of(model, plan) < 1e-5


RESIDUAL = """(float[3, 8] x) => (float[3, 8] y) {
    h = MatMul(x, w)
    r = Add(x, h)
    a = Relu(r)
    p = MatMul(a, v)
    y = Add(r, p)
}"""


def test_a_square_weight_under_a_residual_is_not_split_on_its_diagonal() -> None:
    """Rows and columns of `w` are one atom; each is split by itself."""
    space = space_of(small_model(RESIDUAL, w=weight(8, 8), v=weight(8, 8, seed=1)), 2)
    even = "0:4 4:8"
    assert set(strategy_texts(space, space.graph[0])) == {
        "R, R -> R",
        f"S(1) {even}, S(0) {even} -> P(sum)",
        f"R, S(1) {even} -> S(1) {even}",
        "P(sum), R -> P(sum)",
        "R, P(sum) -> P(sum)",
    }


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_split_of_a_square_weight_is_right(ranks: int) -> None:
    model = small_model(RESIDUAL, w=weight(8, 8), v=weight(8, 8, seed=1))
    first = planned(model, ranks)
    for index in range(len(first.space.strategies(first.model.graph[0]))):
        plan = planned(model, ranks)
        node = plan.model.graph[0]
        strategy = plan.space.strategies(node)[index]
        plan.choices.strategy[node] = strategy
        plan.choices.hub[node.inputs[1]] = strategy.operands[1]  # type: ignore[index]
        assert error_of(model, plan) < 1e-5


def test_a_dim_that_is_both_operands_rows_is_split_in_both() -> None:
    """Two uses of one activation: the scores of x with itself are split on one side at a time."""
    text = """(float[4, 8] x) => (float[4, 4] y) {
        h = MatMul(x, w)
        t = Transpose(h)
        y = MatMul(h, t)
    }"""
    space = space_of(small_model(text, w=weight(8, 8)), 2)
    node = space.graph[2]
    assert "S(1) 0:4 4:8, S(0) 0:4 4:8 -> P(sum)" in strategy_texts(space, node)


def test_a_sum_over_a_packed_dim_counts_nothing_twice() -> None:
    """`x` is whole on every rank: a sum over what is made of `h` and `x` would add it twice."""
    text = """(float[3, 6] x) => (float[3, 20] y) {
        h = MatMul(x, w)
        c = Concat <axis = 1> (h, x)
        y = MatMul(c, v)
    }"""
    space = space_of(small_model(text, w=weight(6, 8), v=weight(14, 20)), 2)
    concat, matmul = space.graph[1], space.graph[2]
    assert "S(1) 0:4 4:8, R -> S(1) 0:4+8:14 4:14" in strategy_texts(space, concat)
    assert not any(held.startswith("S(1)") for held in strategy_texts(space, matmul))


# --- what is not split ----------------------------------------------------------------------------


def test_an_op_without_a_rule_runs_replicated() -> None:
    text = "(float[4, 8] x) => (float[4, 8] y) { h = MatMul(x, w) y = EyeLike(h) }"
    space = space_of(small_model(text, w=weight(8, 8)), 2)
    (only,) = space.strategies(space.graph[-1])
    assert only.name == "replicated"
    assert set((*only.operands, *only.results)) == {REPLICATE}


def test_a_node_with_a_result_of_unknown_shape_runs_replicated() -> None:
    """Its operand could be split, but nothing is known of what the result would then be."""
    text = "(float[4, 8] x) => (float y) { h = MatMul(x, w) y = Relu(h) }"
    canonical, shapes = canonicalize(small_model(text, w=weight(8, 8)))
    output = canonical.graph.outputs[0]
    shapes.dims.pop(output)
    space = StrategySpace(canonical.graph, solve_factors(canonical.graph, shapes), 2)
    assert [s.name for s in space.strategies(canonical.graph[-1])] == ["replicated"]


def test_integers_are_no_partial_sums() -> None:
    text = "(int64[4, 8] x) => (int64[4, 8] y) { y = Neg(x) }"
    space = space_of(small_model(text), 2)
    assert all(PARTIAL not in s.operands for s in space.strategies(space.graph[0]))


def test_symbolic_dims_are_not_split() -> None:
    text = "(float[n, 8] x) => (float[n, 6] y) { y = MatMul(x, w) }"
    space = space_of(small_model(text, w=weight(8, 6)), 2)
    assert {chain.atoms[0].size for chain in space.chains} == {8, 6}


def test_no_chain_leaves_a_rank_without_a_part() -> None:
    space = space_of(mlp(hidden=12, width=8), 9)
    assert {chain.atoms[0].size for chain in space.chains} == {12}


def test_one_rank_has_no_chains() -> None:
    space = space_of(mlp(), 1)
    assert space.chains == []
    assert all(len(space.strategies(node)) == 1 for node in space.graph)


def test_more_ranks_than_any_dim_has() -> None:
    with pytest.raises(PlanError) as caught:
        planned(mlp(hidden=12, width=8), 13)
    assert "tp=13" in str(caught.value) and "12" in str(caught.value)


def test_a_looked_up_table_is_split_in_whole_ranges_only() -> None:
    """A table whose rows are packed elsewhere cannot be looked up by range."""
    text = """(int64[3] i, float[3, 12] x) => (float[3, 6] y, float[3, 6] e, float[3, 6] f) {
        e = Gather(table, i)
        m = MatMul(x, table)
        a, b = Split <axis = 1> (x, parts)
        y = Add(e, m)
        f = Concat <axis = 1> (a, b)
    }"""
    model = small_model(text, table=weight(12, 6), **shapes_of(parts=[4, 8]))
    space = space_of(model, 2)
    gather = next(node for node in space.graph if node.op_type == "Gather")
    found = strategy_texts(space, gather)
    assert not any("+" in text for text in found)
    assert "S(1) 0:3 3:6, R -> S(1) 0:3 3:6" in found
