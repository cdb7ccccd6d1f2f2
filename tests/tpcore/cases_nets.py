"""Rows of `validator_cases` for convolutional nets and ONNX Runtime's own ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from tpcore.trial import Array, Case

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(23)


def floats(*shape: int) -> Array:
    """Random numbers of both signs, none close to zero."""
    numbers = RANDOM.uniform(0.2, 1.8, shape) * RANDOM.choice([-1, 1], shape)
    return np.asarray(numbers, np.float32)


def above(low: float, *shape: int) -> Array:
    """Random numbers between `low` and `low + 1`."""
    return np.asarray(RANDOM.uniform(low, low + 1, shape), np.float32)


def ints(low: int, high: int, *shape: int, dtype: type = np.int64) -> Array:
    """Random integers."""
    return RANDOM.integers(low, high, shape).astype(dtype)


def const(*entries: int) -> Array:
    """Contents of a shape operand."""
    return np.array(entries, np.int64)


def scales(*entries: float) -> Array:
    """Contents of a scale operand."""
    return np.array(entries, np.float32)


# --- convolutional nets ---------------------------------------------------------------------------

REGIONS = scales(0, 0, 3, 4, 1, 0.5, 4, 3, 0, 2, 2, 4, 1, 1, 4, 4).reshape(4, 4)
WINDOW = {"kernel_shape": [3, 3]}

IMAGES = [
    Case("ConvTranspose", (floats(2, 6, 5), floats(6, 8, 3))),
    Case("ConvTranspose", (floats(2, 6, 3, 3), floats(6, 4, 3, 3), floats(4)), {"strides": [2, 2]}),
    Case("ConvTranspose", (floats(2, 8, 5), floats(8, 3, 3), floats(12)), {"group": 4}),
    Case("DeformConv",
         (floats(1, 4, 3, 3), floats(5, 4, 2, 2), floats(1, 8, 2, 2), floats(5)), constants=(2,)),
    Case("DeformConv",
         (floats(1, 4, 3, 3), floats(5, 4, 2, 2), floats(1, 8, 2, 2), None, floats(1, 4, 2, 2)),
         constants=(2,)),
    *(Case(op, (floats(4, 6, 4, 4),), WINDOW) for op in ("MaxPool", "AveragePool", "LpPool")),
    Case("MaxPool", (floats(2, 6, 5),), {"kernel_shape": [3]}),
    Case("MaxPool", (floats(4, 6, 4, 4),), {"kernel_shape": [2, 2], "strides": [2, 2]}, outputs=2),
    Case("AveragePool", (floats(2, 6, 5),),
         {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
    *(Case(op, (floats(4, 6, 3, 5),))
      for op in ("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")),
    Case("BatchNormalization",
         (floats(4, 6), floats(6), floats(6), floats(6), above(0.5, 6))),
    Case("BatchNormalization",
         (floats(3, 5, 2, 2), floats(5), floats(5), floats(5), above(0.5, 5)), {"epsilon": 1e-2},
         constants=(3, 4)),
    Case("InstanceNormalization", (floats(4, 6, 5), floats(6), floats(6))),
    Case("InstanceNormalization", (floats(2, 5, 3, 3), floats(5), floats(5))),
    Case("GroupNormalization", (floats(2, 8, 5), floats(8), floats(8)), {"num_groups": 4}),
    Case("GroupNormalization", (floats(2, 6, 3, 3), floats(6), floats(6)), {"num_groups": 6}),
    Case("LRN", (floats(4, 6, 5, 3),), {"size": 3, "alpha": 1.0}),
    Case("Resize", (floats(2, 6, 5, 5), None, scales(1, 1, 2, 2)), {"mode": "nearest"},
         constants=(2,)),
    Case("Resize", (floats(2, 6, 5, 5), None, None, const(2, 6, 7, 3)), {"mode": "linear"},
         constants=(3,)),
    Case("Resize", (floats(2, 6, 5, 5), None, None, const(8, 7)),
         {"mode": "linear", "axes": [2, 3]}, constants=(3,)),
    Case("Resize", (floats(2, 6, 5, 5), None, None, const(8, 7)),
         {"mode": "nearest", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
         constants=(3,)),
    Case("Upsample", (floats(2, 6, 5, 5), scales(1, 1, 2, 2)), {"mode": "nearest"},
         constants=(1,), opset=9),
    Case("Upsample", (floats(2, 6, 5),), {"mode": "nearest", "scales": [1.0, 1.0, 2.0]}, opset=7),
    Case("Pad", (floats(4, 6, 5), const(0, 0, 1, 0, 0, 2)), constants=(1,)),
    Case("Pad", (floats(4, 6, 5), const(1, 0, 0, 1, 0, 0)), {"mode": "reflect"}, constants=(1,)),
    Case("Pad", (floats(4, 6, 5), const(1, 2), floats(), const(-1)), constants=(1, 3)),
    Case("Pad", (floats(4, 6),), {"pads": [0, 1, 0, 1], "mode": "edge"}, opset=10),
    Case("CenterCropPad", (floats(5, 6, 4), const(3, 6)), {"axes": [0, 2]}, constants=(1,)),
    *(Case("DepthToSpace", (floats(2, 24, 2, 3),), {"blocksize": 2, "mode": mode})
      for mode in ("DCR", "CRD")),
    Case("SpaceToDepth", (floats(2, 6, 4, 6),), {"blocksize": 2}),
    *(Case("Flatten", (floats(4, 5, 6),), {"axis": axis}) for axis in (0, 1, 2, -1)),
    Case("Flatten", (floats(4, 6, 1, 1),)),
    Case("Flatten", (floats(2, 6, 3),), symbols={0: ("batch", 6, 3)}),
    Case("GridSample", (floats(2, 6, 4, 4), floats(2, 5, 3, 2) / 2)),
    Case("GridSample", (floats(2, 6, 4, 4), floats(2, 5, 3, 2) / 2),
         {"mode": "nearest", "padding_mode": "border"}),
    Case("RoiAlign", (floats(2, 6, 5, 5), REGIONS, np.array([1, 0, 0, 1])),
         {"output_height": 2, "output_width": 2}),
    Case("Col2Im", (floats(2, 24, 4), const(3, 3), const(2, 2)), constants=(1, 2)),
]  # fmt: skip

# --- ONNX Runtime's fused ops ---------------------------------------------------------------------


def padding(*shape: int) -> Array:
    """A mask in which every query has a key to look at."""
    mask = ints(0, 2, *shape, dtype=np.int32)
    mask[..., 0] = 1
    mask[0, ..., 1], mask[1, ..., 1] = 0, 1
    return mask


def heads(batch: int, length: int, *sizes: int) -> tuple[Array, ...]:
    """Operands of attention, one per size."""
    return tuple(floats(batch, length, size) for size in sizes)


FUSED = [
    Case("FusedMatMul", (floats(5, 6), floats(6, 8)), {"alpha": 0.5}, MICROSOFT),
    Case("FusedMatMul", (floats(6, 5), floats(8, 6)), {"transA": 1, "transB": 1}, MICROSOFT),
    Case("FusedMatMul", (floats(4, 5, 6), floats(7, 6)), {"transB": 1}, MICROSOFT),
    Case("FusedMatMul", (floats(5, 4, 6), floats(4, 6, 7)), {"transBatchA": 1}, MICROSOFT),
    Case("FusedMatMul", (floats(4, 5, 6), floats(6, 4, 7)), {"transBatchB": 1}, MICROSOFT),
    Case("FusedMatMul", (floats(6, 4, 5), floats(4, 6, 7)), {"transBatchA": 1, "transA": 1},
         MICROSOFT),
    Case("TransposeMatMul", (floats(6, 5), floats(6, 8)), {"transA": 1}, MICROSOFT),
    Case("FusedGemm", (floats(5, 6), floats(6, 8), floats(8)), {"activation": "Relu"}, MICROSOFT),
    Case("FusedGemm", (floats(6, 5), floats(8, 6), floats(5, 1)),
         {"activation": "Tanh", "transA": 1, "transB": 1}, MICROSOFT),
    Case("GemmFastGelu", (floats(4, 5, 6), floats(6, 8), floats(8)), {}, MICROSOFT),
    Case("GemmFastGelu", (floats(4, 5, 6), floats(6, 8)), {}, MICROSOFT),
    Case("BiasAdd", (floats(4, 5, 6), floats(6), floats(4, 5, 6)), {}, MICROSOFT),
    Case("BiasSplitGelu", (floats(4, 5, 12), floats(12)), {}, MICROSOFT),
    Case("BiasSoftmax", (floats(4, 5, 6), floats(4, 1, 6)), {"axis": 2, "is_inner_broadcast": 1},
         MICROSOFT),
    Case("BiasSoftmax", (floats(4, 5, 6), floats(1, 5, 6)), {"axis": 1, "is_inner_broadcast": 0},
         MICROSOFT),
    Case("SwiGLU", (floats(4, 5, 6), floats(4, 5, 6)), {"activation_alpha": 1.7, "limit": 1.0},
         MICROSOFT),
    Case("SwiGLU", (floats(4, 5, 12),), {"activation_beta": 1.0}, MICROSOFT),
    Case("ScaledSiLU", (floats(5, 6),), {"alpha": 0.5}, MICROSOFT),
    Case("GatedAdd", (floats(4, 5, 6), floats(4, 5, 6), floats(4, 5, 1)), {}, MICROSOFT),
    Case("GatedAdd", (floats(4, 5, 6), floats(4, 5, 6), floats(4, 5, 7), floats(7, 1)), {},
         MICROSOFT, constants=(3,)),
    Case("GatedRMSNorm", (floats(2, 5, 24), floats(4), floats(2, 5, 24)), {}, MICROSOFT),
    Case("GatedRMSNorm", (floats(2, 5, 6), floats(6), floats(2, 5, 6)), {"activation": "sigmoid"},
         MICROSOFT),
    Case("GroupNorm", (floats(2, 3, 3, 8), floats(8), floats(8)), {"groups": 4, "activation": 1},
         MICROSOFT),
    Case("GroupNorm", (floats(2, 8, 3, 3), floats(8), floats(8)),
         {"groups": 4, "activation": 0, "channels_last": 0}, MICROSOFT),
    Case("SkipGroupNorm",
         (floats(2, 3, 3, 8), floats(8), floats(8), floats(2, 3, 3, 8), floats(8)),
         {"groups": 4, "activation": 1}, MICROSOFT, outputs=2),
    Case("SkipGroupNorm", (floats(2, 3, 3, 8), floats(8), floats(8), floats(2, 8)),
         {"groups": 4, "activation": 0}, MICROSOFT),
    Case("Trilu", (floats(4, 5, 6), np.array(1)), {}, MICROSOFT, constants=(1,)),
]  # fmt: skip


def multi_head(
    count: int,
    keys: int = 3,
    *,
    bias: bool = False,
    mask: tuple[int, ...] = (),
    scores: tuple[int, ...] = (),
    past: int = 0,
    cross: bool = False,
    **attributes: Any,
) -> Case:
    """MultiHeadAttention of `count` heads of sizes 4 and 3, batch 2, three queries."""
    query, key, value = floats(2, 3, 4 * count), *heads(2, keys, 4 * count, 3 * count)
    if cross:
        key, value = floats(2, count, keys, 4), floats(2, count, keys, 3)
    given: list[Array | None] = [query, key, value, floats(11 * count) if bias else None]
    given += [padding(*mask) if mask else None]
    given += [floats(*scores) if scores else None]
    given += [floats(2, count, past, 4), floats(2, count, past, 3)] if past else []
    while given[-1] is None:
        given.pop()
    return Case(
        "MultiHeadAttention", tuple(given), {"num_heads": count, **attributes}, MICROSOFT,
        outputs=3 if past else 1,
    )  # fmt: skip


def packed(
    count: int,
    *,
    sizes: tuple[int, int] = (4, 4),
    mask: tuple[int, ...] = (),
    scores: tuple[int, ...] = (),
    past: int = 0,
    **attributes: Any,
) -> Case:
    """com.microsoft Attention of `count` heads, batch 2, three tokens of five features."""
    size, value = sizes
    width = count * (2 * size + value)
    given: list[Array | None] = [floats(2, 3, 5), floats(5, width), floats(width)]
    given += [padding(*mask) if mask else None]
    given += [floats(2, 2, count, past, size) if past else None]
    given += [floats(*scores) if scores else None]
    while given[-1] is None:
        given.pop()
    if size != value:
        attributes["qkv_hidden_sizes"] = [count * size, count * size, count * value]
    return Case(
        "Attention", tuple(given), {"num_heads": count, **attributes}, MICROSOFT,
        outputs=2 if past else 1,
    )  # fmt: skip


HEADS = [
    multi_head(8),
    multi_head(6, bias=True),
    multi_head(4, mask=(2, 3)),
    multi_head(4, mask=(2, 3, 3), scores=(1, 4, 3, 3)),
    multi_head(6, past=2, scores=(2, 1, 3, 5), unidirectional=1),
    multi_head(4, keys=5, cross=True),
    packed(8),
    packed(6, mask=(2, 3), unidirectional=1),
    packed(4, sizes=(4, 3)),
    packed(4, past=2, scores=(2, 4, 3, 5)),
    packed(5, scores=(1, 1, 3, 3), scale=0.3),
]

NETS: list[Case] = [*IMAGES, *FUSED, *HEADS]
