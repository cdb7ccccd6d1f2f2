"""Small rank graphs, split by hand: what the partitioner would write for a two-layer MLP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graph.dialect import AllGather, AllReduce, Collective, make_node
from graph.layout import Layout

HIDDEN, INNER = 8, 12


def mlp_weights(dtype: object = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of `y = relu(x w1 + b1) w2 + b2`, then logits `y w3` (whole, to be split)."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (HIDDEN, INNER), "b1": (INNER,), "w2": (INNER, HIDDEN), "b2": (HIDDEN,)}
    shapes["w3"] = (HIDDEN, INNER)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}  # type: ignore[call-overload]


def mlp_reference(x: np.ndarray, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the whole MLP."""
    w = {name: array.astype(np.float32) for name, array in weights.items()}
    y = np.maximum(x.astype(np.float32) @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    return {"y": y, "logits": y @ w["w3"]}


def mlp_rank(rank: int, ranks: int, *, dtype: object = np.float32) -> ir.Model:
    """One rank's graph: colwise, rowwise, AllReduce, colwise, AllGather on uneven parts."""
    whole = mlp_weights(dtype)
    layout = Layout.even(INNER, ranks)
    held = layout.indices(rank)
    parts = {
        "w1": whole["w1"][:, held],
        "b1": whole["b1"][held],
        "w2": whole["w2"][held],
        "b2": whole["b2"],
        "w3": whole["w3"][:, held],
    }
    maker = Maker(dtype)
    x = maker.input("x", ("batch", HIDDEN))
    w = {name: maker.weight(name, array) for name, array in parts.items()}
    a = maker.op("Relu", maker.op("Add", maker.op("MatMul", x, w["w1"]), w["b1"]))
    p = maker.op("MatMul", a, w["w2"], name="partial")
    total = maker.collective(AllReduce("tp"), p, "AllReduce_0")
    y = maker.op("Add", total, w["b2"], name="y")
    part = maker.op("MatMul", y, w["w3"], name="logits_part")
    logits = maker.collective(AllGather("tp", (1,), (layout,)), part, "AllGather_1", "logits")
    return maker.model([y, logits])


class Maker:
    """Builds a rank graph node by node."""

    def __init__(self, dtype: object = np.float32) -> None:
        self.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))  # type: ignore[call-overload]
        self.inputs: list[ir.Value] = []
        self.weights: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.tag = 0

    def input(self, name: str, shape: Sequence[int | str]) -> ir.Value:
        """A graph input."""
        value = ir.Value(name=name, type=self.type, shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.weights.append(value)
        return value

    def op(
        self, op_type: str, *operands: ir.Value, name: str = "", **attributes: object
    ) -> ir.Value:
        """A plain node; returns its one output."""
        node = ir.node(op_type, list(operands), attributes)  # type: ignore[arg-type]
        return self._add(node, f"{op_type}_{len(self.nodes)}", name)

    def collective(self, op: Collective, operand: ir.Value, node: str, name: str = "") -> ir.Value:
        """A collective with the next tag."""
        self.tag += 1
        return self._add(make_node(op, operand, self.tag - 1), node, name)

    def _add(self, node: ir.Node, node_name: str, value_name: str) -> ir.Value:
        node.name = node_name
        node.outputs[0].name = value_name or f"{node_name}_out"
        node.outputs[0].type = self.type
        self.nodes.append(node)
        return node.outputs[0]

    def model(self, outputs: Sequence[ir.Value], opset: int = 18) -> ir.Model:
        """The finished model."""
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": opset, "tpcore": 1},
            name="toy",
        )
        return ir.Model(graph, ir_version=10)
