"""Names of a graph: every one defined once, every use defined, in order.

Checked on the protobuf form, where a broken graph can still be described.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx


@dataclass
class Scope:
    """Names of one graph: all that it defines, and those defined so far in node order."""

    names: set[str]
    defined: set[str]


@dataclass
class Findings:
    """What a walk over a model found."""

    violations: list[str] = field(default_factory=list)
    is_sorted: bool = True


def check_graphs(proto: onnx.ModelProto) -> tuple[list[str], bool]:
    """Violations of the graph, its subgraphs and functions, and whether nodes are in order."""
    findings = Findings()
    if not proto.graph.output:
        findings.violations.append("the graph has no outputs")
    _check_graph(proto.graph, "graph", [], findings)
    for function in proto.functions:
        where = f"function '{function.name}'"
        _check_nodes(function.node, list(function.input), function.output, where, [], findings)
    return findings.violations, findings.is_sorted


def _check_graph(
    graph: onnx.GraphProto, where: str, outer: list[Scope], findings: Findings
) -> None:
    inputs = [value.name for value in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    for kind, names in (("input", inputs), ("initializer", initializers)):
        _check_once(names, f"{where} {kind}", findings)
    given = list(dict.fromkeys(inputs + initializers))
    outputs = [value.name for value in graph.output]
    _check_nodes(graph.node, given, outputs, where, outer, findings)


def _check_nodes(
    nodes: Iterable[onnx.NodeProto],
    given: list[str],
    outputs: Iterable[str],
    where: str,
    outer: list[Scope],
    findings: Findings,
) -> None:
    produced = [name for node in nodes for name in node.output if name]
    _check_once([*given, *produced], f"{where} value", findings)
    scope = Scope({*given, *produced}, set(given))
    scopes = [*outer, scope]
    for node in nodes:
        _check_node(node, where, scopes, findings)
        scope.defined.update(node.output)
    for name in outputs:
        if not any(name in scope.names for scope in scopes):
            findings.violations.append(f"{where} output '{name}' is computed by no node")


def _check_node(node: onnx.NodeProto, where: str, scopes: list[Scope], findings: Findings) -> None:
    for name in node.input:
        if not name or any(name in scope.defined for scope in scopes):
            continue
        if any(name in scope.names for scope in scopes):
            findings.is_sorted = False
        else:
            findings.violations.append(
                f"node '{node.name}' ({node.op_type}) of the {where} uses '{name}', "
                "which nothing defines"
            )
    for attribute in node.attribute:
        graphs = [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
        for graph in graphs:
            inside = f"subgraph '{attribute.name}' of node '{node.name}'"
            _check_graph(graph, inside, scopes, findings)


def _check_once(names: list[str], what: str, findings: Findings) -> None:
    for name, count in Counter(names).items():
        if not name:
            findings.violations.append(f"{what} number {names.index(name)} has no name")
        elif count > 1:
            findings.violations.append(f"{what} '{name}' is defined {count} times")
