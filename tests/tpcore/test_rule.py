"""The notation of rules: one test per message, and the text of the rules of typical nodes."""

from __future__ import annotations

import pytest

from graph.infer import infer_shapes
from graph.shapes import Context
from tests.tpcore.validator_cases import attention, const, floats, grouped, ints, rotary
from tpcore.ops import OPS
from tpcore.rule import RuleSyntaxError, factors_of, parse
from tpcore.trial import Case, build_model

# --- notation -------------------------------------------------------------------------------------


def test_operands_and_results_are_lists_of_dims() -> None:
    rule = parse("m k+, k n -> m n")
    assert rule.operands == ((((("m",),), (("k",),))), ((("k",),), (("n",),)))
    assert rule.results == (((("m",),), (("n",),)),)
    assert set(rule.sums) == {"k"} and not rule.whole
    assert str(rule) == "m k+, k n -> m n"


def test_compound_and_packed_dims() -> None:
    rule = parse("b (h g e!|h e) -> b h g e; h=4 g=2 e=8")
    assert rule.operands[0] == ((("b",),), (("h", "g", "e"), ("h", "e")))
    assert set(rule.whole) == {"e"}
    assert rule.sizes == {"h": 4, "g": 2, "e": 8}
    assert factors_of(rule.operands[0]) == {"b", "h", "g", "e"}


def test_dims_of_size_one_hold_no_factor() -> None:
    assert parse("a 1 -> a (1)").results == (((("a",),), ((),)),)


def test_operands_that_are_whole_or_left_out() -> None:
    assert parse("a, *, - -> a").operands[1:] == (None, None)


def test_an_operand_without_dims() -> None:
    assert parse("a, -> a").operands[1] == ()


def test_a_dropped_segment_needs_no_mark() -> None:
    assert parse("(x|y) -> y").operands == (((("x",), ("y",)),),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m k, k n", "rule 'm k, k n' has no '->' between operands and results."),
        ("a -> a; a", "rule 'a -> a; a': 'a' is no factor=size."),
        ("a -> a; a=x", "rule 'a -> a; a=x': 'a=x' is no factor=size."),
        ("(a b -> a b", "rule '(a b -> a b': unbalanced parentheses in '(a b'."),
        ("a b) -> a b", "rule 'a b) -> a b': unbalanced parentheses in 'a b)'."),
        ("a? -> a", "rule 'a? -> a': 'a?' is no factor name with an optional + or !."),
        ("2 -> 2", "rule '2 -> 2': '2' is no factor name with an optional + or !."),
        ("a+ b -> a b", "rule 'a+ b -> a b': reduction factor 'a' occurs in a result."),
        ("a+! -> 1", "rule 'a+! -> 1': 'a+!' is no factor name with an optional + or !."),
        ("a+, a! -> 1", "rule 'a+, a! -> 1': factor 'a' is marked + and !."),
        (
            "m k, k n -> m n",
            "rule 'm k, k n -> m n': factor 'k' occurs in no result. Mark it + or !.",
        ),
    ],
)
def test_malformed_rule(text: str, message: str) -> None:
    with pytest.raises(RuleSyntaxError) as caught:
        parse(text)
    assert str(caught.value) == message


# --- rules of nodes -------------------------------------------------------------------------------


