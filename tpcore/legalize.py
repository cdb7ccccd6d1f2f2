"""Turn every `Reshard` into at most one collective and local steps (table: `tpcore.reshard`).

Local steps are written as two helper ops that `localize` replaces per rank: `LocalSlice` keeps a
rank's ranges of a replicated value, `KeepOnRoot` keeps a value on rank 0 and zero elsewhere.
"""

from __future__ import annotations

import onnx_ir as ir

from graph import dialect
from graph.dialect import DOMAIN, VERSION, Collective
from graph.errors import VerifyError
from tpcore.insert_reshards import ShardedGraph
from tpcore.reshard import ReshardKind, reshard_kind
from tpcore.sharding import SUM, WHOLE, Sharding

LOCAL_SLICE = "LocalSlice"
KEEP_ON_ROOT = "KeepOnRoot"
AXIS = "tp"


def legalize(sharded: ShardedGraph) -> ShardedGraph:
    """Replace all Reshard nodes in place."""
    for node in list(sharded.model.graph):
        if node.domain == DOMAIN and node.op_type == "Reshard":
            have, want = sharded.reshards[node.name or ""]
            _replace(sharded, node, have, want)
    return sharded


def _replace(sharded: ShardedGraph, node: ir.Node, have: Sharding, want: Sharding) -> None:
    operand = node.inputs[0]
    if operand is None:
        return
    kind = reshard_kind(have, want)
    value = operand
    collective = _collective(kind, have, want)
    if collective is not None:
        value = _append(sharded, node, dialect.make_node(collective, value))
        have = WHOLE if kind is ReshardKind.ALL_GATHER else want
        sharded.shardings[value.name or ""] = have
    if not have.same_as(want):
        local = ir.node(
            KEEP_ON_ROOT if want.is_partial else LOCAL_SLICE,
            [value],
            {"dims": list(want.dims), "layouts": [str(layout) for layout in want.layouts]}
            if want.splits
            else {},
            domain=DOMAIN,
            version=VERSION,
        )
        value = _append(sharded, node, local)
    _take_over(sharded, node, value, want)


def _collective(kind: ReshardKind, have: Sharding, want: Sharding) -> Collective | None:
    match kind:
        case ReshardKind.ALL_REDUCE:
            return dialect.AllReduce(AXIS)
        case ReshardKind.ALL_GATHER:
            return dialect.AllGather(AXIS, have.dims, have.layouts)
        case ReshardKind.REDUCE_SCATTER:
            return dialect.ReduceScatter(AXIS, want.dims, want.layouts)
        case ReshardKind.ALL_TO_ALL:
            return dialect.AllToAll(
                AXIS, want.dims[0], have.dims[0], want.layouts[0], have.layouts[0]
            )
        case ReshardKind.IMPOSSIBLE:
            raise VerifyError(f"the planner chose a reshard that no collective does: {have} {want}")
    return None


def _append(sharded: ShardedGraph, anchor: ir.Node, node: ir.Node) -> ir.Value:
    old, result = anchor.outputs[0], node.outputs[0]
    node.name = f"{anchor.name}/{node.op_type}"
    result.name, result.type, result.shape = node.name, old.type, old.shape
    sharded.shapes.dims[result] = sharded.shapes.dims.get(old, ())
    anchor.prepend(node)
    return result


def _take_over(sharded: ShardedGraph, node: ir.Node, value: ir.Value, want: Sharding) -> None:
    old = node.outputs[0]
    name = old.name or ""
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    sharded.model.graph.remove(node, safe=True)
    old.name = None
    sharded.shardings.pop(value.name or "", None)
    value.name = name
    if want in (WHOLE,):
        sharded.shardings.pop(name, None)
    else:
        sharded.shardings[name] = want if want.splits else SUM
