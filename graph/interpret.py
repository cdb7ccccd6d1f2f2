"""The oracle: what the graphs of all ranks mean, run in lockstep in numpy. Plain, not fast.

Standard operators run through onnx.reference, others through graph/contrib_reference.py,
collectives by their `meaning`. One plain model is the case of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import InlinePass

from graph.contrib_reference import CONTRIB
from graph.dialect import is_collective, parse_node, tag_of
from graph.errors import GraphError
from graph.fused_reference import FUSED_MEANINGS
from graph.mesh import Mesh
from graph.moe_reference import MOE_MEANINGS
from graph.onnx_reference import ONNX_MEANINGS
from graph.pool_reference import POOL_MEANINGS
from graph.weights import read_whole

Array = np.ndarray[Any, Any]
Values = dict[str, Any]
"""Arrays (or, for sequence types, lists of arrays) by value name."""


def interpret(
    models: Sequence[ir.Model],
    inputs: Sequence[Mapping[str, Array]],
    *,
    mesh: Mesh | None = None,
    keep: bool = False,
) -> list[dict[str, Array]]:
    """Outputs of every rank's graph for its inputs; with `keep` all values instead.

    Without a mesh all ranks form one axis, whatever its name.

    Raises:
        GraphError: an input is missing, an operator is unknown or fails, or the ranks' collectives
            differ in order, tag, or attributes.
    """
    kernels: dict[Any, ReferenceEvaluator] = {}
    ranks = [_Rank(*one, kernels) for one in zip(range(len(models)), models, inputs, strict=True)]
    waiting = [rank.advance() for rank in ranks]
    while any(node is not None for node in waiting):
        _exchange(ranks, waiting, mesh)
        waiting = [rank.advance() for rank in ranks]
    return [rank.values if keep else rank.outputs() for rank in ranks]


class _Rank:
    """One rank's graph and the values it has computed so far."""

    def __init__(
        self,
        rank: int,
        model: ir.Model,
        inputs: Mapping[str, Array],
        kernels: dict[Any, ReferenceEvaluator],
    ) -> None:
        self.rank = rank
        self.model = _without_functions(model)
        self.kernels = kernels
        self.values: Values = _initial_values(self.model.graph, inputs, rank)
        self.nodes: Iterator[ir.Node] = iter(self.model.graph)

    def advance(self) -> ir.Node | None:
        """Run up to the next collective and return it, or None at the end."""
        for node in self.nodes:
            if is_collective(node):
                return node
            self._run(node)
        return None

    def operand(self, node: ir.Node) -> Array:
        """Value of a collective's operand."""
        return np.asarray(self.values[_name(node.inputs[0])])

    def outputs(self) -> dict[str, Array]:
        """Graph outputs by name."""
        names = [_name(value) for value in self.model.graph.outputs]
        return {name: self.values[name] for name in names}

    def _run(self, node: ir.Node) -> None:
        outputs = [value.name for value in node.outputs if value.name]
        try:
            results = _run_node(node, self.values, self.model, self.kernels)
        except Exception as error:
            reason = str(error.__cause__ or error) or type(error).__name__
            raise GraphError(
                f"node '{node.name}' ({node.domain or 'ai.onnx'}:{node.op_type}) on rank "
                f"{self.rank} cannot be interpreted: {reason}. Its operands are "
                f"{_shapes(node, self.values)}."
            ) from error
        self.values.update(zip(outputs, results))


def _without_functions(model: ir.Model) -> ir.Model:
    if not model.functions:
        return model
    inlined = InlinePass()(model.clone())
    return inlined.model


def _initial_values(graph: ir.Graph, inputs: Mapping[str, Array], rank: int) -> Values:
    values: Values = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            values[name] = read_whole(value.const_value)
    missing = []
    for value in graph.inputs:
        name = _name(value)
        if name in inputs:
            values[name] = np.asarray(inputs[name])
        elif name not in values:
            missing.append(name)
    if missing:
        raise GraphError(
            f"rank {rank} has no value for the inputs {missing}; given are {sorted(inputs)}. "
            "Give every input of the graph."
        )
    return values


