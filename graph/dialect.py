"""The collective dialect: op domain `tpcore`, version 1.

Each collective is one frozen dataclass that knows its ONNX attributes, its type rule, its meaning
over the list of all ranks' arrays (the oracle every backend is tested against), and the bytes a
rank must send at least.

Drawing for two ranks, values per rank:

    AllReduce(sum)       [1 2] [3 4]   ->  [4 6]     [4 6]
    AllGather(dim 0)     [1 2] [3 4]   ->  [1 2 3 4] [1 2 3 4]
    ReduceScatter(sum)   [1 2] [3 4]   ->  [4]       [6]
    AllToAll             [1 2] [3 4]   ->  [1 3]T    [2 4]T    (split_dim 1, concat_dim 0)
    Broadcast(root 0)    [1 2] [3 4]   ->  [1 2]     [1 2]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graph.errors import GraphError
from graph.layout import Box, Layout, box_of, put_box, take_box

DOMAIN = "tpcore"
VERSION = 1
REDUCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}

Shape = tuple[int, ...]


def reduce_in_rank_order(parts: Sequence[np.ndarray], reduce: str) -> np.ndarray:
    """Reduce the ranks' arrays in rank order; 16-bit floats in float32, rounded once."""
    dtype = parts[0].dtype
    wide = np.float32 if dtype in (np.float16, ml_dtypes.bfloat16) else dtype
    total = parts[0].astype(wide)
    for part in parts[1:]:
        REDUCTIONS[reduce](total, part.astype(wide, copy=False), out=total)
    return total.astype(dtype, copy=False)


