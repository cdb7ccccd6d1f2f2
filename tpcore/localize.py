"""Make one rank's graph: local weights, shape constants and attributes, no helper ops left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph.dialect import DOMAIN, VERSION, is_collective
from graph.dims import Dim, bind, divide, product
from graph.layout import box_of
from graph.names import fix_names
from graph.weights import ShardTensor
from tpcore.atoms import normal
from tpcore.distribute import ROOT
from tpcore.factors import NodeFactors, tensors_of
from tpcore.insert_reshards import ShardedGraph
from tpcore.legalize import KEEP_ON_ROOT, LOCAL_SLICE
from tpcore.localizers import LocalNode
from tpcore.ops import OPS
from tpcore.sharding import Chain, Sharding, split_dim

MAX_IR_VERSION = 13
NEVER_SLICED = {
    dtype
    for dtype in ir.DataType
    if dtype.name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
}
"""Types that Slice and Gather do not take."""


def localize(sharded: ShardedGraph, rank: int) -> ir.Model:
    """The graph of one rank; the sharded graph stays as it is."""
    model = sharded.model.clone()
    graph = model.graph
    model.ir_version = min(max(model.ir_version, 8), MAX_IR_VERSION)
    for value in graph.initializers.values():
        _localize_weight(value, sharded.held(value), rank)
    for source, node in zip(list(sharded.model.graph), list(graph), strict=True):
        local = LocalNode(node, source, rank, graph, sharded.shapes, sharded.shardings)
        _localize_node(sharded, local)
    _set_shapes(sharded, graph, rank)
    _drop_unused(graph)
    fix_names(model)  # a name made here may be one of the model's
    if any(node.domain == DOMAIN for node in graph):
        graph.opset_imports[DOMAIN] = VERSION
    return model


def _localize_weight(value: ir.Value, held: Sharding, rank: int) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    box = box_of(held.dims, held.layouts, rank, len(tensor.shape))
    part = ShardTensor(tensor, box, zero=held.is_partial and rank != ROOT)
    part.name = value.name
    value.const_value, value.shape = part, part.shape
    if tensor.dtype == ir.DataType.STRING:
        text = part.part_of(tensor.numpy())
        value.const_value = ir.StringTensor(text, shape=part.shape, name=value.name)


def _localize_node(sharded: ShardedGraph, local: LocalNode) -> None:
    node = local.node
    if node.domain == DOMAIN:
        _localize_step(local)
        return
    chain = sharded.chains.get(node.name or "")
    spec = OPS.get((node.domain, node.op_type))
    bound = sharded.plan.space.factors.nodes.get(local.source)
    if spec is None or chain is None or bound is None:
        return
    split = _split_factors(local, bound)
    for name, factors in spec.attributes.items():
        if name in node.attributes:
            size = _local_product(bound, factors.split(), chain, local.rank, split)
            node.attributes[name] = ir.AttrInt64(name, size)
    if spec.localize is not None:
        spec.localize(local)


def _split_factors(local: LocalNode, bound: NodeFactors) -> set[str]:
    """Factors in a dim that is split: the chain may run along others too, which are whole here."""
    return {
        name
        for value, tensor in tensors_of(local.source, bound.rule)
        for split in local.held(value).splits
        if tensor is not None and split.dim < len(tensor)
        for segment in tensor[split.dim]
        for name in segment
    }


def _local_product(
    bound: NodeFactors, factors: list[str], chain: Chain, rank: int, split: set[str]
) -> int:
    size = 1
    for name in factors:
        if name not in bound.factors:
            continue
        part = split_dim(0, normal(bound.factors[name]), chain) if name in split else None
        whole = bind(product(atom.size for atom in bound.factors[name]), {})
        size *= part.parts[rank] if part else whole
    return size


def _localize_step(local: LocalNode) -> None:
    """Replace a helper op by the plain nodes of this rank."""
    node, value = local.node, local.node.inputs[0]
    if value is None or is_collective(node):
        return
    if node.op_type == LOCAL_SLICE:
        local.become(_slice(local, value))
    elif node.op_type == KEEP_ON_ROOT:
        local.become(_root_or_zeros(local, value))


def _slice(local: LocalNode, value: ir.Value) -> ir.Value:
    """What the rank holds of a replicated value.

    Types that Slice does not take are cast to one that holds each of their values, and back.
    """
    dtype = value.dtype or ir.DataType.FLOAT
    carrier = _carrier(dtype)
    if carrier != dtype:
        value = _cast(local, value, carrier, "wide")
    for split in local.held(local.source.outputs[0]).splits:
        if split.layout is not None:
            value = _take(local, value, split.dim, split.layout.ranges[local.rank])
    return value if carrier == dtype else _cast(local, value, dtype, "narrow")


def _carrier(dtype: ir.DataType) -> ir.DataType:
    if dtype not in NEVER_SLICED:
        return dtype
    return ir.DataType.FLOAT if dtype.is_floating_point() else ir.DataType.INT8


def _cast(local: LocalNode, value: ir.Value, dtype: ir.DataType, label: str) -> ir.Value:
    attributes: dict[str, ir.Attr | int | list[int]] = {"to": dtype.value}
    if dtype.name.startswith("FLOAT8"):
        attributes["saturate"] = 0  # infinity stays what it is
    return local.emit("Cast", [value], label, dtype=dtype, attributes=attributes)


def _take(
    local: LocalNode, value: ir.Value, dim: int, ranges: tuple[tuple[int, int], ...]
) -> ir.Value:
    """One Slice where the rank holds one range, else a Gather of the indices."""
    label = f"dim{dim}"
    if len(ranges) == 1:
        start, stop = (
            local.constant(np.array([bound], np.int64), f"{label}_{name}")
            for bound, name in zip(ranges[0], ("start", "stop"), strict=True)
        )
        axis = local.constant(np.array([dim], np.int64), f"{label}_axis")
        return local.emit("Slice", [value, start, stop, axis], label)
    indices = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    index = local.constant(indices.astype(np.int64), f"{label}_indices")
    return local.emit("Gather", [value, index], label, attributes={"axis": dim})


def _root_or_zeros(local: LocalNode, value: ir.Value) -> ir.Value:
    if local.rank == ROOT:
        return local.emit("Identity", [value], "keep")
    dtype = value.dtype or ir.DataType.FLOAT
    shape = local.emit("Shape", [value], "shape", dtype=ir.DataType.INT64)
    zero = ir.AttrTensor("value", ir.tensor(np.zeros(1, dtype.numpy())))
    return local.emit("ConstantOfShape", [shape], "zeros", dtype=dtype, attributes={"value": zero})


def _set_shapes(sharded: ShardedGraph, graph: ir.Graph, rank: int) -> None:
    by_name = {value.name: dims for value, dims in sharded.shapes.dims.items()}
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        dims = by_name.get(value.name)
        if dims is None or value.type is None:
            value.shape = None
            continue
        held = sharded.shardings.get(value.name or "")
        local = [local_size(size, held, i, rank) if held else size for i, size in enumerate(dims)]
        value.shape = ir.Shape([s if isinstance(s, int) else str(s) for s in local])


def local_size(size: Dim, held: Sharding, dim: int, rank: int) -> Dim:
    """Size of a dim on `rank`."""
    split = held.split_of(dim)
    if split is None:
        return size
    units = divide(size, split.whole)
    return size if units is None else units * split.parts[rank]


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
