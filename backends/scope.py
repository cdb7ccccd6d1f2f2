"""What a node reads and holds once its subgraphs are counted in."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graph.dialect import is_collective

PASSES_ON = "passes_on"
"""In `meta` of a segment's output: True where only segments and collectives read it, so that an
executor may keep it in a type of its own."""


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """Values that a node reads, those that its subgraphs capture included."""
    yield from (value for value in node.inputs if value is not None)
    if any(attribute.type in _GRAPH_TYPES for attribute in node.attributes.values()):
        yield from _captured(node)


_GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _graphs_inside(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def nodes_inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of all subgraphs of a node, however deep."""
    for graph in _graphs_inside(node):
        for inner in graph:
            yield inner
            yield from nodes_inside(inner)


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    for graph in _graphs_inside(node):
        defined = {*graph.inputs, *graph.initializers.values()}
        for inner in graph:
            yield from (value for value in operands(inner) if value not in defined)
            defined.update(inner.outputs)
        yield from (value for value in graph.outputs if value not in defined)


def is_constant(node: ir.Node) -> bool:
    """Whether a node is ONNX's Constant."""
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


BLIND = ("Shape", "Size")
"""Ops that do not look at the contents of what they read."""


def follow_contents(graph: ir.Graph) -> tuple[set[ir.Value], set[ir.Value]]:
    """What the contents of inputs decide, and what decides the contents of outputs."""
    varying, wanted = set(graph.inputs), set(graph.outputs)
    nodes = [node for node in graph if node.op_type not in BLIND]
    for node in nodes:
        if any(value in varying for value in operands(node)):
            varying.update(node.outputs)
    for node in reversed(nodes):
        if any(value in wanted for value in node.outputs):
            wanted.update(operands(node))
    return varying, wanted


def leaves(value: ir.Value) -> bool:
    """Whether a value is an output of the rank graph, or collectives make one of it."""
    users = (node for node, _ in value.uses() if is_collective(node))
    return value.is_graph_output() or any(leaves(v) for node in users for v in node.outputs)
