"""What must change in a node when its operands and results become local.

Shape arithmetic stays global everywhere: a `Shape` of a split value is scaled up to the global
shape, and the shape operand of Reshape and Expand is scaled down to the local one where it is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graph.dims import Dims
from graph.shapes import Shapes
from tpcore.sharding import WHOLE, Sharding

OPSET_OF_AXES_OPERAND = 13
"""From here on Squeeze takes its axes as an operand."""


@dataclass
class LocalNode:
    """A node of one rank's graph while it is being rewritten, beside its global original."""

    node: ir.Node
    """The node in the rank's graph."""
    source: ir.Node
    """The same node in the global graph."""
    rank: int
    graph: ir.Graph
    """The rank's graph."""
    shapes: Shapes
    """Of the global graph."""
    shardings: dict[str, Sharding]
    """By value name."""

    def held(self, value: ir.Value | None) -> Sharding:
        """Sharding of an operand or result."""
        return WHOLE if value is None else self.shardings.get(value.name or "", WHOLE)

    def dims(self, value: ir.Value) -> Dims:
        """Global shape of a value of the original node."""
        return self.shapes.dims[value]

    def constant(self, array: np.ndarray, label: str) -> ir.Value:
        """A new constant of this rank's graph."""
        name = f"{self.node.name}/{label}"
        while name in self.graph.initializers:
            name += "_"
        tensor = ir.tensor(array, name=name)
        value = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def emit(
        self,
        op_type: str,
        operands: Sequence[ir.Value | None],
        label: str,
        *,
        dtype: ir.DataType | None = None,
        attributes: dict[str, ir.Attr | int | list[int]] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node before this one; its result has the first operand's dtype, or `dtype`."""
        first = operands[0].dtype if operands[0] is not None else None
        (result,) = self.emit_all(
            op_type, operands, label, [dtype or first], attributes=attributes, domain=domain
        )
        return result

    def emit_all(
        self,
        op_type: str,
        operands: Sequence[ir.Value | None],
        label: str,
        dtypes: Sequence[ir.DataType | None],
        *,
        attributes: dict[str, ir.Attr | int | list[int]] | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Insert a node before this one, with a result of each dtype."""
        name = f"{self.node.name}/{label}"
        node = ir.node(
            op_type, operands, attributes or {}, domain=domain, num_outputs=len(dtypes), name=name
        )
        for i, (value, dtype) in enumerate(zip(node.outputs, dtypes, strict=True)):
            value.name = f"{name}_out{i or ''}"
            value.type = None if dtype is None else ir.TensorType(dtype)
        self.node.prepend(node)
        return node.outputs

    def become(self, value: ir.Value) -> None:
        """Let `value` take the place of this node's first result, and drop the node."""
        old = self.node.outputs[0]
        name, value.type, value.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
        old.name, value.name = None, name


Localizer = Callable[[LocalNode], None]


def _scales(held: Sharding, rank: int, count: int) -> tuple[list[int], list[int]]:
    """Per dim the units `rank` holds and the units in all; 1 and 1 where the dim is whole."""
    local, whole = [1] * count, [1] * count
    for split in held.splits:
        local[split.dim], whole[split.dim] = split.parts[rank], split.whole
    return local, whole


def shape_operand(x: LocalNode, index: int = 1) -> None:
    """Scale the shape operand of Reshape, Expand or Resize down to the local result."""
    held = x.held(x.source.outputs[0])
    shape = x.source.inputs[index] if index < len(x.source.inputs) else None
    if not held.splits or shape is None or "axes" in x.source.attributes:
        return
    entries = list(x.shapes.contents[shape].flat)
    local, whole = _scales(held, x.rank, len(x.dims(x.source.outputs[0])))
    offset = len(local) - len(entries)
    local, whole = local[offset:], whole[offset:]
    copies = (
        not x.source.attributes["allowzero"].as_int() if "allowzero" in x.source.attributes else 1
    )
    for i, entry in enumerate(entries):
        size = x.dims(x.source.outputs[0])[i + offset]
        if entry == 0 and copies and isinstance(size, int):
            entries[i] = size  # what 0 would copy is local, and may belong to another dim
            continue
        if entry in (-1, 0) or (entry == 1 and x.source.op_type == "Expand"):
            local[i] = whole[i] = 1
    fixed = [e * n // d if isinstance(e, int) else -1 for e, n, d in zip(entries, local, whole)]
    if all(isinstance(entry, int) for entry in entries):
        x.node.replace_input_with(index, x.constant(np.array(fixed, np.int64), "local_shape"))
        return
    operand = x.node.inputs[index]
    if operand is not None:
        x.node.replace_input_with(index, _scaled(x, operand, local, whole, "local_shape"))


def _scaled(
    x: LocalNode, value: ir.Value, factor: list[int], divisor: list[int], label: str
) -> ir.Value:
    up = x.constant(np.array(factor, np.int64), f"{label}_factor")
    down = x.constant(np.array(divisor, np.int64), f"{label}_divisor")
    return x.emit("Div", [x.emit("Mul", [value, up], f"{label}_mul"), down], f"{label}_div")


def global_shape(x: LocalNode) -> None:
    """Scale the result of Shape up to the global shape."""
    operand = x.source.inputs[0]
    held = x.held(operand)
    if operand is None or not held.splits:
        return
    local, whole = _scales(held, x.rank, len(x.dims(operand)))
    start = x.source.attributes["start"].as_int() if "start" in x.source.attributes else 0
    end = x.source.attributes["end"].as_int() if "end" in x.source.attributes else None
    local, whole = local[start:end], whole[start:end]
    inner = x.emit(
        "Shape",
        [v for v in x.node.inputs if v is not None],
        "local",
        dtype=ir.DataType.INT64,
        attributes=dict(x.node.attributes),
    )
    x.become(_scaled(x, inner, whole, local, "global_shape"))


def slice_bounds(x: LocalNode) -> None:
    """Count the indices held before the global bounds of each split dim that is sliced."""
    held = x.held(x.source.inputs[0])
    data, bounds = x.source.inputs[:2]
    starts, stops = x.shapes.ints(bounds), x.shapes.ints(x.source.inputs[2])
    if not held.splits or starts is None or stops is None or data is None or bounds is None:
        return
    dims = x.dims(data)
    axes_operand = x.source.inputs[3] if len(x.source.inputs) > 3 else None
    axes = x.shapes.ints(axes_operand) if axes_operand is not None else list(range(len(starts)))
    steps_operand = x.source.inputs[4] if len(x.source.inputs) > 4 else None
    steps = x.shapes.ints(steps_operand) if steps_operand is not None else None
    for i, axis in enumerate(axes or []):
        split, size = held.split_of(axis % len(dims)), dims[axis]
        if split is None or split.layout is None or not isinstance(size, int):
            continue
        if steps is not None and steps[i] != 1:
            starts[i], stops[i] = _place(starts[i], size), size  # whole steps are on one rank
            continue
        indices = split.layout.indices(x.rank)
        starts[i] = _held_before(indices, starts[i], size)
        stops[i] = _held_before(indices, stops[i], size)
    dtype = (bounds.dtype or ir.DataType.INT64).numpy()  # as that of the axes
    x.node.replace_input_with(1, x.constant(np.array(starts, dtype), "starts"))
    x.node.replace_input_with(2, x.constant(np.array(stops, dtype), "stops"))


def _held_before(indices: np.ndarray, bound: int, size: int) -> int:
    return int(np.searchsorted(indices, _place(bound, size)))


def _place(bound: int, size: int) -> int:
    """A bound of Slice as an index."""
    return min(max(bound + size if bound < 0 else bound, 0), size)


def split_sizes(x: LocalNode) -> None:
    """Give Split the local size of every result."""
    data = x.source.inputs[0]
    if data is None or not x.held(data).splits:
        return
    rank = len(x.dims(data))
    axis = (x.source.attributes["axis"].as_int() if "axis" in x.source.attributes else 0) % rank
    if x.held(data).split_of(axis) is None:
        return
    sizes = []
    for out in x.source.outputs:
        split, whole = x.held(out).split_of(axis), x.dims(out)[axis]
        sizes.append(split.parts[x.rank] if split else whole)
    x.node.attributes.pop("num_outputs", None)
    if "split" in x.node.attributes:
        x.node.attributes["split"] = ir.AttrInt64s("split", sizes)  # type: ignore[arg-type]
        return
    x.node.resize_inputs(2)
    x.node.replace_input_with(1, x.constant(np.array(sizes, np.int64), "sizes"))


def squeezed_axes(x: LocalNode) -> None:
    """Name the dims that Squeeze drops: left out, a local dim of size one would go as well."""
    data = x.source.inputs[0]
    given = x.source.attributes.get("axes") or (len(x.source.inputs) > 1 and x.source.inputs[1])
    if data is None or given or not x.held(data).splits:
        return
    axes = [dim for dim, size in enumerate(x.dims(data)) if size == 1]
    if x.graph.opset_imports.get("", 0) < OPSET_OF_AXES_OPERAND:
        x.node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        return
    x.node.resize_inputs(2)
    x.node.replace_input_with(1, x.constant(np.array(axes, np.int64), "axes"))


def masked_gather(x: LocalNode) -> None:
    """Look up the rows this rank holds; other rows are zero here and come from another rank.

    Unlike Gather itself this accepts an index out of bounds, whose row is zero.
    """
    masked_lookup(x, x.source.attributes["axis"].as_int() if "axis" in x.source.attributes else 0)


def masked_lookup(x: LocalNode, axis: int) -> None:
    """`masked_gather` for any op that looks its operand 1 up along `axis` of operand 0."""
    data, index = x.source.inputs[0], x.node.inputs[1]
    held = x.held(data)
    if data is None or index is None or not x.held(x.source.outputs[0]).is_partial:
        return
    rank = len(x.dims(data))
    axis %= rank
    split = held.split_of(axis)
    if split is None or split.layout is None:
        return
    (start, stop) = split.layout.ranges[x.rank][0]
    dtype = (index.dtype or ir.DataType.INT64).numpy()
    zero = x.constant(np.array(0, dtype), "zero")
    size = x.constant(np.array(split.whole, dtype), "rows")
    wrapped = x.emit("Add", [index, size], "wrapped")
    negative = x.emit("Less", [index, zero], "negative", dtype=ir.DataType.BOOL)
    place = x.emit("Where", [negative, wrapped, index], "index", dtype=index.dtype)
    place = x.emit("Sub", [place, x.constant(np.array(start, dtype), "start")], "local_index")
    low = x.emit("GreaterOrEqual", [place, zero], "not_before", dtype=ir.DataType.BOOL)
    rows = x.constant(np.array(stop - start, dtype), "local_rows")
    high = x.emit("Less", [place, rows], "not_after", dtype=ir.DataType.BOOL)
    mine = x.emit("And", [low, high], "mine", dtype=ir.DataType.BOOL)
    safe = x.emit("Where", [mine, place, zero], "safe_index", dtype=index.dtype)
    _mask_result(x, safe, mine, axis, rank)


def _mask_result(x: LocalNode, safe: ir.Value, mine: ir.Value, axis: int, rank: int) -> None:
    result = x.source.outputs[0]
    if result.dtype is None:
        return
    operands = [safe if i == 1 else value for i, value in enumerate(x.node.inputs)]
    found = x.emit(
        x.node.op_type,
        operands,
        "rows_found",
        dtype=result.dtype,
        attributes=dict(x.node.attributes),
        domain=x.node.domain,
    )
    width = len(x.dims(x.source.inputs[1]))  # type: ignore[arg-type]
    trailing = [width + i for i in range(rank - axis - 1)]
    if trailing:
        axes = x.constant(np.array(trailing, np.int64), "mask_axes")
        mine = x.emit("Unsqueeze", [mine, axes], "mask", dtype=ir.DataType.BOOL)
    nothing = x.constant(np.zeros((), result.dtype.numpy()), "no_row")
    x.become(x.emit("Where", [mine, found, nothing], "masked", dtype=result.dtype))
