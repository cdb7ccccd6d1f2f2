"""Small rewrites after legalization.

1. Of two equal collectives or local steps of the same value one is left.
2. Nodes whose results nobody reads are gone.
3. The remaining collectives are numbered in order: their `tag`.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from graph.dialect import DOMAIN, is_collective
from tpcore.insert_reshards import ShardedGraph


def simplify(sharded: ShardedGraph) -> ShardedGraph:
    """Apply the rewrites in place."""
    _merge_equal_steps(sharded.model.graph)
    common.TopologicalSortPass()(sharded.model)
    common.RemoveUnusedNodesPass()(sharded.model)
    for tag, node in enumerate(n for n in sharded.model.graph if is_collective(n)):
        node.attributes["tag"] = ir.AttrInt64("tag", tag)
    return sharded


def _merge_equal_steps(graph: ir.Graph) -> None:
    seen: dict[tuple[object, ...], ir.Value] = {}
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
        key = (node.op_type, node.inputs[0], *attributes)
        result = node.outputs[0]
        if key in seen and not result.is_graph_output():
            result.replace_all_uses_with(seen[key])
            graph.remove(node, safe=True)
        seen.setdefault(key, result)