@dataclass(frozen=True)
class AllReduce:
    """Every rank gets the elementwise reduction over the axis.

    - operand and result have the same shape and dtype on every rank;
    - the reduction runs in rank order, so all ranks hold the same bits.
    """

    axis: str
    reduce: str = "sum"

    op_type: ClassVar[str] = "AllReduce"

    def result_shape(self, local: Shape, rank: int) -> Shape:
        """Shape of the result on `rank` for an operand of shape `local`."""
        return local

    def meaning(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results of all ranks for the operands of all ranks."""
        total = reduce_in_rank_order(parts, self.reduce)
        return [total.copy() for _ in parts]

    def bytes_sent(self, full_bytes: int, ranks: int) -> float:
        """Lower bound of bytes a rank sends, for a full tensor of `full_bytes`."""
        return 2 * (ranks - 1) / ranks * full_bytes


@dataclass(frozen=True)
class AllGather:
    """Every rank gets the whole tensor, assembled from the boxes the ranks hold.

    - rank r holds, of each dim in `dims`, the ranges `layouts[i].ranges[r]`;
    - where boxes overlap the ranks hold equal values.
    """

    axis: str
    dims: tuple[int, ...]
    layouts: tuple[Layout, ...]

    op_type: ClassVar[str] = "AllGather"

    def result_shape(self, local: Shape, rank: int) -> Shape:
        """Shape of the result on `rank` for an operand of shape `local`."""
        sizes = {dim: layout.global_size for dim, layout in zip(self.dims, self.layouts)}
        return tuple(sizes.get(dim, size) for dim, size in enumerate(local))

    def operand_shape(self, whole: Shape, rank: int) -> Shape:
        """Shape of the operand on `rank` for a result of shape `whole`."""
        sizes = {dim: layout.sizes[rank] for dim, layout in zip(self.dims, self.layouts)}
        return tuple(sizes.get(dim, size) for dim, size in enumerate(whole))

    def in_order(self, whole: Shape) -> bool:
        """Whether the parts, one after the other, already are the whole tensor."""
        if len(self.dims) != 1 or math.prod(whole[: self.dims[0]]) > 1:
            return False
        layout = self.layouts[0]
        ranges = [held for rank in layout.ranges for held in rank]
        return layout.disjoint and ranges == sorted(ranges)

    def assemble(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The whole tensor from the parts of all ranks."""
        whole = np.empty(self.result_shape(parts[0].shape, 0), parts[0].dtype)
        self.fill(whole, parts)
        return whole

    def fill(self, whole: Any, parts: Sequence[Any]) -> None:
        """Write the parts of all ranks into `whole`; arrays of any library that slices alike."""
        for rank in reversed(range(len(parts))):
            put_box(whole, box_of(self.dims, self.layouts, rank, whole.ndim), parts[rank])

    def meaning(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results of all ranks for the operands of all ranks."""
        return [self.assemble(parts) for _ in parts]

    def bytes_sent(self, full_bytes: int, ranks: int) -> float:
        """Lower bound of bytes a rank sends, for a full tensor of `full_bytes`."""
        return (ranks - 1) / ranks * full_bytes


@dataclass(frozen=True)
class ReduceScatter:
    """Rank r gets its box of the reduction.

    - the operand has the full shape on every rank;
    - the reduction runs in rank order.
    """

    axis: str
    dims: tuple[int, ...]
    layouts: tuple[Layout, ...]
    reduce: str = "sum"

    op_type: ClassVar[str] = "ReduceScatter"

    def result_shape(self, local: Shape, rank: int) -> Shape:
        """Shape of the result on `rank` for an operand of shape `local`."""
        sizes = {dim: layout.sizes[rank] for dim, layout in zip(self.dims, self.layouts)}
        return tuple(sizes.get(dim, size) for dim, size in enumerate(local))

    def piece(self, array: np.ndarray, rank: int) -> np.ndarray:
        """The part of a full `array` that belongs to `rank`."""
        return take_box(array, self.piece_box(rank, array.ndim))

    def piece_box(self, rank: int, ndim: int) -> Box:
        """Where in a full array that part lies."""
        return box_of(self.dims, self.layouts, rank, ndim)

    def meaning(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results of all ranks for the operands of all ranks."""
        total = reduce_in_rank_order(parts, self.reduce)
        return [self.piece(total, rank).copy() for rank in range(len(parts))]

    def bytes_sent(self, full_bytes: int, ranks: int) -> float:
        """Lower bound of bytes a rank sends, for a full tensor of `full_bytes`."""
        return (ranks - 1) / ranks * full_bytes


@dataclass(frozen=True)
class AllToAll:
    """Moves the split from `concat_dim` to `split_dim`.

    - the operand is split on `concat_dim` by `concat_layout` and whole on `split_dim`;
    - the result is split on `split_dim` by `split_layout` and whole on `concat_dim`.
    """

    axis: str
    split_dim: int
    concat_dim: int
    split_layout: Layout
    concat_layout: Layout

    op_type: ClassVar[str] = "AllToAll"

    def result_shape(self, local: Shape, rank: int) -> Shape:
        """Shape of the result on `rank` for an operand of shape `local`."""
        shape = list(local)
        shape[self.split_dim] = self.split_layout.sizes[rank]
        shape[self.concat_dim] = self.concat_layout.global_size
        return tuple(shape)

    def piece_shape(self, local: Shape, source: int, target: int) -> Shape:
        """Shape of what `source` sends to `target`, for an operand of shape `local` on any rank."""
        shape = list(local)
        shape[self.concat_dim] = self.concat_layout.sizes[source]
        shape[self.split_dim] = self.split_layout.sizes[target]
        return tuple(shape)

    def piece(self, array: np.ndarray, target: int) -> np.ndarray:
        """What a rank holding `array` sends to `target`."""
        return take_box(array, self.piece_box(target, array.ndim))

    def piece_box(self, target: int, ndim: int) -> Box:
        """Where in the operand that piece lies."""
        return box_of([self.split_dim], [self.split_layout], target, ndim)

    def assemble(self, pieces: Sequence[np.ndarray], rank: int) -> np.ndarray:
        """The result on `rank` from the pieces of all ranks."""
        whole = np.empty(self.result_shape(pieces[rank].shape, rank), pieces[0].dtype)
        self.fill(whole, pieces)
        return whole

    def fill(self, whole: Any, pieces: Sequence[Any]) -> None:
        """Write the pieces of all ranks into `whole`; arrays of any library that slices alike."""
        for source in reversed(range(len(pieces))):
            box = box_of([self.concat_dim], [self.concat_layout], source, whole.ndim)
            put_box(whole, box, pieces[source])

    def meaning(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results of all ranks for the operands of all ranks."""
        ranks = range(len(parts))
        return [self.assemble([self.piece(part, rank) for part in parts], rank) for rank in ranks]

    def bytes_sent(self, full_bytes: int, ranks: int) -> float:
        """Lower bound of bytes a rank sends, for a full tensor of `full_bytes`."""
        return (ranks - 1) / ranks**2 * full_bytes


@dataclass(frozen=True)
class Broadcast:
    """Every rank gets the value that `root` holds; all operands have the same shape and dtype."""

    axis: str
    root: int = 0

    op_type: ClassVar[str] = "Broadcast"

    def result_shape(self, local: Shape, rank: int) -> Shape:
        """Shape of the result on `rank` for an operand of shape `local`."""
        return local

    def meaning(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results of all ranks for the operands of all ranks."""
        return [parts[self.root].copy() for _ in parts]

    def bytes_sent(self, full_bytes: int, ranks: int) -> float:
        """Lower bound of bytes a rank sends, for a full tensor of `full_bytes`."""
        return float(full_bytes) if ranks > 1 else 0.0


Collective = AllReduce | AllGather | ReduceScatter | AllToAll | Broadcast
COLLECTIVES: dict[str, type[Collective]] = {
    op.op_type: op for op in (AllReduce, AllGather, ReduceScatter, AllToAll, Broadcast)
}


def is_collective(node: ir.Node) -> bool:
    """Whether `node` is an exchange between ranks."""
    return node.domain == DOMAIN and node.op_type in COLLECTIVES


def make_node(op: Collective, operand: ir.Value, tag: int = 0) -> ir.Node:
    """The graph node of a collective; `tag` numbers the collectives of a graph in order."""
    attributes: dict[str, Any] = {"tag": tag}
    for field in fields(op):
        attributes[field.name] = _to_attribute(getattr(op, field.name))
    return ir.node(op.op_type, [operand], attributes, domain=DOMAIN, version=VERSION)


def parse_node(node: ir.Node) -> Collective:
    """The collective a node stands for.

    Raises:
        GraphError: the op is unknown or an attribute is missing or malformed.
    """
    kind = COLLECTIVES.get(node.op_type)
    if node.domain != DOMAIN or kind is None:
        raise GraphError(
            f"node '{node.name}' has op {node.domain}:{node.op_type}, which is no collective. "
            f"Known collectives: {', '.join(COLLECTIVES)}."
        )
    try:
        return kind(**{f.name: _from_attribute(node, f.name) for f in fields(kind)})
    except (KeyError, ValueError, TypeError) as error:
        raise GraphError(
            f"collective '{node.name}' ({node.op_type}) has a missing or malformed attribute: "
            f"{error}. Write the bundle again with this version of tpcore."
        ) from error


def tag_of(node: ir.Node) -> int:
    """Position of a collective in the order that all ranks follow."""
    return node.attributes["tag"].as_int()


def _to_attribute(value: Any) -> Any:
    if isinstance(value, Layout):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Layout):
        return [str(layout) for layout in value]
    return list(value) if isinstance(value, tuple) else value


def _from_attribute(node: ir.Node, name: str) -> Any:
    value = node.attributes[name].value
    if name in ("split_layout", "concat_layout"):
        return Layout.parse(value)
    if name == "layouts":
        return tuple(Layout.parse(text) for text in value)
    if name == "reduce" and value not in REDUCTIONS:
        raise ValueError(f"reduce '{value}' is none of {', '.join(REDUCTIONS)}")
    return tuple(value) if name == "dims" else value
