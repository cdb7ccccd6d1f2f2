"""Drop nodes whose result is their operand: `Identity`, and `Dropout` outside of training."""

from __future__ import annotations

import onnx_ir as ir

TRAINING_MODE = 2
"""The operand of Dropout that says whether it drops anything."""


def drop_identities(graph: ir.Graph) -> None:
    """Let every other node read the operand itself; constants must be initializers."""
    for node in list(graph):
        source = node.inputs[0] if node.domain == "" and node.inputs else None
        if source is not None and (node.op_type == "Identity" or _is_idle_dropout(node)):
            _drop(graph, node, source)


def _is_idle_dropout(node: ir.Node) -> bool:
    if node.op_type != "Dropout":
        return False
    mode = node.inputs[TRAINING_MODE] if len(node.inputs) > TRAINING_MODE else None
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    trains = mode is not None and (mode.const_value is None or mode.const_value.numpy().any())
    return not trains and (mask is None or not (mask.uses() or mask.is_graph_output()))


def _drop(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Let the operand take the result's place, and its name where that is an output's.

    A value has one name: an input, a weight or another output keeps it, and so the node stays.
    """
    result = node.outputs[0]
    is_output, name = result.is_graph_output(), result.name
    if is_output and (source.producer() is None or source.is_graph_output()):
        return
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        result.name, source.name = None, name
