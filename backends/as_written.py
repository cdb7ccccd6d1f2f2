"""A model without what lets a kernel round where the op's definition does not."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

HINT = "accuracy_level"
"""Attribute of products with quantised weights: activations may be rounded to so many bits."""


def drop_rounding(model: onnx.ModelProto) -> None:
    """Remove the hint from all nodes, those of functions, If, Loop and Scan included."""
    for part in (model.graph, *model.functions):
        _drop_hint(part.node)


def _drop_hint(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        kept = [attribute for attribute in node.attribute if attribute.name != HINT]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
        for attribute in node.attribute:
            _drop_hint(attribute.g.node)
