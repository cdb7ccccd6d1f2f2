"""Text of plans and sharded graphs; the form is that of `graph.text`."""

from __future__ import annotations

import onnx_ir as ir

from graph.layout import Layout
from graph.text import describe_type, graph_text
from tpcore.insert_reshards import ShardedGraph
from tpcore.plan import Plan
from tpcore.sharding import Sharding


def describe_sharding(value: ir.Value, held: Sharding, axis: str = "tp") -> str:
    """`f32[batch, 256@tp]`, `f32[batch, 64] partial(sum@tp)`."""
    note = f" partial(sum@{axis})" if held.is_partial else ""
    return describe_type(value, {dim: f"@{axis}" for dim in held.dims}, note)


def sharded_text(sharded: ShardedGraph) -> str:
    """A graph with global shapes and the split dims marked."""
    return graph_text(
        sharded.model,
        lambda value: describe_sharding(value, sharded.held(value)),
        header=str(sharded.mesh),
    )


def plan_text(plan: Plan) -> str:
    """The canonical graph with every value as the plan holds it, then how each node runs.

    Of weights whose parts are not even the index ranges follow: uneven, packed or overlapping ones.
    """
    text = graph_text(
        plan.model, lambda value: describe_sharding(value, plan.held(value)), str(plan.mesh)
    )
    chosen = plan.choices.strategy
    lines = ["strategies:"]
    lines += [f"  {node.name}: {chosen[node].name}" for node in plan.model.graph if node in chosen]
    special = [
        f"  {value.name} dim {split.dim}: {split.layout}"
        for value in plan.model.graph.initializers.values()
        for split in plan.held(value).splits
        if split.layout not in (None, Layout.even(split.whole, plan.mesh.size))
    ]
    return "\n".join([text.rstrip(), *lines, *(["layouts:", *special] if special else [])]) + "\n"


__all__ = ["describe_sharding", "graph_text", "plan_text", "sharded_text"]
