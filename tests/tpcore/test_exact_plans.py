"""Plans of random graphs cost the least: against all assignments, and against HiGHS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from tests.graph.small import small_model
from tests.tpcore.exact_solvers import by_integer_program, by_trying_all, count_tries
from tests.tpcore.test_random_graphs import random_graph
from tpcore.planner.elimination import CostGraph, eliminate
from tpcore.planner.plans import Request, price_of, problem_of
from tpcore.planner.problem import Variable
from tpcore.workload import Work

SMALL, MIDDLE = 200, 20
SMALL_OPS, MIDDLE_OPS = (2, 8), (25, 40)
"""Besides the last one, a MatMul."""
MAX_TRIES = 2_000_000
CLOSE = 1e-6
"""Relative; HiGHS works with tolerances."""


def cost_graph(seed: int, ops: tuple[int, int], ranks: int) -> CostGraph[Variable]:
    """Costs of a random graph's plans, memory priced as usual."""
    made = random_graph(seed, *ops)
    model, shapes = canonicalize(small_model(made.text, **made.weights))
    problem = problem_of(model, shapes, [Work()], Request(ranks))
    price = price_of(model, shapes, [Work()], Request(ranks))
    unary = {v: problem.graph.unary[v] + price * held for v, held in problem.held.items()}
    return dataclasses.replace(problem.graph, unary={**problem.graph.unary, **unary})


def small_graphs() -> Iterator[CostGraph[Variable]]:
    """Those that can be tried through: not too many strategies, and no state that ties values."""
    for seed in range(10_000):
        graph = cost_graph(seed, SMALL_OPS, 2 + seed % 2)
        ties = any(isinstance(a[1], ir.Value) is isinstance(b[1], ir.Value) for a, b in graph.pairs)
        if 1 < count_tries(graph) <= MAX_TRIES and not ties:
            yield graph


def test_small_graphs_against_all_assignments() -> None:
    tries = 0
    for _, graph in zip(range(SMALL), small_graphs(), strict=False):
        tries += count_tries(graph)
        best = by_trying_all(graph)
        assert graph.cost(eliminate(graph)) == pytest.approx(best, rel=1e-12)
    print(f"{SMALL} graphs of up to 9 ops equal the best of {tries} assignments")
    assert tries > 10 * SMALL


def test_middle_graphs_against_an_integer_program() -> None:
    variables = 0
    for seed in range(MIDDLE):
        graph = cost_graph(1000 + seed, MIDDLE_OPS, 2 + seed % 3)
        variables += len(graph.sizes)
        assert graph.cost(eliminate(graph)) == pytest.approx(by_integer_program(graph), rel=CLOSE)
    print(f"{MIDDLE} graphs, {variables} variables in all, equal HiGHS's optimum")


def test_a_worse_plan_is_seen() -> None:
    """The negative control: any other assignment than the best costs more or as much."""
    graph = next(small_graphs())
    chosen = eliminate(graph)
    worst = max(
        graph.cost({**chosen, v: i}) for v, size in graph.sizes.items() for i in range(size)
    )
    assert worst > by_trying_all(graph) * (1 + 1e-9)
