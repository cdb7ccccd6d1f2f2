"""The exact solver against brute force, and its behaviour where no assignment will do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graph.errors import PlanError
from tpcore.planner import elimination
from tpcore.planner.elimination import CostGraph, eliminate

SEEDS = 200
MAX_VARIABLES, MAX_VALUES = 9, 4
MAX_ASSIGNMENTS = 5_000
"""Brute force stays quick; larger draws get fewer values per variable."""


def random_graph(seed: int) -> CostGraph[str]:
    """A random graph with unary and pairwise costs, some of them infinite, some repeated."""
    random = np.random.default_rng(seed)
    graph: CostGraph[str] = CostGraph()
    names = [f"v{i}" for i in range(random.integers(1, MAX_VARIABLES + 1))]
    total = 1
    for name in names:
        size = int(random.integers(1, MAX_VALUES + 1))
        size = size if total * size <= MAX_ASSIGNMENTS else 1
        total *= size
        graph.add_variable(name, random.integers(0, 20, size).astype(float))
    for a, b in itertools.combinations(names, 2):
        for _ in range(random.choice([0, 1, 2], p=[0.6, 0.3, 0.1])):
            costs = random.integers(0, 20, (graph.sizes[a], graph.sizes[b])).astype(float)
            costs[random.random(costs.shape) < 0.1] = np.inf
            graph.add_pair(a, b, costs) if random.random() < 0.5 else graph.add_pair(b, a, costs.T)
    return graph


def least_cost(graph: CostGraph[str]) -> float:
    """Least total cost by trying all assignments."""
    names = list(graph.sizes)
    choices = itertools.product(*(range(graph.sizes[name]) for name in names))
    return min(graph.cost(dict(zip(names, choice))) for choice in choices)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_equals_brute_force(seed: int) -> None:
    graph = random_graph(seed)
    best = least_cost(graph)
    if np.isinf(best):
        with pytest.raises(PlanError, match="no plan satisfies all pins at once"):
            eliminate(graph)
        return
    chosen = eliminate(graph)
    assert set(chosen) == set(graph.sizes)
    assert graph.cost(chosen) == best


def test_seeds_cover_what_they_should() -> None:
    graphs = [random_graph(seed) for seed in range(SEEDS)]
    assert max(len(graph.sizes) for graph in graphs) == MAX_VARIABLES
    assert sum(np.isinf(least_cost(graph)) for graph in graphs[:50]) < 25


def test_empty_graph() -> None:
    assert eliminate(CostGraph[str]()) == {}


def test_equal_costs_are_chosen_the_same_way_every_time() -> None:
    graph: CostGraph[str] = CostGraph()
    for name in "abcd":
        graph.add_variable(name, np.zeros(3))
    for a, b in itertools.pairwise("abcd"):
        graph.add_pair(a, b, np.ones((3, 3)) - np.eye(3))
    first = eliminate(graph)
    assert graph.cost(first) == 0
    assert all(eliminate(graph) == first for _ in range(5))


def test_pairs_given_in_both_orders_add_up() -> None:
    graph: CostGraph[str] = CostGraph()
    graph.add_variable("a", np.zeros(2))
    graph.add_variable("b", np.zeros(2))
    graph.add_pair("a", "b", np.array([[0.0, 3.0], [5.0, 5.0]]))
    graph.add_pair("b", "a", np.array([[4.0, 0.0], [0.0, 0.0]]))
    assert graph.cost({"a": 0, "b": 1}) == 3.0
    assert eliminate(graph) == {"a": 0, "b": 1}


def test_a_long_chain_is_quick() -> None:
    graph: CostGraph[int] = CostGraph()
    random = np.random.default_rng(0)
    for i in range(2000):
        graph.add_variable(i, random.random(4))
        if i:
            graph.add_pair(i - 1, i, random.random((4, 4)))
    assert len(eliminate(graph)) == 2000


def test_a_table_that_is_too_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "MAX_TABLE", 20)
    graph: CostGraph[str] = CostGraph()
    for name in "abcd":
        graph.add_variable(name, np.zeros(4))
    for a, b in itertools.combinations("abcd", 2):
        graph.add_pair(a, b, np.zeros((4, 4)))
    with pytest.raises(elimination.TooWide):
        eliminate(graph)
