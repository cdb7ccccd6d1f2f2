"""ONNX's own node tests as models a user could have: a file, its inputs, what should come out."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from graph.random_ops import RANDOM_OPS
from graph.reader import MAX_OPSET
from tpcore.strategies import LOOKUPS

Array = np.ndarray[Any, Any]

SMALL = 64
"""Integer operands of up to this many elements are constants, as shapes and axes are in models."""


@dataclass(frozen=True)
class NodeCase:
    """One node test, or the same with some of its inputs as weights."""

    name: str
    model: onnx.ModelProto
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    """Outputs that ONNX states for these inputs."""

    @property
    def ops(self) -> set[str]:
        """Op types of all nodes, those of bodies included."""
        return {node.op_type for node in nodes_of(self.model.graph)}

    @property
    def may_draw(self) -> bool:
        """Whether a node may draw random numbers."""
        return not self.ops.isdisjoint(RANDOM_OPS)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from nodes_of(body)


@cache
def node_cases() -> tuple[dict[str, NodeCase], Counter[str]]:
    """All node tests that can be tried, by name, and how many there are of the others, by kind."""
    cases: dict[str, NodeCase] = {}
    others: Counter[str] = Counter()
    with warnings.catch_warnings(action="ignore"):  # onnx computes what it states, NaNs included
        tests = collect_testcases(None)
    for test in tests:
        if test.model is None:
            continue
        opsets = {o.domain: o.version for o in test.model.opset_import}
        case = _dense(test)
        if opsets.get("", 0) > MAX_OPSET:
            others["too new"] += 1
        elif case is None:
            others["not dense"] += 1
        else:
            cases[case.name] = case
    return cases, others


def _dense(test: Any) -> NodeCase | None:
    """The test, or None where an input or output is no dense tensor of numbers or truth values."""
    given, wanted = test.data_sets[0]
    inputs = _arrays(test.model.graph.input, given)
    outputs = _arrays(test.model.graph.output, wanted)
    if inputs is None or outputs is None:
        return None
    return NodeCase(test.name, test.model, inputs, outputs)


def _arrays(infos: Any, values: Any) -> dict[str, Array] | None:
    found: dict[str, Array] = {}
    for info, value in zip(infos, values, strict=True):
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        dense = info.type.HasField("tensor_type") and isinstance(array, np.ndarray | np.generic)
        if not dense or info.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            return None
        found[info.name] = np.asarray(array)
    return found


def with_weights(case: NodeCase, ranks: int) -> NodeCase:
    """The same with weights and constants, as exporters write them.

    The first input stays one, unless it is the table that rows are looked up in; other floats and
    small integers become initializers. A matrix with fewer entries each way than there are ranks
    does not: a model whose weights are all so small is refused.
    """
    looked_up = case.model.graph.node[0].op_type in LOOKUPS
    names = [
        name
        for position, (name, array) in enumerate(case.inputs.items())
        if (position == 0 if looked_up else position > 0 and _is_constant(array))
        if array.ndim < 2 or max(array.shape) >= ranks
    ]
    if not names:
        return case
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for info in [info for info in model.graph.input if info.name in names]:
        model.graph.input.remove(info)
    for name in names:
        model.graph.initializer.append(numpy_helper.from_array(case.inputs[name], name))
    inputs = {name: array for name, array in case.inputs.items() if name not in names}
    return replace(case, model=model, inputs=inputs)


def _is_constant(array: Array) -> bool:
    return array.dtype.kind not in "iub" or array.size <= SMALL
