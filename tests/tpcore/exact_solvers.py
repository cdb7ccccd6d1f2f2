"""The least cost of a plan by two other ways: trying everything, and an integer program."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from tpcore.planner.elimination import CostGraph, Table
from tpcore.planner.problem import Variable

FORBIDDEN = 1e6
"""Stands for an infinite cost in the integer program."""


def nodes_of(graph: CostGraph[Variable]) -> list[Variable]:
    """The variables that are strategies of nodes."""
    return [variable for variable in graph.sizes if isinstance(variable[1], ir.Node)]


def count_tries(graph: CostGraph[Variable]) -> int:
    """Number of ways to give every node a strategy."""
    return int(np.prod([graph.sizes[v] for v in nodes_of(graph)], dtype=np.int64))


def by_trying_all(graph: CostGraph[Variable]) -> float:
    """Least cost over all strategies of all nodes at once.

    Given the strategies, the hubs of values do not depend on each other: each is the best one for
    the nodes around it. (Two values tied as a state would: such graphs are not given here.)
    """
    nodes = nodes_of(graph)
    axis = {variable: i for i, variable in enumerate(nodes)}
    total = np.zeros([graph.sizes[v] for v in nodes])
    for variable in nodes:
        total = total + _along(graph.unary[variable], [axis[variable]], len(nodes))
    for variable, costs in graph.unary.items():
        if variable not in axis:
            total = total + _best_hub(graph, variable, costs, axis)
    return float(total.min())


def _best_hub(
    graph: CostGraph[Variable], value: Variable, costs: Table, axis: dict[Variable, int]
) -> Table:
    """Least cost of a value's hub, for all strategies of the nodes around it."""
    found = []
    for hub, cost in enumerate(costs):
        table = np.full([1] * len(axis), cost)
        for (a, b), pair in graph.pairs.items():
            if a == value:
                table = table + _along(pair[hub], [axis[b]], len(axis))
            elif b == value:
                table = table + _along(pair[:, hub], [axis[a]], len(axis))
        found.append(table)
    return np.min(np.broadcast_arrays(*found), axis=0)


def _along(table: Table, axes: list[int], count: int) -> Table:
    shape = [1] * count
    for size, axis in zip(table.shape, axes, strict=True):
        shape[axis] = size
    return table.reshape(shape)


def by_integer_program(graph: CostGraph[Variable]) -> float:
    """Least cost by HiGHS: a 0/1 variable per choice, and one per pair of choices.

    The pairs' variables may be fractions: they are as the choices say, in rows and in columns.
    """
    starts: dict[object, int] = {}
    costs: list[Table] = []
    count = 0
    for key, table in [*graph.unary.items(), *graph.pairs.items()]:
        starts[key] = count
        costs.append(np.minimum(table, FORBIDDEN / _unit(graph)).reshape(-1) * _unit(graph))
        count += table.size
    rows: list[tuple[list[int], list[float], float]] = [
        (list(range(starts[v], starts[v] + size)), [1.0] * size, 1.0)
        for v, size in graph.sizes.items()
    ]
    for (a, b), table in graph.pairs.items():
        places = np.arange(table.size).reshape(table.shape) + starts[a, b]
        for i, line in enumerate(places):
            rows.append(([*line, starts[a] + i], [1.0] * len(line) + [-1.0], 0.0))
        for j, line in enumerate(places.T):
            rows.append(([*line, starts[b] + j], [1.0] * len(line) + [-1.0], 0.0))
    whole = sum(graph.sizes.values())
    found = milp(
        np.concatenate(costs),
        constraints=LinearConstraint(_matrix(rows, count), *[[row[2] for row in rows]] * 2),
        integrality=np.r_[np.ones(whole), np.zeros(count - whole)],
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    assert found.success, found.message
    return float(found.fun) / _unit(graph)


def _unit(graph: CostGraph[Variable]) -> float:
    """What makes the largest finite cost a thousand: solvers have absolute tolerances."""
    tables = [*graph.unary.values(), *graph.pairs.values()]
    return 1e3 / max(float(t[np.isfinite(t)].max(initial=0)) for t in tables)


def _matrix(rows: list[tuple[list[int], list[float], float]], count: int) -> sparse.csr_matrix:
    matrix = sparse.lil_matrix((len(rows), count))
    for i, (columns, factors, _) in enumerate(rows):
        matrix[i, columns] = factors
    return matrix.tocsr()
