"""Minimise a sum of unary and pairwise costs exactly, by eliminating variables in min-degree order.

Eliminating a variable replaces the tables it occurs in by one table over its neighbours, holding
the best it can do for each of their choices (bucket elimination, Dechter 1999). The largest table
has as many axes as the graph's treewidth under this order; transformer graphs have a treewidth of
about 2.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from graph.errors import PlanError

V = TypeVar("V", bound=Hashable)
Table = NDArray[np.float64]

_KEYS = itertools.count()


class Contradiction(PlanError):
    """What is prescribed for one part cannot be had together with what is for another."""


class TooWide(Exception):
    """A table would not fit in memory."""


MAX_TABLE = 10_000_000
"""Entries of the largest table worked on."""


@dataclass
class CostGraph(Generic[V]):
    """Variables with finite domains, and costs over one or two of them."""

    sizes: dict[V, int] = field(default_factory=dict)
    """Domain size per variable."""
    unary: dict[V, Table] = field(default_factory=dict)
    pairs: dict[tuple[V, V], Table] = field(default_factory=dict)

    def add_variable(self, variable: V, costs: Table) -> None:
        """Declare a variable by the cost of each of its values."""
        self.sizes[variable] = len(costs)
        self.unary[variable] = np.asarray(costs, np.float64)

    def add_pair(self, a: V, b: V, costs: Table) -> None:
        """Add the cost of each pair of values, [size of a, size of b]."""
        if (b, a) in self.pairs:
            self.pairs[b, a] = self.pairs[b, a] + costs.T
        elif (a, b) in self.pairs:
            self.pairs[a, b] = self.pairs[a, b] + costs
        else:
            self.pairs[a, b] = costs

    def cost(self, chosen: dict[V, int]) -> float:
        """Total cost of an assignment."""
        total = sum(float(table[chosen[v]]) for v, table in self.unary.items())
        return total + sum(float(t[chosen[a], chosen[b]]) for (a, b), t in self.pairs.items())


@dataclass
class _Bucket(Generic[V]):
    variables: tuple[V, ...]
    table: Table


def eliminate(graph: CostGraph[V]) -> dict[V, int]:
    """The assignment of least total cost; of equal ones the same one every time.

    Raises:
        Contradiction: no assignment has a finite cost.
        TooWide: a table would have more than MAX_TABLE entries.
    """
    tables: dict[int, _Bucket[V]] = {}
    touching: dict[V, set[int]] = {variable: set() for variable in graph.sizes}
    for variable, costs in graph.unary.items():
        _insert(tables, touching, _Bucket((variable,), costs))
    for pair, costs in graph.pairs.items():
        _insert(tables, touching, _Bucket(pair, costs))
    order = {variable: i for i, variable in enumerate(graph.sizes)}
    removed: list[tuple[V, _Bucket[V]]] = []
    heap = [(_degree(v, tables, touching), order[v], v) for v in graph.sizes]
    heapq.heapify(heap)
    while heap:
        degree, rank, variable = heapq.heappop(heap)
        if variable not in touching:
            continue
        if degree != (now := _degree(variable, tables, touching)):
            heapq.heappush(heap, (now, rank, variable))
            continue
        removed.append((variable, _eliminate(variable, graph, tables, touching)))
    return _read_back(removed)


def _insert(tables: dict[int, _Bucket[V]], touching: dict[V, set[int]], bucket: _Bucket[V]) -> None:
    key = next(_KEYS)
    tables[key] = bucket
    for variable in bucket.variables:
        touching[variable].add(key)


def _degree(variable: V, tables: dict[int, _Bucket[V]], touching: dict[V, set[int]]) -> int:
    return len({v for key in touching[variable] for v in tables[key].variables})


def _eliminate(
    variable: V,
    graph: CostGraph[V],
    tables: dict[int, _Bucket[V]],
    touching: dict[V, set[int]],
) -> _Bucket[V]:
    """Merge all tables of `variable` into one, it being the last axis, and put back the minimum."""
    buckets = [tables.pop(key) for key in sorted(touching.pop(variable))]
    others = list(dict.fromkeys(v for b in buckets for v in b.variables if v != variable))
    axes = (*others, variable)
    shape = [graph.sizes[v] for v in axes]
    if int(np.prod(shape, dtype=np.int64)) > MAX_TABLE:
        raise TooWide
    merged = np.zeros(shape)
    for bucket in buckets:
        merged += _align(bucket, axes)
    for v in others:
        touching[v] = {key for key in touching[v] if key in tables}
    if others:
        _insert(tables, touching, _Bucket(tuple(others), merged.min(axis=-1)))
    elif not np.isfinite(merged.min()):
        raise Contradiction("no plan satisfies all pins at once. Remove a pin.")
    return _Bucket(axes, merged)


def _align(bucket: _Bucket[V], axes: tuple[V, ...]) -> Table:
    """View a table with its axes in the order of `axes`, the missing ones of size one."""
    present = [bucket.variables.index(v) for v in axes if v in bucket.variables]
    table = bucket.table.transpose(present)
    index = tuple(slice(None) if v in bucket.variables else None for v in axes)
    return table[index]


def _read_back(removed: list[tuple[V, _Bucket[V]]]) -> dict[V, int]:
    chosen: dict[V, int] = {}
    for variable, bucket in reversed(removed):
        place = tuple(chosen[v] for v in bucket.variables[:-1])
        chosen[variable] = int(np.argmin(bucket.table[place]))
    return chosen
