"""Rows of `validator_cases` for convolutional nets, experts and ONNX Runtime's own ops."""

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
    Case("FusedConv", (floats(4, 6, 5), floats(8, 6, 3), floats(8)), {"activation": "Relu"},
         MICROSOFT),
    Case("FusedConv", (floats(2, 8, 5, 5), floats(12, 2, 3, 3)),
         {"activation": "Relu", "group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]}, MICROSOFT),
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
    Case("EmbedLayerNormalization",
         (ints(0, 9, 2, 4, dtype=np.int32), ints(0, 2, 2, 4, dtype=np.int32), floats(9, 6),
          floats(5, 6), floats(2, 6), floats(6), floats(6), ints(0, 2, 2, 4, dtype=np.int32)),
         {}, MICROSOFT, outputs=3),
    Case("EmbedLayerNormalization",
         (ints(0, 9, 2, 4, dtype=np.int32), None, floats(9, 6), floats(5, 6), None, floats(6),
          floats(6), None, ints(0, 5, 1, 4, dtype=np.int32)), {}, MICROSOFT),
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

# --- experts and recurrent mixers -----------------------------------------------------------------


def experts(
    inner: int, *, bias: bool = True, third: bool = False, batched: bool = False, **attributes: Any
) -> Case:
    """MoE of three experts, six tokens of five features."""
    fused = 2 if attributes.get("swiglu_fusion") else 1
    tokens = floats(2, 3, 5) if batched else floats(6, 5)
    given: list[Array | None] = [tokens, floats(6, 3), floats(3, fused * inner, 5)]
    given += [floats(3, fused * inner) if bias else None, floats(3, 5, inner)]
    given += [floats(3, 5) if bias else None]
    given += [floats(3, inner, 5), floats(3, inner)] if third else []
    while given[-1] is None:
        given.pop()
    return Case("MoE", tuple(given), {"k": 2, **attributes}, MICROSOFT)


def quantised_experts(
    inner: int, *, bits: int = 4, block: int = 0, points: bool = False, **attributes: Any
) -> Case:
    """QMoE of two experts, four tokens of 32 features."""
    fused = 2 if attributes.get("swiglu_fusion") else 1
    rows, width = fused * inner, 32

    def codes(*shape: int) -> Array:
        return ints(0, 256, *shape[:-1], shape[-1] * bits // 8, dtype=np.uint8)

    def rates(count: int, inputs: int) -> Array:
        return above(0.1, 2, count, inputs // block) if block else above(0.1, 2, count)

    given: list[Array | None] = [floats(4, width), floats(4, 2)]
    given += [codes(2, rows, width), rates(rows, width), floats(2, rows)]
    given += [codes(2, width, inner), rates(width, inner), floats(2, width)]
    if points:
        zeros = [codes(2, rows, width // block), codes(2, width, inner // block)]
        given += [None, None, None, *zeros]
    return Case(
        "QMoE",
        tuple(given),
        {"k": 1, "expert_weight_bits": bits, "block_size": block, **attributes},
        MICROSOFT,
    )


def mixer(
    heads: int,
    kv_heads: int,
    rule: str,
    *,
    past: bool = True,
    per_key: bool = False,
    one: bool = False,
) -> Case:
    """LinearAttention of head sizes 4 and 3, batch 2, three tokens."""
    given: list[Array | None] = [floats(2, 3, 4 * heads) / 2, floats(2, 3, 4 * kv_heads) / 2]
    given += [floats(2, 3, 3 * kv_heads), floats(2, kv_heads, 4, 3) if past else None]
    given += [-above(0.1, 2, 3, kv_heads * (4 if per_key else 1)) if "gated" in rule else None]
    given += [above(0, 2, 3, 1 if one else kv_heads) if "delta" in rule else None]
    while given[-1] is None:
        given.pop()
    attributes = {"q_num_heads": heads, "kv_num_heads": kv_heads, "update_rule": rule}
    return Case("LinearAttention", tuple(given), attributes, MICROSOFT, outputs=2)


SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "activation_alpha": 1.7,
    "activation_beta": 1.0,
    "swiglu_limit": 7.0,
}
EXPERTS = [
    experts(8),
    experts(7, bias=False, normalize_routing_weights=1, activation_type="silu"),
    experts(6, batched=True, activation_type="gelu"),
    experts(8, swiglu_fusion=1, **SWIGLU),
    experts(8, swiglu_fusion=2, **SWIGLU),
    experts(8, third=True, activation_type="silu"),
    quantised_experts(32),
    quantised_experts(48, block=16, swiglu_fusion=1, **SWIGLU),
    quantised_experts(64, block=16, points=True, swiglu_fusion=1, **SWIGLU),
    quantised_experts(48, bits=8, block=16, points=True),
    mixer(8, 4, "gated_delta"),
    mixer(4, 4, "linear", past=False),
    mixer(6, 6, "gated", per_key=True),
    mixer(3, 6, "delta", one=True),
    Case("CausalConvWithState", (floats(2, 6, 5), floats(6, 1, 3), floats(6), floats(2, 6, 2)),
         {"activation": "silu"}, MICROSOFT, outputs=2),
    Case("CausalConvWithState", (floats(2, 5, 6), floats(6, 1, 3), None, floats(2, 4, 6)),
         {"channels_last": 1, "dilation": 2}, MICROSOFT, outputs=2),
    Case("CausalConvWithState", (floats(2, 6, 5), floats(6, 1, 3)), {}, MICROSOFT),
]  # fmt: skip

NETS: list[Case] = [*IMAGES, *FUSED, *HEADS, *EXPERTS]
