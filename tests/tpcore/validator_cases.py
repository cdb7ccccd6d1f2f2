"""The table of nodes that the rules are proven on: at least one per op of `tpcore.ops.OPS`.

Sizes are such that 2, 3 and 4 ranks split some dims evenly and others unevenly. A new rule is one
more row here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.tpcore.cases_experts import EXPERTS
from tests.tpcore.cases_nets import NETS
from tests.tpcore.cases_ops import OTHERS
from tests.tpcore.cases_quant import QUANT
from tpcore.rules.elementwise import UNARY
from tpcore.trial import Array, Case

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(7)


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


def bools(*shape: int) -> Array:
    """Random truth values."""
    return np.asarray(RANDOM.integers(0, 2, shape), np.bool_)


def const(*entries: int) -> Array:
    """Contents of a shape operand."""
    return np.array(entries, np.int64)


# --- elementwise ----------------------------------------------------------------------------------

DOMAINS: dict[str, Array] = {
    **{op: above(-0.5, 5, 6) for op in ("Acos", "Asin", "Atanh")},
    **{op: above(1.5, 5, 6) for op in ("Acosh", "Log", "Sqrt")},
    "BitwiseNot": ints(0, 99, 5, 6),
    "Not": bools(5, 6),
    "IsInf": np.where(bools(5, 6), np.float32(np.inf), floats(5, 6)),
    "IsNaN": np.where(bools(5, 6), np.float32(np.nan), floats(5, 6)),
}
"""Operands of the ops that are not for all numbers."""
ATTRIBUTES: dict[str, dict[str, Any]] = {"Cast": {"to": 6}}  # to int32: not linear

LOGICAL = ("And", "Or", "Xor")
BITWISE = ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
FLOAT_PAIRS = "Add Sub Mul Div Max Min PRelu Greater GreaterOrEqual Less LessOrEqual Sum".split()

ELEMENTWISE = [
    *(Case(op, (DOMAINS.get(op, floats(5, 6)),), ATTRIBUTES.get(op, {})) for op in UNARY),
    *(Case(op, (floats(5, 6),)) for op in ("Identity", "Neg")),
    *(Case(op, (bools(5, 6), bools(6))) for op in LOGICAL),
    *(Case(op, (ints(0, 99, 5, 6), ints(0, 99, 6))) for op in BITWISE),
    *(Case(op, (floats(5, 6), floats(6))) for op in FLOAT_PAIRS),
    *(Case(op, (floats(4, 1, 6), floats(5, 1))) for op in ("Add", "Mul", "Sub", "Div")),
    Case("Add", (ints(0, 9, 5, 6), ints(0, 9, 5, 6))),
    Case("Mul", (floats(5, 6), floats())),
    Case("Sub", (floats(), floats(5, 6))),
    Case("Sum", (floats(5, 6), floats(6), floats(5, 1))),
    Case("Max", (floats(5, 6), floats(6), floats(5, 1))),
    Case("BitShift", (ints(0, 99, 5, 6, dtype=np.uint32), ints(0, 5, 6, dtype=np.uint32)),
         {"direction": "LEFT"}),
    Case("Equal", (ints(0, 2, 5, 6), ints(0, 2, 6))),
    Case("Mod", (floats(5, 6), floats(6)), {"fmod": 1}),
    Case("Mod", (ints(0, 99, 5, 6), ints(1, 9, 5, 1))),
    Case("Pow", (above(0.5, 5, 6), floats(6))),
    Case("Where", (bools(5, 6), floats(5, 6), floats(5, 6))),
    Case("Where", (bools(5, 1), floats(6), floats(5, 6))),
    Case("Where", (bools(6), floats(5, 6), floats())),
    Case("Clip", (floats(5, 6), floats(), above(1.0))),
    Case("Clip", (floats(5, 6), None, above(0.0))),
    Case("Cast", (floats(5, 6),), {"to": 11}),
    *(Case(op, (floats(5, 6),), domain=MICROSOFT) for op in ("Gelu", "FastGelu", "QuickGelu")),
    *(Case(op, (floats(5, 6), floats(6)), domain=MICROSOFT) for op in ("BiasGelu", "FastGelu")),
]  # fmt: skip

# --- contractions ---------------------------------------------------------------------------------

CONTRACTIONS = [
    Case("MatMul", (floats(5, 6), floats(6, 8))),
    Case("MatMul", (floats(6), floats(6))),
    Case("MatMul", (floats(6), floats(6, 8))),
    Case("MatMul", (floats(5, 6), floats(6))),
    Case("MatMul", (floats(4, 5, 6), floats(6, 7))),
    Case("MatMul", (floats(4, 5, 6), floats(4, 6, 7))),
    Case("MatMul", (floats(2, 1, 3, 4), floats(5, 4, 6))),
    Case("MatMul", (floats(6), floats(4, 6, 5))),
    Case("Conv", (floats(4, 6, 5), floats(8, 6, 3))),
    Case("Conv", (floats(2, 6, 5, 5), floats(4, 6, 3, 3), floats(4)), {"pads": [1, 1, 1, 1]}),
    Case("Conv", (floats(2, 8, 5), floats(12, 2, 3), floats(12)), {"group": 4}),
    Case("Conv", (floats(2, 5, 6), floats(5, 1, 3)), {"group": 5}),
]

# --- norms and reductions -------------------------------------------------------------------------

REDUCTIONS = (
    "ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp".split()
)

NORMS = [
    *(Case(op, (floats(4, 5, 6),), {"axis": axis}) for op in ("Softmax", "LogSoftmax")
      for axis in (-1, 0, 1)),
    Case("Softmax", (floats(4, 5, 6),)),
    Case("LayerNormalization", (floats(4, 5, 6), floats(6), floats(6))),
    Case("LayerNormalization", (floats(4, 5, 6), floats(6)), {"axis": 2}),
    Case("LayerNormalization", (floats(4, 5, 6), floats(5, 6), floats(5, 6)), {"axis": 1}),
    Case("LayerNormalization", (floats(4, 5, 6), floats(6), floats(6)), outputs=3),
    Case("RMSNormalization", (floats(4, 5, 6), floats(6))),
    Case("RMSNormalization", (floats(4, 5, 6), floats(5, 6)), {"axis": 1}),
    Case("SimplifiedLayerNormalization", (floats(4, 5, 6), floats(6)), {"axis": -1}),
    *(Case(op, (floats(4, 5, 6), floats(4, 5, 6), floats(6)), domain=MICROSOFT, outputs=outputs)
      for op in ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
      for outputs in (1, 4)),
    Case("SkipLayerNormalization",
         (floats(4, 5, 6), floats(4, 5, 6), floats(6), floats(6), floats(6)),
         {"epsilon": 1e-3}, domain=MICROSOFT, outputs=4),
    *(Case(op, (floats(4, 5, 6), const(-1)), {"keepdims": keep}, constants=(1,))
      for op in ("ReduceSum", "ReduceMean") for keep in (0, 1)),
    *(Case(op, (floats(4, 5, 6), const(0, 2)), {"keepdims": keep}, constants=(1,))
      for op in ("ReduceSum", "ReduceMean") for keep in (0, 1)),
    *(Case(op, (floats(4, 5, 6),), {"keepdims": 0}) for op in ("ReduceSum", "ReduceMean")),
    Case("ReduceSum", (floats(4, 5), np.zeros(0, np.int64)), {"noop_with_empty_axes": 1},
         constants=(1,)),
    Case("ReduceMean", (floats(4, 5, 6),), {"axes": [1]}, opset=13),
    *(Case(op, (floats(4, 5, 6), const(1)), {"keepdims": 0}, constants=(1,)) for op in REDUCTIONS),
]  # fmt: skip

# --- ops that move elements -----------------------------------------------------------------------

RESHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((4, 6), (24,)),
    ((24,), (4, 6)),
    ((5, 8, 3), (5, 24)),
    ((5, 24), (5, 8, 3)),
    ((5, 24), (5, 2, 4, 3)),
    ((4, 5, 6), (20, 6)),
    ((4, 6), (6, 4)),
    ((12, 5), (4, 15)),
    ((2, 1, 6), (2, 6, 1)),
    ((2, 5, 6), (0, -1)),
    ((2, 6, 4), (2, 2, 3, 4)),
]

SLICES: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((1,), (4,), (0,), (1,)),
    ((0,), (4,), (1,), (1,)),
    ((-4,), (2**40,), (1,), (1,)),
    ((0, 2), (5, -1), (0, 1), (1, 1)),
    ((1,), (7,), (1,), (2,)),
    ((0,), (7,), (1,), (2,)),
    ((-7,), (2**40,), (1,), (2,)),
    ((1,), (8,), (1,), (4,)),
    ((0,), (2**40,), (1,), (1,)),
]

SHAPES = [
    *(Case("Reshape", (floats(*have), const(*want)), constants=(1,)) for have, want in RESHAPES),
    Case("Reshape", (floats(2, 3, 8), const(6, -1)), constants=(1,),
         symbols={0: ("batch", "seq", 8)}),
    Case("Reshape", (floats(2, 3, 8), const(0, 0, 4, 2)), constants=(1,),
         symbols={0: ("batch", "seq", 8)}),
    Case("Reshape", (floats(2, 3, 8, 2), const(-1, 2)), constants=(1,),
         symbols={0: ("batch", "seq", 8, 2)}),
    Case("Expand", (floats(5, 1, 6), const(4, 5, 3, 6)), constants=(1,)),
    Case("Expand", (floats(5, 6), const(1, 6)), constants=(1,)),
    *(Case("Slice", (floats(5, 8), *map(lambda entries: const(*entries), bounds)),
           constants=(1, 2, 3, 4)) for bounds in SLICES),
    Case("Slice", (floats(5, 8), const(0, 2), const(5, 6)), constants=(1, 2)),
    *(Case("Transpose", (floats(4, 5, 6),), {"perm": perm}) for perm in ([0, 2, 1], [2, 0, 1])),
    Case("Transpose", (floats(4, 5, 6),)),
    *(Case("Squeeze", (floats(5, 1, 6, 1), const(*axes)), constants=(1,))
      for axes in ((1,), (1, -1))),
    Case("Squeeze", (floats(5, 1, 6),)),
    Case("Squeeze", (floats(5, 1, 6),), opset=11),
    Case("Squeeze", (floats(5, 1, 6),), {"axes": [1]}, opset=11),
    *(Case("Unsqueeze", (floats(5, 6), const(*axes)), constants=(1,)) for axes in ((1,), (0, -1))),
    Case("Unsqueeze", (floats(5, 6),), {"axes": [1]}, opset=11),
    Case("Concat", (floats(5, 6), floats(5, 4)), {"axis": 1}),
    Case("Concat", (floats(5, 6), floats(4, 6), floats(1, 6)), {"axis": 0}),
    Case("Concat", (floats(2, 3, 8), floats(2, 3, 8)), {"axis": -1}),
    Case("Split", (floats(5, 12), const(4, 4, 4)), {"axis": 1}, outputs=3, constants=(1,)),
    Case("Split", (floats(5, 13), const(5, 8)), {"axis": -1}, outputs=2, constants=(1,)),
    Case("Split", (floats(12, 5),), {"num_outputs": 3}, outputs=3),
    Case("Split", (floats(5, 12),), {"axis": 1, "split": [8, 4]}, outputs=2, opset=11),
    Case("Gather", (floats(8, 5), ints(-8, 8, 4)), {"axis": 0}),
    Case("Gather", (floats(7, 5), ints(0, 7, 2, 4))),
    Case("Gather", (floats(4, 8, 5), ints(-8, 8, 6)), {"axis": 1}),
    Case("Gather", (floats(5, 8), ints(0, 8, 6)), {"axis": -1}),
    Case("Gather", (floats(8, 5), np.array(3))),
    Case("Gather", (floats(8, 5), ints(0, 8, 4, dtype=np.int32))),
    Case("Gather", (ints(0, 9, 8, 5), ints(0, 8, 4))),
    Case("Shape", (floats(4, 5, 6),)),
    Case("Shape", (floats(4, 5, 6),), {"start": 1}),
    Case("Shape", (floats(4, 5, 6),), {"start": -2, "end": -1}),
]  # fmt: skip

# --- attention ------------------------------------------------------------------------------------


def positions(size: int) -> tuple[Array, Array]:
    """Cosine and sine caches f32[16, size/2]."""
    angles = np.outer(np.arange(16), 0.5 ** np.arange(size // 2)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def grouped(heads: int, kv_heads: int, packed: bool, past: int = 3, rotary: int = 0) -> Case:
    """GroupQueryAttention with head size 4, batch 2 and a cache of `past` keys."""
    new, size = (1, 4) if past else (3, 4)
    q, kv = floats(2, new, heads * size), [floats(2, new, kv_heads * size) for _ in "kv"]
    given = (np.concatenate([q, *kv], -1), None, None) if packed else (q, *kv)
    cache = [floats(2, kv_heads, past, size) for _ in "kv"]
    lengths = np.full(2, past + new - 1, np.int32), np.array([past + new], np.int32)
    return Case(
        "GroupQueryAttention",
        (*given, *cache, *lengths, *(positions(size) if rotary else ())),
        {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": rotary},
        domain=MICROSOFT,
        outputs=3,
    )


def attention(
    rank: int, heads: int, kv_heads: int, mask: tuple[int, ...] = (), past: int = 0
) -> Case:
    """Attention with head sizes 4 (q, k) and 3 (v), batch 2, three queries."""

    def heads_of(count: int, size: int, length: int = 3) -> Array:
        split = (2, count, length, size) if rank == 4 else (2, length, count * size)
        return floats(*split)

    operands = [heads_of(heads, 4), heads_of(kv_heads, 4), heads_of(kv_heads, 3)]
    extra = [floats(*mask)] if mask else [None]
    cache = [floats(2, kv_heads, past, 4), floats(2, kv_heads, past, 3)] if past else []
    attributes = {"q_num_heads": heads, "kv_num_heads": kv_heads} if rank == 3 else {}
    given = (*operands, *extra, *cache)
    return Case(
        "Attention",
        given if mask or past else tuple(operands),
        attributes,
        outputs=3 if past else 1,
    )


def rotary(shape: tuple[int, ...], domain: str, **attributes: int) -> Case:
    """RotaryEmbedding of either domain, whose operands come in different order."""
    cos, sin = positions(4)
    at = ints(0, 16, 2, 3)
    operands = (cos[at], sin[at]) if domain == "" else (at, cos, sin)
    return Case("RotaryEmbedding", (floats(*shape), *operands), attributes, domain)


ATTENTION = [
    *(grouped(heads, kv_heads, packed)
      for heads, kv_heads in ((8, 4), (4, 1), (6, 6)) for packed in (False, True)),
    grouped(8, 4, packed=True, past=0),
    grouped(8, 4, packed=True, rotary=1),
    grouped(8, 4, packed=False, rotary=1),
    attention(4, 8, 4),
    attention(4, 6, 6, mask=(3, 3)),
    attention(4, 8, 4, mask=(2, 8, 3, 3)),
    attention(3, 8, 4),
    attention(3, 4, 1, mask=(2, 1, 3, 3)),
    attention(3, 8, 4, mask=(1, 8, 3, 5), past=2),
    attention(4, 8, 4, mask=(3, 5), past=2),
    replace(attention(4, 8, 4), attributes={"is_causal": 1}),
    rotary((2, 5, 3, 4), ""),
    rotary((2, 3, 20), "", num_heads=5),
    rotary((2, 5, 3, 4), MICROSOFT),
    rotary((2, 3, 20), MICROSOFT, num_heads=5, interleaved=1),
    rotary((2, 3, 20), MICROSOFT),
]  # fmt: skip

CASES: list[Case] = [
    *(*ELEMENTWISE, *CONTRACTIONS, *NORMS, *SHAPES, *ATTENTION),
    *(*NETS, *EXPERTS, *OTHERS, *QUANT),
]
