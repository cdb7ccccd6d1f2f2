"""Contractions: matrix product and convolution."""

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


def conv(c: Context) -> Rule:
    """`b c+ x!, o c k! -> b o y!`; with groups `b (g c) x!, (g o) c! k! -> b (g o) y!`."""
    weight = c.dims(1)
    window = len(weight) - 2
    groups = c.attribute("group", 1)
    channels, out, kernel = ("c+", "o", "c") if groups == 1 else ("(g c!)", "(g o)", "c!")
    x, k, y = (" ".join(f"{name}{i}!" for i in range(window)) for name in "xky")
    bias = f", {out}" if c.operand(2) is not None else ""
    sizes = {} if groups == 1 else {"g": groups, "c": weight[1], "o": weight[0] // groups}
    return make(f"b {channels} {x}, {out} {kernel} {k}{bias} -> b {out} {y}", sizes)


MATMUL_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "MatMul"): OpSpec(matmul, linear=((0,), (1,))),
    ("", "Conv"): OpSpec(conv, linear=((0,), (1,)), addends=(2,), attributes={"group": "g"}),
}
