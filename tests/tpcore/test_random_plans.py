"""Plans nobody would choose are right as well: any strategy for any node, any placement between.

The planner takes the cheapest plan, so a wrong strategy may stay unnoticed until a cost changes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph.errors import PlanError
from tests.graph.small import small_model, weight
from tests.tpcore.random_plans import randomised
from tests.tpcore.toys import (
    error_of,
    grouped_attention,
    mlp,
    packed_attention,
    planned,
    shapes_of,
)

TOLERANCE = 1e-4

MODELS: dict[str, ir.Model] = {
    "mlp": mlp(10, 7),
    "packed attention": packed_attention(),
    "grouped attention": grouped_attention(8, 4),
    "multi-query attention": grouped_attention(4, 1),
    "square weights": small_model(
        """(float[3, 8] x) => (float[3, 8] y) {
            h = MatMul(x, w) r = Add(x, h) a = Relu(r) p = MatMul(a, v) y = Add(r, p)
        }""",
        w=weight(8, 8),
        v=weight(8, 8, seed=1),
    ),
    "gated": small_model(
        """(float[3, 8] x) => (float[3, 8] y) {
            h = MatMul(x, w) a, b = Split <axis = 1> (h, parts)
            s = Sigmoid(a) m = Mul(s, b) y = MatMul(m, v)
        }""",
        w=weight(8, 24),
        v=weight(12, 8),
        **shapes_of(parts=[12, 12]),
    ),
    "contracted concatenation": small_model(
        """(float[3, 8] x) => (float[3, 20] y) {
            h = MatMul(x, w) c = Concat <axis = 1> (h, x, h) y = MatMul(c, v)
        }""",
        w=weight(8, 8),
        v=weight(24, 20),
    ),
    "rotated halves": small_model(
        """(float[3, 8] x) => (float[3, 8] y) {
            h = MatMul(x, w) a = Slice(h, s0, e0, ax) b = Slice(h, s1, e1, ax)
            n = Neg(b) c = Concat <axis = 1> (n, a) y = MatMul(c, v)
        }""",
        w=weight(8, 12),
        v=weight(12, 8),
        **shapes_of(s0=[0], e0=[6], s1=[6], e1=[12], ax=[1]),
    ),
    "tied embedding": small_model(
        """(float[3, 8] x) => (float[3, 12] y) {
            h = MatMul(x, w) g = Gather(t, i) z = Add(h, g)
            n = Softmax <axis = 1> (z) tt = Transpose(t) y = MatMul(n, tt)
        }""",
        w=weight(8, 8),
        t=weight(12, 8),
        i=np.array([3, 0, 11]),
    ),
    "norm by hand": small_model(
        """(float[4, 8] x) => (float[4, 6] y) {
            h = MatMul(x, w) m = ReduceMean <keepdims = 1> (h, ax) d = Sub(h, m) q = Mul(d, d)
            s = ReduceSum <keepdims = 1> (q, ax) r = Sqrt(s) n = Div(d, r) y = MatMul(n, u)
        }""",
        w=weight(8, 12),
        u=weight(12, 6),
        **shapes_of(ax=[1]),
    ),
    "patches": small_model(
        """(float[2, 4, 6] x) => (float[2, 5, 12] y) {
            c = Conv(x, k, b) r = Reshape(c, s) t = Transpose <perm = [0, 2, 1]> (r)
            y = MatMul(t, u)
        }""",
        k=weight(8, 4, 2),
        b=weight(8),
        u=weight(8, 12),
        **shapes_of(s=[2, 8, 5]),
    ),
    "positions": small_model(
        """(float[2, 3, 8] x) => (float[2, 3, 8] y) {
            h = MatMul(x, w) e = Expand(pos, s) z = Add(h, e) q = Unsqueeze(z, ax)
            k = Squeeze(q) y = MatMul(k, v)
        }""",
        w=weight(8, 8),
        v=weight(8, 8, seed=2),
        pos=weight(3, 8),
        **shapes_of(s=[2, 3, 8], ax=[0]),
    ),
    "reshapes that cross": small_model(
        """(float[3, 8] x) => (float[3, 8] y) {
            h = MatMul(x, w) a = Reshape(h, s46) b = Relu(a) c = Reshape(b, s24)
            d = Reshape(h, s64) e = Abs(d) f = Reshape(e, s24) z = Add(c, f) y = MatMul(z, v)
        }""",
        w=weight(8, 24),
        v=weight(24, 8),
        **shapes_of(s46=[3, 4, 6], s64=[3, 6, 4], s24=[3, 24]),
    ),
    "packed borders that cross": small_model(
        """(float[3, 8] x) => (float[3, 8] y) {
            h = MatMul(x, w) a, b = Split <axis = 1> (h, uneven) c, d = Split <axis = 1> (h, even)
            e = Concat <axis = 1> (b, a) f = Concat <axis = 1> (d, c) z = Mul(e, f)
            y = MatMul(z, v)
        }""",
        w=weight(8, 24),
        v=weight(24, 8),
        **shapes_of(uneven=[8, 16], even=[12, 12]),
    ),
    "shape of a split value": small_model(
        """(float[2, 3, 8] x) => (float[2, 3, 8] y) {
            h = MatMul(x, w) s = Shape(h) r = Reshape(h, sp) t = Relu(r)
            f = Reshape(t, s) y = MatMul(f, v)
        }""",
        w=weight(8, 12),
        v=weight(12, 8),
        **shapes_of(sp=[2, 3, 3, 4]),
    ),
}


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("name", MODELS)
def test_random_plan(name: str, ranks: int) -> None:
    model = MODELS[name]
    for seed in range(3):
        try:
            plan = planned(model, ranks)
        except PlanError:
            pytest.skip(f"no weight of '{name}' has {ranks} parts")
        assert error_of(model, randomised(plan, seed)) < TOLERANCE, f"seed {seed}"
