"""Result shapes of ONNX Runtime's own ops, whose schemas onnx does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from graph.dims import Dim, Dims, divide
from graph.shape_rules import SHAPE_RULES, ShapeRule, broadcast
from graph.shapes import Context

T = TypeVar("T")


def matmul_operand(c: Context, index: int, dims: list[T], back: bool = False) -> list[T]:
    """Dims of a FusedMatMul operand as plain MatMul has them; with `back` the other way."""
    side = "AB"[index]
    if len(dims) < 2:
        return dims
    batch, last = c.attribute(f"transBatch{side}", 0), c.attribute(f"trans{side}", 0)
    moved = list(dims)
    if batch and not back:
        first = moved.pop(0)
        moved.insert(len(moved) - 1, first)
    if last:
        moved[-2:] = moved[:-3:-1]
    if batch and back:
        moved.insert(0, moved.pop(-2))
    return moved


def _fused_matmul(c: Context) -> list[Dims]:
    a = tuple(matmul_operand(c, 0, list(c.dims(0))))
    b = tuple(matmul_operand(c, 1, list(c.dims(1))))
    rows = () if len(a) == 1 else (a[-2],)
    columns = () if len(b) == 1 else (b[-1],)
    return [broadcast([a[:-2], b[:-2]]) + rows + columns]


def _gemm(c: Context) -> list[Dims]:
    a, b = c.dims(0), c.dims(1)
    rows = a[1] if c.attribute("transA", 0) else a[0]
    return [(rows, b[0] if c.attribute("transB", 0) else b[1])]


def _gemm_of_rows(c: Context) -> list[Dims]:
    return [(*c.dims(0)[:-1], c.dims(1)[1])]


def _as_first(c: Context) -> list[Dims]:
    return [c.dims(0)] * len(c.node.outputs)


def _elementwise(c: Context) -> list[Dims]:
    return [broadcast([c.dims(i) for i, v in enumerate(c.node.inputs) if v is not None])]


def _halved(c: Context) -> list[Dims]:
    half = divide(c.dims(0)[-1], 2)
    if half is None:
        raise KeyError("an odd number of features")
    return [(*c.dims(0)[:-1], half)]


def _swiglu(c: Context) -> list[Dims]:
    return _halved(c) if c.operand(1) is None else [c.dims(0)]


def _declared(c: Context, output: int, dim: int) -> Dim | None:
    value = c.node.outputs[output] if output < len(c.node.outputs) else None
    return None if value is None or value.shape is None else c.shapes.declared(value.shape[dim])


def _multi_head_attention(c: Context) -> list[Dims]:
    batch, length, width = c.dims(0)
    heads, key, value = c.attribute("num_heads"), c.dims(1), c.dims(2)
    size = divide(width, heads)
    value_size = value[3] if len(value) == 4 else divide(value[2], heads)
    if size is None or value_size is None or len(key) == 5:
        raise KeyError("head size")
    total = key[2] if len(key) == 4 else key[1]
    if c.operand(6) is not None:
        total = _declared(c, 1, 2) or total + c.dims(6)[2]
    states: list[Dims] = [(batch, heads, total, size), (batch, heads, total, value_size)]
    return [(batch, length, value_size * heads), *states, (batch, heads, length, total)]


def _packed_attention(c: Context) -> list[Dims]:
    batch, length, _ = c.dims(0)
    heads, widths = c.attribute("num_heads"), c.attribute("qkv_hidden_sizes")
    width: Dim | None = widths[2] if widths is not None else divide(c.dims(1)[1], 3)
    size = None if width is None else divide(width, heads)
    if width is None or size is None:
        raise KeyError("head size")
    total = length
    if c.operand(4) is not None:
        total = _declared(c, 1, 3) or length + c.dims(4)[3]
    return [(batch, length, width), (2, batch, heads, total, size)]


def _linear_attention(c: Context) -> list[Dims]:
    batch, length, width = c.dims(0)
    heads, kv_heads = c.attribute("q_num_heads"), c.attribute("kv_num_heads")
    size, value_size = divide(width, heads), divide(c.dims(2)[2], kv_heads)
    if size is None or value_size is None:
        raise KeyError("head size")
    state: Dims = (batch, kv_heads, size, value_size)
    window = c.attribute("state_window", 0)
    state = (window, *state) if window else state
    return [(batch, length, value_size * max(heads, kv_heads)), state]


def _causal_conv(c: Context) -> list[Dims]:
    x, weight = c.dims(0), c.dims(1)
    if c.operand(3) is not None:
        return [x, c.dims(3)]
    reach = weight[-1] - 1
    if c.attribute("ndim", 1) != 1 or c.attribute("state_window", 0):
        raise KeyError("state")
    length = reach * c.attribute("dilation", 1)
    last = c.attribute("channels_last", 0)
    return [x, (x[0], length, *x[2:]) if last else (*x[:2], length)]


SAME_AS_FIRST = """Gelu BiasGelu FastGelu QuickGelu ScaledSiLU GroupNorm SkipGroupNorm GatedRMSNorm
BiasSoftmax GatedAdd Trilu MoE QMoE BranchwiseRMSNorm""".split()
RULES: dict[str, Callable[[Context], Sequence[Dims | None]]] = {
    **dict.fromkeys(SAME_AS_FIRST, _as_first),
    "BiasAdd": _elementwise,
    "BiasSplitGelu": _halved,
    "SwiGLU": _swiglu,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "FusedGemm": _gemm,
    "GemmFastGelu": _gemm_of_rows,
    "MultiHeadAttention": _multi_head_attention,
    "Attention": _packed_attention,
    "LinearAttention": _linear_attention,
    "CausalConvWithState": _causal_conv,
}
ALL_SHAPE_RULES: dict[tuple[str, str], ShapeRule] = {
    **{("com.microsoft", op): rule for op, rule in RULES.items()},
    **SHAPE_RULES,
}
"""Every rule there is, by domain and op."""
