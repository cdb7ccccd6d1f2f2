"""Minimise where tables would not fit: exactly within a window that moves over the graph.

A dense net joins every layer with all earlier ones, and the tables of exact elimination grow with
what is joined. Here all variables outside of a window are fixed, those inside are chosen exactly,
and the window moves on until a whole pass finds nothing better. The result is a valid plan which
no change within a window improves; that no other is better is not proven.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from tpcore.planner.elimination import Contradiction, CostGraph, Table, TooWide, eliminate

V = TypeVar("V", bound=Hashable)

WINDOW = 64
"""Variables chosen at once; halved where their tables are too large still."""
PASSES = 8
FORBIDDEN = 1e9
"""Seconds that stand for an infinite cost on the way to a plan without one."""


def minimise(graph: CostGraph[V]) -> tuple[dict[V, int], bool]:
    """The assignment of least cost, and whether that is proven.

    Raises:
        Contradiction: no assignment has a finite cost, or none was found.
    """
    try:
        return eliminate(graph), True
    except TooWide:
        return by_windows(graph), False


def by_windows(graph: CostGraph[V]) -> dict[V, int]:
    """An assignment that no window improves. Raises Contradiction if all found cost infinitely."""
    soft = CostGraph(
        graph.sizes,
        {v: np.minimum(table, FORBIDDEN) for v, table in graph.unary.items()},
        {pair: np.minimum(table, FORBIDDEN) for pair, table in graph.pairs.items()},
    )
    order = _in_order(graph)
    around: dict[V, list[tuple[V, V]]] = {v: [] for v in graph.sizes}
    for a, b in graph.pairs:
        around[a].append((a, b))
        around[b].append((a, b))
    chosen = dict.fromkeys(graph.sizes, 0)
    cost = soft.cost(chosen)
    for _ in range(PASSES):
        for start in range(0, len(order), WINDOW // 2):
            _improve(soft, around, order[start : start + WINDOW], chosen)
        before, cost = cost, soft.cost(chosen)
        if cost >= before * (1 - 1e-12):
            break
    if not np.isfinite(graph.cost(chosen)):
        raise Contradiction("no plan satisfies all pins at once. Remove a pin.")
    return chosen


def _in_order(graph: CostGraph[V]) -> list[V]:
    """Variables so that neighbours are near each other: by depth, from the first one on."""
    joined: dict[V, list[V]] = {v: [] for v in graph.sizes}
    for a, b in graph.pairs:
        joined[a].append(b)
        joined[b].append(a)
    placed: dict[V, None] = {}
    for variable in graph.sizes:
        stack = [variable]
        while stack:
            one = stack.pop()
            if one not in placed:
                placed[one] = None
                stack += [other for other in reversed(joined[one]) if other not in placed]
    return list(placed)


def _improve(
    graph: CostGraph[V],
    around: Mapping[V, Sequence[tuple[V, V]]],
    window: Sequence[V],
    chosen: dict[V, int],
) -> None:
    """Choose the variables of the window anew, all others staying as they are."""
    try:
        chosen.update(eliminate(_inside(graph, around, window, chosen)))
    except TooWide:
        half = len(window) // 2
        if half:
            _improve(graph, around, window[:half], chosen)
            _improve(graph, around, window[half:], chosen)


def _inside(
    graph: CostGraph[V],
    around: Mapping[V, Sequence[tuple[V, V]]],
    window: Sequence[V],
    chosen: Mapping[V, int],
) -> CostGraph[V]:
    """The costs of a window, what lies outside of it being chosen already."""
    inside: CostGraph[V] = CostGraph()
    free = set(window)
    for variable in window:
        costs: Table = graph.unary[variable].copy()
        for a, b in around[variable]:
            if a not in free:
                costs += graph.pairs[a, b][chosen[a]]
            elif b not in free:
                costs += graph.pairs[a, b][:, chosen[b]]
        inside.add_variable(variable, costs)
    for variable in window:
        for a, b in around[variable]:
            if a == variable and b in free:
                inside.add_pair(a, b, graph.pairs[a, b])
    return inside
