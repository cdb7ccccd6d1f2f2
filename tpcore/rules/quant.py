"""Quantised ops: weights, scales and zero points share factors, blocks stay whole.

A contraction that is dequantised on the way (MatMulNBits) or summed as int32 (MatMulInteger) is
split like any other; one whose sum is rounded to codes (QLinearMatMul) is not.
"""

from __future__ import annotations

import onnx_ir as ir

from graph.dims import Dim, Dims
from graph.shape_rules import broadcast
from graph.shapes import Context
from graph.zero_points import is_counted
from tpcore.localizers import LocalNode, masked_lookup
from tpcore.rule import Rule
from tpcore.rules.qlinear import QLINEAR_OPS, parameter
from tpcore.rules.spec import OpSpec, broadcast_text, make, mark, names, ones_as_1

MICROSOFT = "com.microsoft"


# --- blocks ---------------------------------------------------------------------------------------


def matmul_n_bits(c: Context) -> Rule | None:
    """`m (z+ p! blob! c!), n (z p) blob, n (z p), n z, -, n -> m n`.

    K is z·p blocks of blob bytes of c codes each. p is 1 but where zero points are computed: then p
    blocks share a byte of them. Where the last block is not full only the columns are split.
    """
    bits, block, rows = c.attribute("bits", 4), c.attribute("block_size"), c.attribute("K")
    if c.operand(4) is not None or c.attribute("weight_prepacked", 0) or 8 % bits:
        return None  # rows in an order of their own, or in one kind of device's
    blocks, zero = -(-rows // block), c.operand(3)
    shared = 8 // bits if _shares_bytes(zero) else 1
    sizes: dict[str, Dim] = {"n": c.attribute("N")}
    if rows % block or blocks % shared:
        k, held, blob, zeros = "k!", "1", "1", "1"  # what no factor covers stays whole
    else:
        sizes |= {"z": blocks // shared, "p": shared, "blob": block * bits // 8, "c": 8 // bits}
        k, held, blob, zeros = "(z+ p! blob! c!)", "z p", "blob", "z"
    operands = [
        " ".join([*names(len(c.dims(0)) - 1, "m"), k]),
        f"n ({held}) {blob}",
        _per_row(c, 2, held),
        _per_row(c, 3, zeros),
        "-",
        "n",
    ]
    result = " ".join([*names(len(c.dims(0)) - 1, "m"), "n"])
    return make(", ".join(operands[: len(c.node.inputs)]) + " -> " + result, sizes)


def _shares_bytes(zero: ir.Value | None) -> bool:
    """Whether zero points are bytes to the rule, each of several blocks."""
    return zero is not None and zero.dtype == ir.DataType.UINT8 and not is_counted(zero)


def _per_row(c: Context, index: int, text: str) -> str:
    """Text of a parameter per row and block, which older models hold flat."""
    if c.operand(index) is None:
        return "-"
    return f"n ({text})" if len(c.dims(index)) == 2 else f"(n {text})"


def gather_block_quantized(c: Context) -> Rule | None:
    """`v+ (k blob!), i0, v k, v k -> i0 (k blob c)`: rows where they are, features by block."""
    data, scales = c.dims(0), c.dims(2)
    bits, block = c.attribute("bits", 4), c.attribute("block_size", 128)
    packs = c.operand(0).dtype == ir.DataType.UINT8  # type: ignore[union-attr]
    codes = 8 // bits if packs else 1
    rank = len(data)
    axis, blocked = c.attribute("gather_axis", 0) % rank, c.attribute("quantize_axis", 1) % rank
    if axis == blocked:
        return None
    size, count = data[blocked], scales[blocked]
    zero = c.operand(3)
    alike = bits == 8 or not packs or not _shares_bytes(zero)
    exact = isinstance(size, int) and isinstance(count, int) and size * codes == count * block
    table, rows = mark(names(rank), [axis], "+"), names(rank)
    sizes: dict[str, Dim] = {}
    if exact and alike:
        sizes = {"k": count, "blob": block // codes, "c": codes}
        table[blocked], rows[blocked], feature = "(k blob!)", "k", "(k blob c!)"
    else:
        table[blocked], rows[blocked], feature = "x!", "k!", "y!"
    positions, zeros = names(len(c.dims(1)), "i"), list(rows)
    if not alike:
        zeros[blocked] = "z!"
    out = [*names(rank)[:axis], *positions, *names(rank)[axis + 1 :]]
    out[blocked + len(positions) - 1 if blocked > axis else blocked] = feature
    operands = [table, positions, rows, zeros][: len(c.node.inputs)]
    text = ", ".join(" ".join(operand) for operand in operands)
    return make(f"{text} -> {' '.join(out)}", sizes)


def masked_block_gather(x: LocalNode) -> None:
    """Look up the rows this rank holds, as for Gather."""
    axis = (
        x.source.attributes["gather_axis"].as_int() if "gather_axis" in x.source.attributes else 0
    )
    masked_lookup(x, axis)


def linear_codes(c: Context) -> Rule:
    """`d0 d1, * -> d0 d1` per tensor, `d0 d1, d1 -> d0 d1` per axis, in blocks of r
    `(k r!) d1, k d1 -> (k r) d1`; zero points as scales."""
    dims, scale = c.dims(0), c.dims(1)
    labels, block = names(len(dims)), c.attribute("block_size", 0)
    axis = c.attribute("axis", 1) % max(len(dims), 1)
    operand, parameter, sizes = list(labels), "*", {}
    if block and len(scale) == len(dims):
        held, count = list(labels), scale[axis]
        if isinstance(count, int) and dims[axis] == count * block:
            sizes = {"k": count, "r": block}
            operand[axis], held[axis] = "(k r!)", "k"
        else:
            operand[axis], held[axis] = f"d{axis}!", "k!"
        parameter = " ".join(held)
    elif len(scale) == 1 and scale[0] != 1:
        parameter = labels[axis]
    others = f", {parameter}" * (len(c.node.inputs) - 1)
    result = " ".join(operand).replace("!", "")
    return make(f"{' '.join(operand)}{others} -> {result}", sizes)


# --- integer matrix products ----------------------------------------------------------------------


def _product(a: Dims, b: Dims, k: str) -> tuple[list[str], list[str], list[str]]:
    """Labels of both operands and of the result of a matrix product."""
    batch = broadcast([a[:-2], b[:-2]])
    labels = names(len(batch), "b")
    row, column = ["m"] * (len(a) > 1), ["n"] * (len(b) > 1)
    left = [*broadcast_text(labels, a[:-2]).split(), *row, k]
    right = [*broadcast_text(labels, b[:-2]).split(), k, *column]
    return left, right, [*ones_as_1(labels, batch).split(), *row, *column]


def matmul_integer(c: Context) -> Rule:
    """`m k+, k n, m, n -> m n`: a sum of int32, exact in any order."""
    left, right, out = _product(c.dims(0), c.dims(1), "k+")
    zeros = [parameter(c, 2, left, "m"), parameter(c, 3, right, "n")]
    operands = [" ".join(left), " ".join(right), *zeros][: len(c.node.inputs)]
    return make(f"{', '.join(operands)} -> {' '.join(out)}")


def matmul_integer_to_float(c: Context) -> Rule:
    """`m k+, k n, *, n, *, n, n -> m n`."""
    left, right, out = _product(c.dims(0), c.dims(1), "k+")
    operands = [
        *(" ".join(left), " ".join(right)),
        *(parameter(c, 2, left, "m"), parameter(c, 3, right, "n")),
        *(parameter(c, 4, left, "m"), parameter(c, 5, right, "n")),
        "n",
    ]
    return make(f"{', '.join(operands[: len(c.node.inputs)])} -> {' '.join(out)}")


def dynamic_quantize_matmul(c: Context) -> Rule:
    """`m! k!, k n, n, n, n -> m n`: the scale of A is that of all its elements."""
    left, right, out = _product(c.dims(0), c.dims(1), "k")
    whole = [label if label == "1" else label + "!" for label in left]
    scales = [parameter(c, index, right, "n") for index in (2, 3)]
    operands = [" ".join(whole), " ".join(right), *scales, "n"][: len(c.node.inputs)]
    return make(f"{', '.join(operands)} -> {' '.join(out)}")


def qlinear_matmul(c: Context) -> Rule:
    """`m k!, m, m, k n, n, n, *, * -> m n`: the sum is rounded, so it is not split."""
    left, right, out = _product(c.dims(0), c.dims(3), "k!")
    first = [parameter(c, index, left, "m") for index in (1, 2)]
    second = [parameter(c, index, right, "n") for index in (4, 5)]
    last = [parameter(c, index, out, "n") for index in (6, 7)]
    operands = [" ".join(left), *first, " ".join(right), *second, *last]
    return make(f"{', '.join(operands)} -> {' '.join(out)}")


def q_gemm(c: Context) -> Rule:
    """`m k+, *, *, k n, n, n, n -> m n`; with a scale of the result k is not split."""
    k = "k!" if c.operand(7) is not None else "k+"
    left = [k, "m"] if c.attribute("transA", 0) else ["m", k]
    right = ["n", "k"] if c.attribute("transB", 0) else ["k", "n"]
    bias = "-" if c.operand(6) is None else broadcast_text(["m", "n"], c.dims(6))
    scales = [parameter(c, index, right, "n") for index in (4, 5)]
    operands = [" ".join(left), "*", "*", " ".join(right), *scales, bias, "*", "*"]
    return make(f"{', '.join(operands[: len(c.node.inputs)])} -> m n")


# --- convolutions ---------------------------------------------------------------------------------


def _conv(c: Context, weight: Dims, k: str) -> tuple[str, str, str, str, dict[str, Dim]]:
    """Text of input, weight, output channels and result of a convolution, and sizes."""
    window, groups = len(weight) - 2, c.attribute("group", 1)
    channels, out, kernel = (k, "o", k) if groups == 1 else ("(g c!)", "(g o)", "c!")
    x, w, y = (" ".join(f"{name}{i}!" for i in range(window)) for name in "xwy")
    sizes: dict[str, Dim] = {}
    if groups > 1:
        sizes = {"g": groups, "c": weight[1], "o": weight[0] // groups}
    return f"b {channels} {x}", f"{out} {kernel} {w}", out, f"b {out} {y}", sizes


def conv_integer(c: Context) -> Rule:
    """`b c+ x!, o c w!, *, o -> b o y!`."""
    x, weight, out, y, sizes = _conv(c, c.dims(1), "c+")
    zeros = ["*", parameter(c, 3, [], out)]
    operands = [x, weight, *zeros][: len(c.node.inputs)]
    return make(f"{', '.join(operands)} -> {y}", sizes)


def qlinear_conv(c: Context) -> Rule:
    """`b c! x!, *, *, o c w!, o, o, *, *, o -> b o y!`."""
    x, weight, out, y, sizes = _conv(c, c.dims(3), "c!")
    scales = [parameter(c, index, [], out) for index in (4, 5)]
    operands = [x, "*", "*", weight, *scales, "*", "*", out][: len(c.node.inputs)]
    return make(f"{', '.join(operands)} -> {y}", sizes)


def dynamic_quantize(c: Context) -> Rule:
    """All elements decide the scale: whole."""
    labels = " ".join(f"{name}!" for name in names(len(c.dims(0))))
    return make(f"{labels} -> {labels}, *, *")


QUANT_OPS: dict[tuple[str, str], OpSpec] = {
    (MICROSOFT, "MatMulNBits"): OpSpec(
        matmul_n_bits, addends=(5,), attributes={"K": "z p blob c k", "N": "n"}
    ),
    (MICROSOFT, "GatherBlockQuantized"): OpSpec(
        gather_block_quantized, localize=masked_block_gather
    ),
    (MICROSOFT, "DynamicQuantizeMatMul"): OpSpec(dynamic_quantize_matmul),
    (MICROSOFT, "MatMulIntegerToFloat"): OpSpec(matmul_integer_to_float, addends=(6,)),
    (MICROSOFT, "QGemm"): OpSpec(q_gemm, addends=(6,)),
    **{
        (domain, op): OpSpec(linear_codes)
        for domain in ("", MICROSOFT)
        for op in ("QuantizeLinear", "DequantizeLinear")
    },
    **QLINEAR_OPS,
    ("", "DynamicQuantizeLinear"): OpSpec(dynamic_quantize),
    ("", "MatMulInteger"): OpSpec(matmul_integer),
    ("", "ConvInteger"): OpSpec(conv_integer, attributes={"group": "g"}),
    ("", "QLinearMatMul"): OpSpec(qlinear_matmul),
    ("", "QLinearConv"): OpSpec(qlinear_conv, attributes={"group": "g"}),
}