def rule_text(case: Case) -> str | None:
    """The text of the rule of a case's node, None where it has none."""
    model = build_model(case)
    context = Context(model.graph[0], infer_shapes(model))
    rule = OPS[case.domain, case.op_type].rule_of(context)
    return None if rule is None else str(rule)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (Case("Relu", (floats(4, 6),)), "d0 d1 -> d0 d1"),
        (Case("Add", (floats(4, 1, 6), floats(5, 1))), "d0 1 d2, d1 1 -> d0 d1 d2"),
        (Case("Mul", (floats(4, 6), floats())), "d0 d1, -> d0 d1"),
        (Case("Clip", (floats(4, 6), None, floats())), "d0 d1, *, * -> d0 d1"),
        (Case("MatMul", (floats(4, 6), floats(6, 8))), "m k+, k n -> m n"),
        (Case("MatMul", (floats(6), floats(6))), "k+, k ->"),
        (Case("MatMul", (floats(2, 3, 4, 6), floats(6, 8))), "b0 b1 m k+, k n -> b0 b1 m n"),
        (Case("MatMul", (floats(2, 1, 4, 6), floats(3, 6, 8))), "b0 1 m k+, b1 k n -> b0 b1 m n"),
        (
            Case("Conv", (floats(1, 4, 8, 8), floats(6, 4, 3, 3), floats(6))),
            "b c+ x0! x1!, o c k0! k1!, o -> b o y0! y1!",
        ),
        (
            Case("Conv", (floats(1, 4, 8), floats(6, 2, 3)), {"group": 2}),
            "b (g c!) x0!, (g o) c! k0! -> b (g o) y0!",
        ),
        (Case("Softmax", (floats(2, 4, 6),)), "d0 d1 d2! -> d0 d1 d2"),
        (
            Case("LayerNormalization", (floats(2, 4, 6), floats(6), floats(6)), outputs=3),
            "d0 d1 d2!, *, * -> d0 d1 d2, d0 d1 1, d0 d1 1",
        ),
        (
            Case("ReduceSum", (floats(2, 4, 6), const(1)), {"keepdims": 0}, constants=(1,)),
            "d0 d1+ d2, * -> d0 d2",
        ),
        (Case("ReduceMean", (floats(2, 4), const(1)), constants=(1,)), "d0 d1!, * -> d0 1"),
        (Case("Transpose", (floats(2, 4, 6),), {"perm": [2, 0, 1]}), "d0 d1 d2 -> d2 d0 d1"),
        (
            Case("Reshape", (floats(2, 5, 24), const(2, 5, 6, 4)), constants=(1,)),
            "(f0) (f1) (f2 f3), * -> (f0) (f1) (f2) (f3)",
        ),
        (
            Case("Reshape", (floats(4, 6), const(6, 4)), constants=(1,)),
            "(x00!) (x01!), * -> (x10!) (x11!)",
        ),
        (
            Case("Reshape", (floats(2, 3, 8), const(0, -1, 2)), constants=(1,),
                 symbols={0: ("batch", "seq", 8)}),
            "(f0) (f1) (f2 f3), * -> (f0) (f1 f2) (f3)",
        ),
        (
            Case("Expand", (floats(2, 1, 6), const(4, 2, 5, 6)), constants=(1,)),
            "d1 1 d3, * -> d0 d1 d2 d3",
        ),
        (
            Case("Slice", (floats(5, 8), const(2), const(6), const(1)), constants=(1, 2, 3)),
            "d0 (x1|y1|z1), *, *, * -> d0 y1",
        ),
        (
            Case("Slice", (floats(5, 8), const(1), const(8), const(1), const(2)),
                 constants=(1, 2, 3, 4)),
            "d0 (y1 s1!), *, *, *, * -> d0 y1",
        ),
        (
            Case("Split", (floats(5, 12), const(4, 4, 4)), {"axis": 1}, outputs=3, constants=(1,)),
            "d0 (x0|x1|x2), * -> d0 x0, d0 x1, d0 x2",
        ),
        (
            Case("Concat", (floats(5, 6), floats(5, 4)), {"axis": -1}),
            "d0 x0, d0 x1 -> d0 (x0|x1)",
        ),
        (Case("Gather", (floats(9, 6), ints(0, 9, 2, 3))), "d0+ d1, i0 i1 -> i0 i1 d1"),
        (Case("Shape", (floats(2, 4),)), "d0 d1 -> *"),
        (
            grouped(8, 4, packed=True),
            "b s! (h g e!|h e|h e), -, -, b h p! e, b h p e, b, * -> "
            "b s (h g e), b h t2! e, b h t2 e",
        ),
        (
            attention(3, 8, 4, mask=(2, 1, 3, 3)),
            "b s (h g e!), b t! (h e), b t (h f!), b 1 s keys! -> b s (h g f)",
        ),
        (rotary((2, 5, 3, 4), ""), "b h s e!, b s c!, b s c! -> b h s e"),
        (rotary((2, 3, 20), "com.microsoft"), "b s (h e!), b s, *, * -> b s (h e)"),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
def test_rule_of_node(case: Case, text: str) -> None:
    assert rule_text(case) == text


def test_a_node_whose_axes_are_no_constant_has_no_rule() -> None:
    assert rule_text(Case("ReduceSum", (floats(2, 4), const(1)))) is None


def test_heads_whose_size_is_not_known_have_no_rule() -> None:
    case = attention(3, 8, 4)
    symbols = {i: ("batch", "seq", f"width{i}") for i in range(3)}
    assert rule_text(Case("Attention", case.operands, case.attributes, symbols=symbols)) is None
