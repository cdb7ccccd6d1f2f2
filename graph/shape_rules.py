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


def _layer_norm(c: Context) -> list[Dims]:
    """Inferred here, as ONNX Runtime has this op in opsets that the standard does not."""
    dims = c.dims(0)
    axis = c.attribute("axis", -1) % len(dims)
    for out in c.node.outputs[1:]:
        out.dtype = ir.DataType(c.attribute("stash_type", 1))
    return [dims, *[dims[:axis] + (1,) * (len(dims) - axis)] * 2]


def _typed_as(c: Context, index: int) -> None:
    """Give the first result the type of an operand, where that is known."""
    value = c.operand(index)
    if value is not None and value.dtype is not None:
        c.node.outputs[0].dtype = value.dtype


def _matmul_n_bits(c: Context) -> list[Dims]:
    return [(*c.dims(0)[:-1], c.attribute("N"))]


def _gather_block_quantized(c: Context) -> list[Dims]:
    _typed_as(c, 2)
    data = c.operand(0)
    dims = list(c.dims(0))
    packed = data is not None and data.dtype == ir.DataType.UINT8
    dims[-1] = dims[-1] * (8 // c.attribute("bits", 4) if packed else 1)
    axis = c.attribute("gather_axis", 0) % len(dims)
    return [(*dims[:axis], *c.dims(1), *dims[axis + 1 :])]


def _product_of_codes(c: Context) -> list[Dims]:
    _typed_as(c, 2)
    a, b = c.dims(0), c.dims(1)
    return [(*broadcast([a[:-2], b[:-2]]), *a[-2:-1], *b[-1:])]


def _q_gemm(c: Context) -> list[Dims]:
    if c.operand(7) is None:
        c.node.outputs[0].dtype = ir.DataType.FLOAT
    rows, columns = c.dims(0)[c.attribute("transA", 0)], c.dims(3)[not c.attribute("transB", 0)]
    return [(rows, columns)]


def _q_attention(c: Context) -> list[Dims]:
    batch, length, _ = c.dims(0)
    width, heads = divide(c.dims(1)[1], 3), c.attribute("num_heads")
    size = divide(width, heads) if width is not None else None
    if width is None or size is None:
        raise KeyError("head size")
    for out in c.node.outputs:
        out.dtype = ir.DataType.FLOAT
    past = c.dims(8)[3] if c.operand(8) is not None else 0
    return [(batch, length, width), (2, batch, heads, past + length, size)]


def _codes(*places: int) -> ShapeRule:
    def rule(c: Context) -> list[Dims]:
        _typed_as(c, places[0])
        return [broadcast([c.dims(0), *(c.dims(place) for place in places)])]

    return rule


def _quantize(c: Context) -> list[Dims]:
    if c.node.op_type == "QuantizeLinear":
        c.node.outputs[0].dtype = ir.DataType.UINT8
    _typed_as(c, 1 if c.node.op_type == "DequantizeLinear" else 2)
    return [c.dims(0)]


def _qlinear_pool(c: Context) -> list[Dims]:
    dims, kernel = c.dims(0), c.attribute("kernel_shape")
    if c.attribute("auto_pad", "NOTSET") != "NOTSET" or c.attribute("ceil_mode", 0):
        raise KeyError("padding")
    count = len(kernel)
    pads, strides = c.attribute("pads", [0] * 2 * count), c.attribute("strides", [1] * count)
    first = 1 if c.attribute("channels_last", 0) else 2
    out = list(dims)
    for i, (window, stride) in enumerate(zip(kernel, strides, strict=True)):
        room = dims[first + i] + pads[i] + pads[count + i] - window
        if not isinstance(room, int):
            raise KeyError("size")
        out[first + i] = room // stride + 1
    return [tuple(out)]


def _qlinear_global_pool(c: Context) -> list[Dims]:
    dims, last = c.dims(0), c.attribute("channels_last", 0)
    ones = (1,) * (len(dims) - 2)
    return [(dims[0], *ones, dims[-1]) if last else (*dims[:2], *ones)]


def _qlinear_concat(c: Context) -> list[Dims]:
    operands = [c.dims(i) for i in range(2, len(c.node.inputs), 3)]
    axis = c.attribute("axis") % len(operands[0])
    total: Dim = 0
    for dims in operands:
        total = total + dims[axis]
    _typed_as(c, 1)
    return [(*operands[0][:axis], total, *operands[0][axis + 1 :])]


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
    ("", "LayerNormalization"): _layer_norm,
    ("", "SimplifiedLayerNormalization"): _layer_norm,
    ("com.microsoft", "GroupQueryAttention"): _group_query_attention,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
    ("com.microsoft", "MatMulNBits"): _matmul_n_bits,
    ("com.microsoft", "GatherBlockQuantized"): _gather_block_quantized,
    ("com.microsoft", "DynamicQuantizeMatMul"): _product_of_codes,
    ("com.microsoft", "MatMulIntegerToFloat"): _product_of_codes,
    ("com.microsoft", "QGemm"): _q_gemm,
    ("com.microsoft", "QAttention"): _q_attention,
    ("com.microsoft", "QuantizeLinear"): _quantize,
    ("com.microsoft", "DequantizeLinear"): _quantize,
    ("com.microsoft", "QLinearAdd"): _codes(0, 3),
    ("com.microsoft", "QLinearMul"): _codes(0, 3),
    ("com.microsoft", "QLinearWhere"): _codes(1, 0, 4),
    ("com.microsoft", "QLinearSigmoid"): _codes(0),
    ("com.microsoft", "QLinearLeakyRelu"): _codes(0),
    ("com.microsoft", "QLinearSoftmax"): _codes(0),
    ("com.microsoft", "QLinearGlobalAveragePool"): _qlinear_global_pool,
    ("com.microsoft", "QLinearAveragePool"): _qlinear_pool,
    ("com.microsoft", "QLinearConcat"): _qlinear_concat,
}
