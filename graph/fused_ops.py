"""Write ops that ONNX Runtime's optimizer has fused as the ops that they stand for.

Each part can be split by itself: a table of an embedding by rows or features, the contraction of a
convolution before its activation. What ONNX Runtime gains by fusing it gains in a rank's graph too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

MICROSOFT = "com.microsoft"
EMBEDDING_EPSILON = 1e-12
"""Where the attribute is left out."""
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
"""Activation of a FusedConv -> the attributes that its parameters are."""
OWN_OF_FUSED_CONV = ("activation", "activation_params")


def expand_fused(graph: ir.Graph) -> None:
    """Rewrite every fused op that has a form here."""
    for node in list(graph):
        form = FORMS.get(node.op_type) if node.domain == MICROSOFT else None
        if form is not None:
            form(_Fused(graph, node))


@dataclass
class _Fused:
    """A fused node and the nodes that take its place."""

    graph: ir.Graph
    node: ir.Node
    made: list[ir.Node] = field(default_factory=list)

    def operands(self, count: int) -> list[ir.Value | None]:
        """The first operands, None where one is left out."""
        given = list(self.node.inputs)
        return [*given, *[None] * (count - len(given))]

    def attribute(self, name: str, default: Any) -> Any:
        """Value of an attribute, or `default`."""
        given = self.node.attributes.get(name)
        return default if given is None else given.value

    def emit(self, op_type: str, *operands: ir.Value | None, **attributes: Any) -> ir.Value:
        """Result of a new node."""
        label = f"{self.node.name or self.node.outputs[0].name}/{op_type}_{len(self.made)}"
        node = ir.node(op_type, operands, attributes, name=label)
        node.outputs[0].name = f"{label}_out"
        self.made.append(node)
        return node.outputs[0]

    def replace(self, results: list[ir.Value]) -> None:
        """Put the new nodes in the node's place."""
        old = self.node.outputs
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], self.made, old, results[: len(old)]
        )


def _embedding(x: _Fused) -> None:
    """LayerNorm of words[ids] + places[position_ids] + segments[segment_ids]; the sum as well."""
    ids, segment_ids, words, places, segments, gamma, beta, mask, position_ids = x.operands(9)
    at = _counted(x, ids) if position_ids is None else position_ids
    total = x.emit("Gather", words, ids, axis=0)
    total = x.emit("Add", total, x.emit("Gather", places, at, axis=0))
    if segments is not None and segment_ids is not None:
        total = x.emit("Add", total, x.emit("Gather", segments, segment_ids, axis=0))
    epsilon = x.attribute("epsilon", EMBEDDING_EPSILON)
    result = x.emit("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    x.replace([result, _ones_per_row(x, ids, mask), total])


def _counted(x: _Fused, ids: ir.Value | None) -> ir.Value:
    """0, 1, … up to the length of a sequence."""
    zero, one = (x.emit("Constant", value_int=number) for number in (0, 1))
    length = x.emit("Gather", x.emit("Shape", ids), one, axis=0)
    return x.emit("Range", zero, length, one)


def _ones_per_row(x: _Fused, ids: ir.Value | None, mask: ir.Value | None) -> ir.Value:
    """How many entries of each row of the mask are one; none where there is no mask."""
    mask = mask if mask is not None else x.emit("Sub", ids, ids)
    one = x.emit("CastLike", x.emit("Constant", value_int=1), mask)
    is_one = x.emit("Cast", x.emit("Equal", mask, one), to=ir.DataType.INT32)
    return x.emit("ReduceSum", is_one, x.emit("Constant", value_ints=[1]), keepdims=0)


def _conv(x: _Fused) -> None:
    """activation(Conv(x, weight, bias) + z)."""
    image, weight, bias, addend = x.operands(4)
    attributes = x.node.attributes
    activation, parameters = x.attribute("activation", ""), x.attribute("activation_params", [])
    if activation not in ("", "Clip", *ACTIVATIONS):
        return
    kept = {name: a for name, a in attributes.items() if name not in OWN_OF_FUSED_CONV}
    result = x.emit("Conv", image, weight, bias, **kept)
    if addend is not None:
        result = x.emit("Add", result, addend)
    if activation == "Clip":
        bounds = [x.emit("Constant", value_float=bound) for bound in parameters]
        result = x.emit("Clip", result, *(x.emit("CastLike", b, result) for b in bounds))
    elif activation:
        named = dict(zip(ACTIVATIONS[activation], parameters))
        result = x.emit(activation, result, **named)
    x.replace([result])


FORMS: dict[str, Callable[[_Fused], None]] = {
    "EmbedLayerNormalization": _embedding,
    "FusedConv": _conv,
}
