"""Rows of `validator_cases` for quantised ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from tpcore.trial import Array, Case

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(11)


def floats(*shape: int) -> Array:
    """Random numbers of both signs."""
    return np.asarray(RANDOM.uniform(-2, 2, shape), np.float32)


def scales(*shape: int) -> Array:
    """Scales of codes, all unlike."""
    return np.asarray(RANDOM.uniform(0.02, 0.06, shape), np.float32)


def codes(*shape: int, dtype: type = np.uint8, low: int = 0, high: int = 256) -> Array:
    """Random codes; signed ones are shifted to both sides of zero."""
    shift = 0 if np.dtype(dtype).kind == "u" else (high - low) // 2
    return np.asarray(RANDOM.integers(low, high, shape) - shift, dtype)


def signed(*shape: int) -> Array:
    """Random i8 codes."""
    return codes(*shape, dtype=np.int8)


def zero(*shape: int, dtype: type = np.uint8) -> Array:
    """Zero points near the middle of the type's range."""
    middle = 128 if dtype is np.uint8 else 0
    return np.asarray(RANDOM.integers(-9, 10, shape) + middle, dtype)


# --- blocks ---------------------------------------------------------------------------------------


def n_bits(
    a: tuple[int, ...],
    columns: int,
    block: int,
    bits: int = 4,
    *,
    zeros: str = "",
    bias: bool = False,
    flat: bool = False,
) -> Case:
    """MatMulNBits of A f32[..., K]; zero points are `packed`, `computed`, `float` or none.

    Packed ones are part of the model, as they are in files; computed ones are an input like A.
    """
    rows = a[-1]
    blocks = -(-rows // block)
    scale = scales(columns, blocks)
    is_packed = zeros in ("packed", "computed")
    packed = codes(columns, -(-blocks * bits // 8)) if is_packed else None
    zero_points = floats(columns, blocks) if zeros == "float" else packed
    if flat:
        scale = scale.reshape(-1)
        zero_points = None if zero_points is None else zero_points.reshape(-1)
    operands: list[Array | None] = [floats(*a), codes(columns, blocks, block * bits // 8), scale]
    operands += [zero_points, None, floats(columns) if bias else None]
    while operands[-1] is None:
        operands.pop()
    attributes = {"K": rows, "N": columns, "block_size": block, "bits": bits}
    constants = (3,) if zeros == "packed" else ()
    return Case("MatMulNBits", tuple(operands), attributes, MICROSOFT, constants=constants)


def gathered(
    table: Array,
    block: int,
    *,
    zeros: Array | None = None,
    bits: int = 4,
    blocks: int = 4,
    computed: bool = False,
) -> Case:
    """GatherBlockQuantized of eight rows; zero points are part of the model or `computed`."""
    index = RANDOM.integers(0, 8, (2, 5))
    operands = (table, index, scales(8, blocks), *(() if zeros is None else (zeros,)))
    attributes = {"bits": bits, "block_size": block}
    constants = () if zeros is None or computed else (3,)
    return Case("GatherBlockQuantized", operands, attributes, MICROSOFT, constants=constants)


BLOCKS = [
    n_bits((3, 64), 6, 16),
    n_bits((2, 3, 128), 8, 32),
    n_bits((3, 64), 6, 16, 8),
    n_bits((3, 64), 6, 16, bias=True),
    n_bits((3, 128), 6, 16, zeros="packed"),
    n_bits((3, 128), 6, 16, zeros="computed"),
    n_bits((3, 48), 6, 16, zeros="packed"),
    n_bits((3, 48), 6, 16, zeros="computed"),
    n_bits((3, 80), 6, 16, 2, zeros="packed"),
    n_bits((3, 128), 6, 16, 2, zeros="computed"),
    n_bits((3, 48), 6, 16, 8, zeros="packed"),
    n_bits((3, 40), 6, 16, zeros="packed"),
    n_bits((3, 64), 6, 16, zeros="float"),
    n_bits((3, 64), 6, 16, flat=True),
    n_bits((3, 128), 6, 16, zeros="packed", flat=True),
    n_bits((3, 48), 6, 16, zeros="packed", flat=True),
    n_bits((3, 40), 6, 16),
    n_bits((3, 16), 6, 16),
    n_bits((3, 48), 6, 16, zeros="computed", flat=True),
    n_bits((3, 80), 6, 16, zeros="packed", bias=True),
    gathered(codes(8, 32), 16),
    gathered(codes(8, 64), 16, bits=8),
    gathered(codes(8, 64), 16, bits=8, zeros=codes(8, 4)),
    gathered(codes(8, 32), 16, zeros=codes(8, 2)),
    gathered(codes(8, 32), 16, zeros=codes(8, 2), computed=True),
    gathered(codes(8, 24), 16, zeros=codes(8, 2), blocks=3),
    gathered(codes(8, 24), 16, blocks=3),
    gathered(codes(8, 20), 16, blocks=3),
]  # fmt: skip


def linear(
    op: str, x: Array, scale: Array, zeros: Array | None = None, domain: str = "", **attributes: Any
) -> Case:
    """QuantizeLinear or DequantizeLinear."""
    operands = (x, scale) if zeros is None else (x, scale, zeros)
    return Case(op, operands, attributes, domain)


LINEAR = [
    linear("QuantizeLinear", floats(5, 6), scales(), zero()),
    linear("QuantizeLinear", floats(5, 6), scales(1), zero(1)),
    linear("QuantizeLinear", floats(5, 6), scales()),
    linear("QuantizeLinear", floats(5, 6), scales(6), zero(6), axis=-1),
    linear("QuantizeLinear", floats(5, 6, 4), scales(5), zero(5, dtype=np.int8), axis=0),
    linear("QuantizeLinear", floats(6, 8), scales(6, 4), zero(6, 4), axis=1, block_size=2),
    linear("QuantizeLinear", floats(6), scales(), zero()),
    linear("DequantizeLinear", codes(5, 6), scales(), zero()),
    linear("DequantizeLinear", signed(5, 6), scales(1)),
    linear("DequantizeLinear", signed(5, 6), scales(6), zero(6, dtype=np.int8)),
    linear("DequantizeLinear", codes(5, 6, 4), scales(5), zero(5), axis=0),
    linear("DequantizeLinear", signed(5), scales(5), zero(5, dtype=np.int8), axis=0),
    linear("DequantizeLinear", codes(8, 6), scales(4, 6), zero(4, 6), axis=0, block_size=2),
    linear("DequantizeLinear", signed(6, 12), scales(6, 4), axis=-1, block_size=3),
    linear("DequantizeLinear", signed(6, 11), scales(6, 4), axis=1, block_size=3),
    linear("DequantizeLinear", codes(), scales(), zero()),
    *(linear(op, x, scales(*shape), zero(*shape), MICROSOFT, axis=1)
      for op, x in (("QuantizeLinear", floats(5, 6)), ("DequantizeLinear", codes(5, 6)))
      for shape in ((), (6,))),
    Case("DynamicQuantizeLinear", (floats(5, 6),), outputs=3),
]  # fmt: skip

# --- integer products -----------------------------------------------------------------------------

PRODUCTS = [
    Case("MatMulInteger", (codes(5, 6), signed(6, 8))),
    Case("MatMulInteger", (codes(5, 6), signed(6, 8), zero())),
    Case("MatMulInteger", (codes(5, 6), signed(6, 8), zero(), zero(dtype=np.int8))),
    Case("MatMulInteger", (codes(5, 6), signed(6, 8), zero(), zero(8, dtype=np.int8))),
    Case("MatMulInteger", (codes(2, 5, 6), signed(6, 8), zero(), zero(8, dtype=np.int8))),
    Case("MatMulInteger", (codes(4, 5, 6), codes(4, 6, 7), zero(), zero())),
    Case("MatMulIntegerToFloat", (codes(5, 6), signed(6, 8), scales(), scales()),
         domain=MICROSOFT),
    Case("MatMulIntegerToFloat",
         (codes(5, 6), signed(6, 8), scales(), scales(8), zero(), zero(8, dtype=np.int8)),
         domain=MICROSOFT),
    Case("MatMulIntegerToFloat",
         (codes(5, 6), signed(6, 8), scales(), scales(8), zero(), None, floats(8)),
         domain=MICROSOFT),
    Case("DynamicQuantizeMatMul", (floats(5, 6), signed(6, 8), scales()), domain=MICROSOFT),
    Case("DynamicQuantizeMatMul",
         (floats(2, 5, 6), signed(6, 8), scales(8), zero(8, dtype=np.int8), floats(8)),
         domain=MICROSOFT),
    Case("QLinearMatMul",
         (codes(5, 6), scales(), zero(), codes(6, 8), scales(), zero(), scales(), zero())),
    Case("QLinearMatMul",
         (codes(5, 6), scales(), zero(), codes(6, 8), scales(8), zero(8), scales(), zero())),
    Case("QLinearMatMul",
         (codes(2, 5, 6), scales(), zero(), codes(2, 6, 7), scales(), zero(), scales(), zero())),
    Case("QGemm",
         (codes(5, 6), scales(), zero(), codes(6, 8), scales(), zero(), None, scales(), zero()),
         domain=MICROSOFT),
    Case("QGemm",
         (codes(5, 6), scales(), zero(), signed(8, 6), scales(8), zero(8, dtype=np.int8),
          codes(8, dtype=np.int32, high=999), scales(), zero()),
         {"transB": 1}, MICROSOFT),
    Case("QGemm", (codes(6, 5), scales(), zero(), codes(6, 8), scales(), zero()),
         {"transA": 1, "alpha": 0.5}, MICROSOFT),
    Case("QGemm",
         (codes(5, 6), scales(), zero(), signed(6, 8), scales(), zero(dtype=np.int8),
          codes(8, dtype=np.int32, high=999)),
         domain=MICROSOFT),
]  # fmt: skip


def qlinear_conv(
    weight: tuple[int, ...], channels: int, per_channel: bool, **attributes: Any
) -> Case:
    """QLinearConv of two images of size 5."""
    window = (5,) * (len(weight) - 2)
    each = weight[:1] if per_channel else ()
    operands = (
        *(codes(2, channels, *window), scales(), zero()),
        *(signed(*weight), scales(*each), np.zeros(each, np.int8)),
        *(np.asarray(1.5, np.float32), zero(), codes(weight[0], dtype=np.int32, high=999)),
    )
    return Case("QLinearConv", operands, attributes)


CONVOLUTIONS = [
    Case("ConvInteger", (codes(4, 6, 5), codes(8, 6, 3))),
    Case("ConvInteger", (codes(2, 6, 5, 5), codes(4, 6, 3, 3), zero()), {"pads": [1, 1, 1, 1]}),
    Case("ConvInteger", (codes(2, 8, 5, 5), codes(12, 2, 3, 3), zero()), {"group": 4}),
    qlinear_conv((8, 6, 3, 3), 6, per_channel=True, pads=[1, 1, 1, 1]),
    qlinear_conv((8, 6, 3, 3), 6, per_channel=False),
    qlinear_conv((12, 2, 3, 3), 8, per_channel=True, group=4),
]

# --- ops on codes ---------------------------------------------------------------------------------

PARAMETERS = (scales(), zero(), scales(), zero())


def coded(op: str, *shapes: tuple[int, ...], **attributes: Any) -> Case:
    """An op on codes, each with its own scale and zero point."""
    operands = [part for shape in shapes for part in (codes(*shape), scales(), zero())]
    return Case(op, (*operands, scales(), zero()), attributes, MICROSOFT)


def q_attention(heads: int, past: int = 0, masked: bool = False, each: bool = False) -> Case:
    """QAttention of batch 2, three positions, head size 4."""
    width = 4 * heads
    shape = (3 * width,) if each else ()
    operands: list[Array | None] = [codes(2, 3, 6), signed(6, 3 * width), floats(3 * width)]
    operands += [scales(), scales(*shape), None, zero(), zero(*shape, dtype=np.int8)]
    if masked:
        operands[5] = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    if past:
        operands.append(floats(2, 2, heads, past, 4))
    attributes = {"num_heads": heads, "unidirectional": int(bool(past))}
    return Case("QAttention", tuple(operands), attributes, MICROSOFT, outputs=1 + bool(past))


CODES = [
    coded("QLinearAdd", (5, 6), (5, 6)),
    coded("QLinearAdd", (4, 5, 6), (6,)),
    coded("QLinearMul", (5, 6), (5, 1)),
    coded("QLinearMul", (5, 6), ()),
    coded("QLinearSigmoid", (5, 6)),
    coded("QLinearLeakyRelu", (5, 6), alpha=0.1),
    coded("QLinearSoftmax", (4, 5, 6), axis=-1, opset=18),
    coded("QLinearSoftmax", (4, 5, 6), axis=1, opset=11),
    coded("QLinearAveragePool", (4, 6, 5, 5), kernel_shape=[3, 3], strides=[2, 2],
          pads=[1, 1, 1, 1]),
    coded("QLinearAveragePool", (4, 5, 5, 6), kernel_shape=[2, 2], channels_last=1),
    coded("QLinearGlobalAveragePool", (4, 6, 3, 3)),
    coded("QLinearGlobalAveragePool", (4, 3, 3, 6), channels_last=1),
    Case("QLinearWhere",
         (np.asarray(RANDOM.integers(0, 2, (5, 6)), np.bool_),
          *(codes(5, 6), scales(), zero()), *(codes(6), scales(), zero()), scales(), zero()),
         domain=MICROSOFT),
    Case("QLinearConcat",
         (scales(), zero(), *(codes(5, 6), scales(), zero()), *(codes(5, 4), scales(), zero())),
         {"axis": 1}, MICROSOFT),
    q_attention(4),
    q_attention(6, each=True),
    q_attention(4, masked=True),
    q_attention(4, past=2),
]  # fmt: skip

QUANT: list[Case] = [*BLOCKS, *LINEAR, *PRODUCTS, *CONVOLUTIONS, *CODES]
