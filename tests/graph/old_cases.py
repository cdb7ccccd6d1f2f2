"""Nodes of old opsets, one case per form that has changed since, and models around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OldCase:
    """One node of an old opset."""

    op: str
    opset: int
    operands: Sequence[Array]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    results: int = 1
    unused: int = 0
    """Results beyond those of the model."""

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, a.shape)) or "1" for a in self.operands)
        attributes = [f"{k}={v}" for k, v in self.attributes.items() if not hasattr(v, "node")]
        return f"{self.op}-{self.opset}-{shapes}-{'-'.join(attributes)}"

    @property
    def inputs(self) -> dict[str, Array]:
        """Operands by name."""
        return {f"x{i}": array for i, array in enumerate(self.operands)}

    @property
    def given(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs for the operands."""
        return [_info(name, array) for name, array in self.inputs.items()]

    def node(self, first: str = "x0") -> onnx.NodeProto:
        """The node; operand 0 by another name where one is given."""
        operands = [first, *list(self.inputs)[1:]]
        operands = ["", *operands] if self.op == "Scan" else operands
        names = [f"y{i}" for i in range(self.results + self.unused)]
        return helper.make_node(self.op, operands, names, name="old", **self.attributes)

    @property
    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Graph outputs of a type that runtimes infer."""
        return [helper.make_empty_tensor_value_info(f"y{i}") for i in range(self.results)]


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, dtype, array.shape)


def _model(case: OldCase, nodes: list[onnx.NodeProto], *more: onnx.ValueInfoProto) -> bytes:
    graph = helper.make_graph(nodes, "old", [*case.given, *more], case.outputs)
    imports = [helper.make_opsetid("", case.opset), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=4).SerializeToString())


def plain(case: OldCase) -> bytes:
    """The node alone."""
    return _model(case, [case.node()])


def in_if(case: OldCase) -> bytes:
    """The node in both branches of an If, its operands from outside."""
    branches = {}
    for branch in ("then_branch", "else_branch"):
        body = helper.make_graph([case.node()], branch, [], case.outputs)
        for i, output in enumerate(body.output):
            output.name = body.node[0].output[i] = f"{branch}_y{i}"
        branches[branch] = body
    node = helper.make_node("If", ["flag"], [f"y{i}" for i in range(case.results)], **branches)
    return _model(case, [node], helper.make_tensor_value_info("flag", TensorProto.BOOL, []))


def in_loop(case: OldCase) -> bytes:
    """The node in the body of a Loop, its results stacked."""
    given = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        *(helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "state")),
    ]
    inner = case.node()
    results = [helper.make_empty_tensor_value_info(f"inner_{o.name}") for o in case.outputs]
    for i, result in enumerate(results):
        inner.output[i] = result.name
    kept = [helper.make_node("Identity", [name], [f"{name}_kept"]) for name in ("on", "state")]
    flags = [helper.make_tensor_value_info(n.output[0], TensorProto.BOOL, []) for n in kept]
    body = helper.make_graph([*kept, inner], "body", given, [*flags, *results])
    names = ["end", *(o.name for o in case.outputs)]
    node = helper.make_node("Loop", ["count", "", "flag"], names, body=body)
    more = [
        helper.make_tensor_value_info("count", TensorProto.INT64, []),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    return _model(case, [node], *more)


def behind_foreign(case: OldCase) -> bytes:
    """The node behind one of com.microsoft, of whose result ONNX knows nothing."""
    before = helper.make_node("Gelu", ["x0"], ["before"], domain="com.microsoft")
    return _model(case, [before, case.node("before")])


AROUND: dict[str, Callable[[OldCase], bytes]] = {
    "plain": plain,
    "If": in_if,
    "Loop": in_loop,
    "com.microsoft": behind_foreign,
}
MORE_INPUTS: dict[str, Array] = {"flag": np.array(True), "count": np.array(2)}


def floats(*shape: int) -> Array:
    """f32[shape] of both signs."""
    random = np.random.default_rng(list(shape))
    return np.asarray(random.standard_normal(shape), np.float32)


def _scan_body() -> onnx.GraphProto:
    text = "body (float[2] sum, float[2] x) => (float[2] next, float[2] y) "
    return onnx.parser.parse_graph(text + "{ next = Add(sum, x)  y = Mul(next, x) }")


X, IMAGE = floats(2, 3, 4), floats(2, 3, 4, 5)
PER_CHANNEL = [floats(3), floats(3), floats(3), np.abs(floats(3)) + 1]
PER_ELEMENT = [floats(3, 4), floats(3, 4), floats(3, 4), np.abs(floats(3, 4)) + 1]
EMPTY = np.array([], np.float32)
LIMITS = np.array([-np.inf, -3, -0.5, 0.5, 3, np.inf], np.float32)


def _numbers(*scales: float) -> Array:
    return np.array(scales, np.float32)


CASES = [
    *(OldCase(op, v, [X]) for op in ("Softmax", "LogSoftmax", "Hardmax") for v in (7, 11, 12)),
    *(OldCase("Softmax", 7, [X], {"axis": axis}) for axis in (0, 2)),
    *(OldCase("Softmax", 11, [X], {"axis": axis}) for axis in (-1, -2)),
    OldCase("Softmax", 9, [floats(2, 5, 1, 1)]),
    OldCase("Softmax", 9, [floats(2, 5)]),
    OldCase("Squeeze", 11, [floats(2, 1, 3, 1)], {"axes": [1]}),
    OldCase("Squeeze", 11, [floats(2, 1, 3, 1)]),
    OldCase("Unsqueeze", 11, [X], {"axes": [0, -1]}),
    OldCase("ReduceSum", 11, [X], {"axes": [1], "keepdims": 0}),
    OldCase("ReduceSum", 7, [X]),
    OldCase("Split", 7, [X], {"axis": 1, "split": [1, 2]}, results=2),
    OldCase("Split", 11, [X], {"axis": -1}, results=2),
    OldCase("Slice", 7, [X], {"starts": [0, 1], "ends": [1, 2147483647]}),
    OldCase("Slice", 9, [X], {"axes": [2], "starts": [-3], "ends": [-1]}),
    OldCase("Clip", 7, [LIMITS], {"min": -1.0, "max": 2.0}),
    OldCase("Clip", 7, [LIMITS], {"min": 0.0}),
    OldCase("Clip", 7, [LIMITS]),
    OldCase("Pad", 7, [X], {"pads": [0, 1, 0, 1, 0, 2], "value": 3.0}),
    OldCase("Pad", 10, [X], {"pads": [0, 1, 0, 0, 0, 2], "mode": "reflect"}),
    OldCase("TopK", 7, [X], {"k": 2, "axis": 1}, results=2),
    OldCase("Reshape", 4, [X], {"shape": [2, -1]}),
    *(OldCase("BatchNormalization", v, [IMAGE, *PER_CHANNEL], unused=4) for v in (7, 9, 13)),
    OldCase("BatchNormalization", 7, [X, *PER_ELEMENT], {"spatial": 0, "epsilon": 0.5}),
    OldCase("Dropout", 7, [X], {"ratio": 0.3}),
    OldCase("Dropout", 7, [X], results=2),
    OldCase("Dropout", 10, [X], results=2),
    OldCase("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 1.5]}),
    OldCase("Upsample", 8, [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}),
    OldCase("Upsample", 9, [IMAGE, _numbers(1, 1, 2, 1.5)]),
    *(OldCase("Resize", 10, [IMAGE, _numbers(1, 1, *s)]) for s in ((2, 1.7), (0.6, 0.8), (0.6, 2))),
    OldCase("Resize", 10, [IMAGE, _numbers(1, 1, 0.6, 2)], {"mode": "linear"}),
    OldCase("Resize", 11, [IMAGE, EMPTY, EMPTY, np.array([2, 3, 5, 7])]),
    OldCase("Resize", 12, [IMAGE, EMPTY, _numbers(1, 1, 2, 2)], {"mode": "linear"}),
    OldCase(
        "Scan",
        8,
        [floats(3, 2), floats(3, 4, 2)],
        {"body": _scan_body(), "num_scan_inputs": 1, "directions": [1]},
        results=2,
    ),
    OldCase("Scatter", 9, [floats(3, 3), np.array([[1, 0, 2]]), floats(1, 3)], {"axis": 0}),
    OldCase("Affine", 7, [X], {"alpha": 2.0, "beta": 0.5}),
    OldCase("Scale", 7, [X], {"scale": 2.0}),
    OldCase("ImageScaler", 9, [floats(1, 3, 4, 5)], {"scale": 2.0, "bias": [1.0, 2.0, 3.0]}),
    OldCase("ParametricSoftplus", 7, [X], {"alpha": 2.0, "beta": 0.5}),
    OldCase("ScaledTanh", 7, [X], {"alpha": 2.0, "beta": 0.5}),
    OldCase("Crop", 7, [IMAGE], {"border": [1, 0, 2, 1]}),
    OldCase("Crop", 7, [IMAGE], {"border": [1, 0, 2, 1], "scale": [2, 3]}),
    OldCase("DynamicSlice", 7, [X, np.array([0]), np.array([1]), np.array([2])]),
    *(
        OldCase(
            "MeanVarianceNormalization", 8, [IMAGE], {"across_channels": a, "normalize_variance": n}
        )
        for a in (0, 1)
        for n in (0, 1)
    ),
]
"""Forms that have a row of their own, which ONNX Runtime runs as given."""
