"""Unique names for the values and nodes of a model, with as few changes as possible.

Inputs and outputs of every graph keep theirs: a caller, or an op that runs its body by itself as
BeamSearch does, finds them by name. A result that is left out stays without a name: named, it would
be asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir


def fix_names(model: ir.Model) -> None:
    """Give every value and node of `model`, which has no functions, a name of its own in place."""
    _fix_graph(model.graph)
    names = _Names(set())
    for node in model.graph:
        node.name = names.take(node.name or "node")


class _Names:
    """Names given so far."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._counts: Counter[str] = Counter()

    def take(self, wanted: str) -> str:
        """`wanted`, or with a number behind it where it is taken."""
        name = wanted
        while name in self._taken:
            self._counts[wanted] += 1
            name = f"{wanted}_{self._counts[wanted]}"
        self._taken.add(name)
        return name


def _fix_graph(graph: ir.Graph) -> None:
    """Names of one graph differ from each other, from those that it reads from outside and from
    those inside its bodies."""
    bodies = list(_bodies(graph))
    for body in bodies:
        _fix_graph(body)
    fixed = {*graph.inputs, *graph.outputs}
    inside = (value for body in bodies for value in _all_values(body))
    names = _Names({v.name for v in (*fixed, *_outer_values(graph), *inside) if v.name})
    for value in list(_defined(graph)):
        if value not in fixed and (value.name or value.uses()):
            value.name = names.take(value.name or "v")


def _defined(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _bodies(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph()
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield from attribute.as_graphs()


def _all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from _defined(graph)
    for body in _bodies(graph):
        yield from _all_values(body)


def _outer_values(graph: ir.Graph) -> set[ir.Value]:
    """Values of the graphs around it that `graph` or one of its bodies reads."""
    read = {value for node in graph.all_nodes() for value in node.inputs if value is not None}
    return read - set(_all_values(graph))
