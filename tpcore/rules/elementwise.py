"""Ops that treat every element alike."""

from __future__ import annotations

from graph.shape_rules import broadcast
from graph.shapes import Context
from tpcore.rule import Rule
from tpcore.rules.spec import ALL, OpSpec, broadcast_text, make, names, ones_as_1

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor
Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Not Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu""".split()
LINEAR_UNARY = ["Identity", "Neg"]
NARY = """And BitwiseAnd BitwiseOr BitwiseXor BitShift Equal Greater GreaterOrEqual Less LessOrEqual
Max Min Mod Or Pow PRelu Xor""".split()
MICROSOFT = ["BiasGelu", "FastGelu", "Gelu", "QuickGelu", "ScaledSiLU"]


def elementwise(c: Context) -> Rule:
    """`d0 d1, 1 d1 -> d0 d1`: all dims of the result, 1 where an operand is broadcast along it."""
    shapes = [None if v is None else c.shapes.dims[v] for v in c.node.inputs]
    out = broadcast([dims for dims in shapes if dims is not None])
    labels = names(len(out))
    operands = ["-" if dims is None else broadcast_text(labels, dims) for dims in shapes]
    return make(f"{', '.join(operands)} -> {ones_as_1(labels, out)}")


def clip(c: Context) -> Rule:
    """`d0 d1, *, * -> d0 d1`: the bounds are scalars."""
    labels = names(len(c.dims(0)))
    rest = ", *" * (len(c.node.inputs) - 1)
    return make(f"{' '.join(labels)}{rest} -> {' '.join(labels)}")


ELEMENTWISE_OPS: dict[tuple[str, str], OpSpec] = {
    **{("", op): OpSpec(elementwise) for op in [*UNARY, *NARY]},
    **{("", op): OpSpec(elementwise, linear=((0,),)) for op in LINEAR_UNARY},
    **{("com.microsoft", op): OpSpec(elementwise) for op in MICROSOFT},
    ("", "Add"): OpSpec(elementwise, linear=((0, 1),)),
    ("", "Sub"): OpSpec(elementwise, linear=((0, 1),)),
    ("", "Sum"): OpSpec(elementwise, linear=(ALL,)),
    ("", "Mul"): OpSpec(elementwise, linear=((0,), (1,))),
    ("", "Div"): OpSpec(elementwise, linear=((0,),)),
    ("", "Where"): OpSpec(elementwise, linear=((1, 2),)),
    ("", "Clip"): OpSpec(clip),
}
