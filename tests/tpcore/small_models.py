"""Two models small enough that the text after every step can be read: an MLP and a decoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tests.graph.small import Array, small_model, weight

MLP = """(float[batch, 8] x) => (float[batch, 8] y) {
    [up] h = Gemm (x, w1, b1)
    [act] a = Relu (h)
    [down] y = Gemm (a, w2, b2)
}"""

DECODER = """(int64[batch, seq] ids) => (float[batch, seq, 32] logits) {
    [embed] x = Gather (table, ids)
    [norm1] n1 = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (x, g1)
    [qkv] packed = MatMul (n1, w_qkv)
    [unpack] q, k, v = Split <axis = -1> (packed, sizes)
    [q_heads] q4 = Reshape (q, heads)
    [q_turn] qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    [k_heads] k4 = Reshape (k, heads)
    [k_turn] kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    [v_heads] v4 = Reshape (v, heads)
    [v_turn] vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    [score] s = MatMul (qt, kt)
    [scale] t = Mul (s, half)
    [weigh] p = Softmax <axis = -1> (t)
    [mix] m = MatMul (p, vt)
    [turn_back] mt = Transpose <perm = [0, 2, 1, 3]> (m)
    [merge] c = Reshape (mt, merged)
    [out] o = MatMul (c, w_o)
    [residual1] r1 = Add (x, o)
    [norm2] n2 = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (r1, g2)
    [gate] gate = MatMul (n2, w_gate)
    [up] up = MatMul (n2, w_up)
    [silu] sig = Sigmoid (gate)
    [swish] act = Mul (gate, sig)
    [glu] u = Mul (act, up)
    [down] d = MatMul (u, w_down)
    [residual2] r2 = Add (r1, d)
    [head] logits = MatMul (r2, w_head)
}"""


def mlp() -> ir.Model:
    """Two biased layers, 8 -> 16 -> 8."""
    return _named("mlp", MLP, w1=weight(8, 16), b1=weight(16), w2=weight(16, 8), b2=weight(8))


def decoder() -> ir.Model:
    """A decoder of one layer: packed q, k and v of 4 heads of 4, gated MLP of 24, 32 words."""
    return _named(
        "decoder",
        DECODER,
        table=weight(32, 16),
        g1=np.abs(weight(16)) + 0.5,
        w_qkv=weight(16, 48) / 4,
        sizes=_ints(16, 16, 16),
        heads=_ints(0, 0, 4, 4),
        half=np.array(0.5, np.float32),
        merged=_ints(0, 0, 16),
        w_o=weight(16, 16) / 4,
        g2=np.abs(weight(16)) + 0.5,
        w_gate=weight(16, 24) / 4,
        w_up=weight(16, 24, seed=1) / 4,
        w_down=weight(24, 16) / 4,
        w_head=weight(16, 32),
    )


def _named(name: str, text: str, **weights: Array) -> ir.Model:
    model = small_model(text, **weights)
    model.graph.name = name
    return model


def _ints(*entries: int) -> Array:
    return np.array(entries, np.int64)


SMALL: dict[str, Callable[[], ir.Model]] = {"mlp": mlp, "decoder": decoder}
"""Makers by name."""
INPUTS: dict[str, dict[str, Array]] = {
    "mlp": {"x": weight(3, 8)},
    "decoder": {"ids": np.array([[3, 1, 4, 15, 9], [26, 5, 31, 0, 7]])},
}
