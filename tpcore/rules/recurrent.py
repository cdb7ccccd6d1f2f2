"""Recurrent networks: split by batch, or by direction where there are two.

What is inside a direction stays whole: every step needs all of the state that the last one made.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from graph.shapes import Context
from tpcore.localizers import LocalNode
from tpcore.rule import Rule
from tpcore.rules.spec import OpSpec, make

DIRECTIONS = ("forward", "reverse")


def recurrent(c: Context, states: int) -> Rule:
    """`s! b i!, d g! i, d g h!, d w!, b, d b h, d b h, d p! -> s d b h, d b h, d b h`."""
    # Which direction a parameter belongs to depends on what all activations take.
    has_parameters = c.attribute("activation_alpha") or c.attribute("activation_beta")
    d = "d!" if has_parameters else "d"
    first, state, out = f"s! b i!, {d} g! i", f"{d} b h!", "s d b h"
    if c.attribute("layout", 0):
        first, state, out = f"b s! i!, {d} g! i", f"b {d} h!", "b s d h"
    texts = [*first.split(", "), "d g h!", "d w!", "b", *[state] * states, "d p!"]
    given = [t if c.operand(i) is not None else "-" for i, t in enumerate(texts)]
    results = [out, *[state] * states][: len(c.node.outputs)]
    return make(f"{', '.join(given[: len(c.node.inputs)])} -> {', '.join(results)}")


def one_direction(x: LocalNode) -> None:
    """Let a rank that holds one of two directions run that one."""
    held = x.held(x.source.inputs[1]).split_of(0)
    if held is None or held.layout is None:
        return
    (number,) = held.layout.indices(x.rank)
    x.node.attributes["direction"] = ir.AttrString("direction", DIRECTIONS[number])
    if "activations" in x.node.attributes:
        names = x.node.attributes["activations"].as_strings()
        half = len(names) // 2
        own = names[number * half : (number + 1) * half]
        x.node.attributes["activations"] = ir.AttrStrings("activations", own)


def _spec(states: int) -> OpSpec:
    rule = partial(recurrent, states=states)
    return OpSpec(rule, localize=one_direction, looks_at_results=False)


RECURRENT_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "RNN"): _spec(1),
    ("", "GRU"): _spec(1),
    ("", "LSTM"): _spec(2),
}
