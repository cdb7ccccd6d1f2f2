"""The matrix product."""

from __future__ import annotations

from graph.shape_rules import broadcast
from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.spec import OpSpec, broadcast_text, make, names, ones_as_1


def matmul(c: Context) -> Rule:
    """`b m k+, b k n -> b m n`, the batch dims broadcast."""
    a, b = c.dims(0), c.dims(1)
    batch = broadcast([a[:-2], b[:-2]])
    labels = names(len(batch), "b")
    left = [broadcast_text(labels, a[:-2]), "m" if len(a) > 1 else "", "k+"]
    right = [broadcast_text(labels, b[:-2]), "k", "n" if len(b) > 1 else ""]
    out = [ones_as_1(labels, batch), "m" if len(a) > 1 else "", "n" if len(b) > 1 else ""]
    return make(" ".join(left) + ", " + " ".join(right) + " -> " + " ".join(out))


MATMUL_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "MatMul"): OpSpec(matmul, linear=((0,), (1,))),
}