def _run_node(
    node: ir.Node, values: Values, model: ir.Model, kernels: dict[Any, ReferenceEvaluator]
) -> list[Any]:
    if node.op_type == "Constant" and "value" in node.attributes:
        return [read_whole(node.attributes["value"].as_tensor())]
    proto = ir.serde.serialize_node(node)
    feeds = {name: values[name] for name in proto.input if name}
    dtypes = tuple(str(getattr(value, "dtype", "")) for value in feeds.values())
    opsets = {"": 1, **model.graph.opset_imports}
    key = (proto.SerializeToString(), dtypes, tuple(opsets.items()))
    if key not in kernels:
        kernels[key] = _kernel(proto, feeds, opsets)
    has_subgraph = any(a.HasField("g") or a.graphs for a in proto.attribute)
    return list(kernels[key].run(None, values if has_subgraph else feeds))


def _kernel(
    node: onnx.NodeProto, feeds: Mapping[str, Any], opsets: dict[str, int]
) -> ReferenceEvaluator:
    """A graph of one node: its input dtypes are what onnx.reference picks an implementation by."""
    arrays = {name: array for name, array in feeds.items() if isinstance(array, np.ndarray)}
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None
        )
        for name, array in arrays.items()
    ]
    graph = onnx.GraphProto(name="node", node=[node], input=infos)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    return ReferenceEvaluator(graph, opsets=opsets, new_ops=CONTRIB_OPS)


MEANINGS = {**CONTRIB, **ONNX_MEANINGS, **POOL_MEANINGS, **MOE_MEANINGS, **FUSED_MEANINGS}


def _contrib_op(domain: str, op_type: str) -> type[OpRun]:
    """Wrap a function of graph/contrib_reference.py as an operator of onnx.reference."""
    meaning = MEANINGS[domain, op_type]

    def run(self: OpRun, *operands: Any, **attributes: Any) -> tuple[Any, ...]:
        results = meaning(*operands, **attributes)
        return tuple(results[: len(self.onnx_node.output)])

    # Without a schema of its own an operator would get the attributes of ONNX's of the same name.
    return type(op_type, (OpRun,), {"op_domain": domain, "op_schema": None, "_run": run})


CONTRIB_OPS = [_contrib_op(domain, op_type) for domain, op_type in MEANINGS]


def _exchange(ranks: Sequence[_Rank], waiting: Sequence[ir.Node | None], mesh: Mesh | None) -> None:
    """Run the collective that all ranks have arrived at."""
    nodes = [node for node in waiting if node is not None]
    if len(nodes) < len(ranks) or len({_signature(node) for node in nodes}) > 1:
        arrived = "; ".join(f"rank {r}: {_signature(node)}" for r, node in enumerate(waiting))
        raise GraphError(
            f"the ranks' graphs differ in their collectives: {arrived}. All ranks must have the "
            "same sequence; write the bundle again."
        )
    op = parse_node(nodes[0])
    for group in _groups(len(ranks), op.axis, mesh):
        parts = [ranks[rank].operand(nodes[rank]) for rank in group]
        for rank, result in zip(group, op.meaning(parts), strict=True):
            ranks[rank].values[_name(nodes[rank].outputs[0])] = result


def _signature(node: ir.Node | None) -> str:
    return "end of graph" if node is None else f"{parse_node(node)} with tag {tag_of(node)}"


def _groups(size: int, axis: str, mesh: Mesh | None) -> list[list[int]]:
    """Ranks that exchange with each other along `axis`, the last mesh axis varying fastest."""
    if mesh is None:
        return [list(range(size))]
    names = [name for name, _ in mesh.axes]
    grid = np.arange(size).reshape([ranks for _, ranks in mesh.axes])
    lines: list[list[int]] = (
        np.moveaxis(grid, names.index(axis), -1).reshape(-1, mesh.axis_size(axis)).tolist()
    )
    return lines


def _name(value: ir.Value | None) -> str:
    if value is None or not value.name:
        raise GraphError("a graph value has no name. Name all values before interpreting.")
    return value.name


def _shapes(node: ir.Node, values: Values) -> str:
    texts = []
    for value in node.inputs:
        got = values.get(value.name or "") if value is not None else None
        shape = list(got.shape) if isinstance(got, np.ndarray) else type(got).__name__
        texts.append(f"{value.name if value is not None else ''} {shape}")
    return ", ".join(texts) or "none"
