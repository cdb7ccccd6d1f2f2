"""Result shapes of ops that depend on contents of operands, and of com.microsoft ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graph.dims import Dim, Dims, Expr, divide, product
from graph.shapes import Context, Misfit


def broadcast(shapes: Sequence[Dims]) -> Dims:
    """Numpy's broadcasting; of two different symbols the first is taken. Raises Misfit."""
    rank = max(len(dims) for dims in shapes)
    padded = [(1,) * (rank - len(dims)) + dims for dims in shapes]
    return tuple(_broadcast_dim(column) for column in zip(*padded, strict=True))


def _broadcast_dim(column: Sequence[Dim]) -> Dim:
    fixed = [size for size in column if isinstance(size, int) and size != 1]
    if len(set(fixed)) > 1:
        raise Misfit(f"sizes {fixed[0]} and {next(s for s in fixed if s != fixed[0])} differ")
    return fixed[0] if fixed else next((size for size in column if size != 1), 1)


def _elementwise(c: Context) -> list[Dims]:
    return [broadcast([c.dims(i) for i, v in enumerate(c.node.inputs) if v is not None])]


def _same_as_first(c: Context) -> list[Dims]:
    return [c.dims(0)]


def _matmul(c: Context) -> list[Dims]:
    a, b = c.dims(0), c.dims(1)
    inner = a[-1], b[-2 if len(b) > 1 else -1]
    if isinstance(inner[0], int) and isinstance(inner[1], int) and inner[0] != inner[1]:
        raise Misfit(f"it contracts {inner[0]} with {inner[1]} entries")
    rows = () if len(a) == 1 else (a[-2],)
    columns = () if len(b) == 1 else (b[-1],)
    batch = broadcast([a[:-2], b[:-2]])
    return [batch + rows + columns]


def _reshape(c: Context) -> list[Dims]:
    have = c.dims(0)
    want = list(c.contents(1).flat)
    if not c.attribute("allowzero", 0):
        want = [have[i] if size == 0 else size for i, size in enumerate(want)]
    if -1 in want:
        known = product(size for size in want if size != -1)
        missing = divide(product(have), known)
        if missing is None and isinstance(known, int) and isinstance(product(have), int):
            raise Misfit(f"{product(have)} entries are no multiple of {known}")
        want[want.index(-1)] = c.shapes.new_symbol() if missing is None else missing
    before, after = product(have), product(want)
    if isinstance(before, int) and isinstance(after, int) and before != after:
        raise Misfit(f"{before} entries cannot become {after}")
    return [tuple(want)]


def _expand(c: Context) -> list[Dims]:
    return [broadcast([tuple(c.contents(1).flat), c.dims(0)])]


def _constant_of_shape(c: Context) -> list[Dims]:
    c.node.outputs[0].dtype = _value_dtype(c)
    return [tuple(c.contents(0).flat)]


def _value_dtype(c: Context) -> ir.DataType:
    value = c.attribute("value")
    return ir.DataType.FLOAT if value is None else value.dtype


def slice_bounds(c: Context) -> list[tuple[int, Dim, Dim, int]]:
    """(dim, start, stop, step) per sliced dim, clamped. KeyError where bounds are not known."""
    dims = c.dims(0)
    starts, stops = list(c.contents(1).flat), list(c.contents(2).flat)
    axes = list(c.contents(3).flat) if c.operand(3) else list(range(len(starts)))
    steps = list(c.contents(4).flat) if c.operand(4) else [1] * len(starts)
    bounds = []
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if not isinstance(step, int) or step < 1:
            raise KeyError("step")
        size = dims[axis]
        bounds.append((axis % len(dims), _clamp_index(start, size), _clamp_index(stop, size), step))
    return bounds


def _clamp_index(index: Dim, size: Dim) -> Dim:
    if index == size:
        return size
    if isinstance(index, int) and isinstance(size, int):
        return min(max(index + size if index < 0 else index, 0), size)
    # A symbolic size is 1 at least: the first and last index are there, of others nobody knows.
    if index == 0:
        return 0
    if index == -1:
        return size - 1
    if isinstance(index, int) and abs(index) > 2**31 - 2:
        return size if index > 0 else 0
    raise KeyError("a bound whose size against the dim is not known")


def _slice(c: Context) -> list[Dims]:
    dims = list(c.dims(0))
    for dim, start, stop, step in slice_bounds(c):
        extent = stop - start
        if step != 1:
            if not isinstance(extent, int):
                raise KeyError("step")
            extent = -(-extent // step)
        dims[dim] = max(extent, 0) if isinstance(extent, int) else extent
    return [tuple(dims)]


def _concat(c: Context) -> list[Dims]:
    operands = [c.dims(i) for i in range(len(c.node.inputs))]
    axis = c.attribute("axis", 0) % len(operands[0])
    total: Dim = 0
    for dims in operands:
        if len(dims) != len(operands[0]):
            raise Misfit(f"ranks {len(operands[0])} and {len(dims)} differ")
        total = total + dims[axis]
    others = [dims[:axis] + (1,) + dims[axis + 1 :] for dims in operands]
    merged = [_broadcast_dim(column) for column in zip(*others, strict=True)]
    merged[axis] = total
    return [tuple(merged)]


def _range(c: Context) -> list[Dims]:
    start, limit, delta = (c.contents(i).flat[0] for i in range(3))
    if delta != 1:
        raise KeyError("delta")
    extent = limit - start
    return [(max(extent, 0) if isinstance(extent, int) else extent,)]


def _group_query_attention(c: Context) -> list[Dims]:
    batch, length, width = c.dims(0)
    heads, kv_heads = c.attribute("num_heads"), c.attribute("kv_num_heads")
    packed = c.operand(1) is None
    size = divide(width, heads + 2 * kv_heads if packed else heads)
    if size is None:
        raise KeyError("head size")
    past: Dim = 0
    if c.operand(3) is not None:
        past = c.dims(3)[2]
        declared = c.dims(3)[3]
        if isinstance(declared, Expr) and isinstance(size, int):
            c.shapes.equal[str(declared)] = size
    cache: Dims = (batch, kv_heads, _total(c, past, length), size)
    return [(batch, length, size * heads), cache, cache]


def _total(c: Context, past: Dim, length: Dim) -> Dim:
    declared = c.node.outputs[1].shape if len(c.node.outputs) > 1 else None
    return past + length if declared is None else c.shapes.declared(declared[2])


def _skip_norm(c: Context) -> list[Dims | None]:
    dims = c.dims(0)
    return [dims, dims[:-1] + (1,), dims[:-1] + (1,), dims]


ShapeRule = Callable[[Context], Sequence["Dims | None"]]
ELEMENTWISE = "Add Sub Mul Div Pow".split()
SHAPE_RULES: dict[tuple[str, str], ShapeRule] = {
    **{("", op): _elementwise for op in ELEMENTWISE},
    ("", "MatMul"): _matmul,
    ("", "Reshape"): _reshape,
    ("", "Expand"): _expand,
    ("", "Slice"): _slice,
    ("", "Concat"): _concat,
    ("", "Range"): _range,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "SimplifiedLayerNormalization"): _same_as_first,
    ("com.microsoft", "GroupQueryAttention"): _group_query_attention,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
}
