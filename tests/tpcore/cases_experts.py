"""Rows of `validator_cases` for experts and recurrent mixers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tpcore.cases_nets import MICROSOFT, above, floats, ints, scales
from tpcore.trial import Array, Case


def experts(
    inner: int,
    *,
    count: int = 3,
    bias: bool = True,
    third: bool = False,
    batched: bool = False,
    router: Array | None = None,
    constants: tuple[int, ...] = (),
    **attributes: Any,
) -> Case:
    """MoE of `count` experts, six tokens of five features."""
    rows = 2 * inner if attributes.get("swiglu_fusion") else inner
    tokens = floats(2, 3, 5) if batched else floats(6, 5)
    logits = floats(6, count) if router is None else router
    given: list[Array | None] = [tokens, logits, floats(count, rows, 5)]
    given += [floats(count, rows) if bias else None, floats(count, 5, inner)]
    given += [floats(count, 5) if bias else None]
    given += [floats(count, inner, 5), floats(count, inner)] if third else []
    while given[-1] is None:
        given.pop()
    return Case("MoE", tuple(given), {"k": 2, **attributes}, MICROSOFT, constants=constants)


def quantised_experts(
    inner: int,
    *,
    count: int = 2,
    bits: int = 4,
    block: int = 0,
    points: str = "",
    router_weights: Array | None = None,
    **attributes: Any,
) -> Case:
    """QMoE of `count` experts, four tokens of 32 features; zero points are `packed` into the model,
    `computed` or none."""
    fused = 2 if attributes.get("swiglu_fusion") else 1
    rows, width = fused * inner, 32

    def codes(*shape: int) -> Array:
        return ints(0, 256, count, *shape[:-1], shape[-1] * bits // 8, dtype=np.uint8)

    def rates(length: int, inputs: int) -> Array:
        return above(0.1, count, length, inputs // block) if block else above(0.1, count, length)

    given: list[Array | None] = [floats(4, width), floats(4, count)]
    given += [codes(rows, width), rates(rows, width), floats(count, rows)]
    given += [codes(width, inner), rates(width, inner), floats(count, width)]
    zeros: list[Array | None] = [None, None, None]
    if points and block:
        room = -(inner // block) % (8 // bits)  # rows fill whole bytes
        zeros = [codes(rows, width // block), codes(width, inner // block + room), None]
    elif points:
        zeros = [codes(rows), codes(width), None]
    given += [None, None, None, *zeros, router_weights]
    while given[-1] is None:
        given.pop()
    return Case(
        "QMoE",
        tuple(given),
        {"k": 1, "expert_weight_bits": bits, "block_size": block, **attributes},
        MICROSOFT,
        constants=(11, 12) if points == "packed" else (),
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


EQUAL = np.zeros((6, 5), np.float32)
"""Logits of tokens to which all experts are alike."""
GIVEN = scales(*(0.9, 0, 0.2, 0.4, 0.1), *(0, 0, 0, 0, 0), *(-1, 2, 1, 3, 0.5), *[1] * 5)
GIVEN = GIVEN.reshape(4, 5)
"""Weights of experts, some of them zero or below."""
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
    experts(8, swiglu_fusion=1, **{**SWIGLU, "swiglu_limit": 0.3}),
    experts(8, swiglu_fusion=1, swiglu_limit_after_activation=1, **{**SWIGLU, "swiglu_limit": 0.3}),
    experts(8, swiglu_fusion=2, **SWIGLU),
    experts(8, third=True, activation_type="silu"),
    experts(4, bias=False, constants=(1,)),
    experts(6, count=5, k=3),
    experts(6, count=5, k=4, normalize_routing_weights=1, batched=True, swiglu_fusion=1, **SWIGLU),
    experts(6, count=5, router=EQUAL),
    experts(6, count=5, router=100 * floats(6, 5), k=1),
    quantised_experts(32),
    quantised_experts(48, block=16, swiglu_fusion=1, **SWIGLU),
    quantised_experts(64, block=16, points="computed", swiglu_fusion=1, **SWIGLU),
    quantised_experts(48, block=16, points="packed", swiglu_fusion=1, **SWIGLU),
    quantised_experts(48, bits=8, block=16, points="packed"),
    quantised_experts(16, count=5, block=16, k=3),
    quantised_experts(16, count=5, points="computed", k=2),
    quantised_experts(16, count=5, k=2, router_weights=GIVEN, normalize_routing_weights=1),
    quantised_experts(32, count=5, k=3, block=16, router_weights=GIVEN),
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
