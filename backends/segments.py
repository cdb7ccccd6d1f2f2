"""Cut one rank's graph at its collectives.

A program is a list of steps in the order in which every rank runs them: segments (plain ONNX
models) and exchanges (one collective each), by rising tag. Level n is what needs n collectives to
have run. An executor that can run collectives itself gets segments of several levels.

Invariants:
- exchange i of every rank is the same collective: order is tag order, never the order of the nodes;
- a node stands in the earliest segment that has its operands, so it waits for no collective it does
  not need; a `Constant` stands in every segment that uses it, where it can be folded;
- no segment has an input as its output: every output is a buffer of the executor's own;
- a value is dropped after the last step that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import onnx_ir as ir

from graph.dialect import DOMAIN, Collective, is_collective, parse_node, tag_of
from graph.errors import GraphError

from .scope import PASSES_ON, follow_contents, is_constant, leaves, nodes_inside, operands

MAX_IR_VERSION = 13
"""The newest IR version that onnxruntime 1.31 and 1.32 load."""


READ_BYTES, MOST_SESSIONS = 64 << 20, 8
"""Weights that must be read into memory first are packed by several sessions: by so many, or of so
many bytes each. One for all would hold them twice."""


@dataclass(frozen=True)
class Segment:
    """A plain ONNX model between two collectives, or around some that are nodes in it."""

    model: ir.Model
    level: int
    last_level: int
    inputs: tuple[str, ...]
    """Values it reads: graph inputs, results of collectives, outputs of earlier segments."""
    outputs: tuple[str, ...]
    """Values that later steps or the caller read."""
    drop: tuple[str, ...] = ()
    """Values that no later step reads."""


@dataclass(frozen=True)
class Exchange:
    """One collective."""

    op: Collective
    level: int
    """Number of collectives before it."""
    tag: int
    node: str
    """Name of the node, for messages."""
    dtype: str
    """Element type of the operand, for messages and for the comparison between ranks."""
    operand: str
    result: str
    keep: bool
    """Whether somebody else still needs the operand, so that it must not serve as the buffer."""
    drop: tuple[str, ...] = ()
    """Values that no later step reads."""


Step = Segment | Exchange


@dataclass(frozen=True)
class NativeOp:
    """The node by which an executor runs a collective inside a segment."""

    domain: str
    op_type: str
    attributes: Mapping[str, int]


Inside = Callable[[Exchange], NativeOp | None]
"""Says which collectives an executor runs itself, and by what."""


@dataclass(frozen=True)
class Program:
    """One rank's graph, cut."""

    steps: tuple[Step, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[str, ...]
    constants: dict[str, ir.TensorProtocol]
    """Initializers that are a collective's operand or an output of the graph, by name."""

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The collectives in the order in which they run."""
        return tuple(step for step in self.steps if isinstance(step, Exchange))


def collectives_of(model: ir.Model) -> list[ir.Node]:
    """The collective nodes of a rank graph by rising tag.

    Raises:
        GraphError: two collectives share a tag, or one stands inside a subgraph.
    """
    nodes = sorted((n for n in model.graph if is_collective(n)), key=tag_of)
    for before, after in pairwise(nodes):
        if tag_of(before) == tag_of(after):
            raise GraphError(
                f"collectives '{before.name}' and '{after.name}' both have tag {tag_of(after)}. "
                "Tags number the collectives of a graph. Write the bundle again."
            )
    for node in model.graph:
        for inner in nodes_inside(node):
            if is_collective(inner):
                raise GraphError(
                    f"collective '{inner.name}' stands inside a subgraph of node '{node.name}' "
                    f"({node.op_type}). Ranks could disagree on whether it runs. Move it out."
                )
    return nodes


def cut(model: ir.Model, *, expose_all: bool = False, inside: Inside | None = None) -> Program:
    """Cut a rank graph into segments and exchanges; with `expose_all` every value is an output.

    Collectives that may be `inside` are nodes of segments, each with the result of the one before
    it as a second operand, which keeps their order. Weights that lie in no file end a segment at
    times.

    Raises:
        GraphError: tags contradict the data flow, or a value between segments has no type.
    """
    return _Cutter(model, expose_all, inside or (lambda exchange: None)).program()


@dataclass
class _Cutter:
    """The state of one cut."""

    model: ir.Model
    expose_all: bool
    inside: Inside
    level: dict[ir.Value, int] = field(default_factory=dict)
    """Per value the number of collectives that must have run before it exists."""
    varying: set[ir.Value] = field(default_factory=set)
    wanted: set[ir.Value] = field(default_factory=set)
    """What an input decides, and what decides an output."""

    def program(self) -> Program:
        collectives = collectives_of(self.model)
        groups = self._levels(collectives)
        constants = self._constants(collectives)
        self.varying, self.wanted = follow_contents(self.model.graph)
        needed = self._needed(collectives, groups)
        steps: list[Step] = []
        nodes, first, native = groups[0], 0, dict[str, NativeOp]()
        sizes = [self._bytes_to_read(group) for group in groups]
        limit, read = max(sum(sizes) // MOST_SESSIONS, READ_BYTES), sizes[0]
        for level, node in enumerate(collectives):
            exchange = exchange_of(node, level)
            op = self.inside(exchange) if self._may_be_inside(node) else None
            read += sizes[level + 1]
            if op is not None and read <= limit:
                native[exchange.result] = op
                nodes = [*nodes, node, *groups[level + 1]]
                continue
            steps += self._segments(first, level, nodes, needed, native)
            steps.append(exchange)
            nodes, first, native = groups[level + 1], level + 1, {}
            read = sizes[level + 1]
        steps += self._segments(first, len(collectives), nodes, needed, native)
        outputs = tuple(_name(value) for value in self.model.graph.outputs)
        inputs = tuple(self.model.graph.inputs)
        owned = {*(_name(value) for value in inputs), *constants}
        steps = _with_liveness(steps, outputs, owned, set(constants), self.expose_all)
        return Program(tuple(steps), inputs, outputs, constants)

    def _may_be_inside(self, node: ir.Node) -> bool:
        """Whether a collective surely runs once in every run.

        An optimizer may compute ahead what no input decides, and drop what decides no output.
        """
        return _operand(node) in self.varying and node.outputs[0] in self.wanted

    def _bytes_to_read(self, nodes: Sequence[ir.Node]) -> int:
        """Of the weights of some nodes, those that do not lie in a file that is mapped."""
        weights = {v for n in nodes for v in operands(n) if self._is_weight(v)}
        tensors = [weight.const_value for weight in weights]
        return sum(t.nbytes for t in tensors if t and not isinstance(t, ir.ExternalTensor))

    def _levels(self, collectives: Sequence[ir.Node]) -> list[list[ir.Node]]:
        """The plain nodes per number of collectives they wait for."""
        position = {node: index for index, node in enumerate(collectives)}
        levels: dict[ir.Node, int] = {}
        for node in self.model.graph:
            level = max((self.level.get(value, 0) for value in operands(node)), default=0)
            if node in position:
                _check_order(node, position[node], level, collectives)
                level = position[node] + 1
            elif not is_constant(node):
                levels[node] = level
            for output in node.outputs:
                self.level[output] = level
        self._sink_constants(levels, position)
        groups: list[list[ir.Node]] = [[] for _ in range(len(collectives) + 1)]
        for node, level in levels.items():
            groups[level].append(node)
        return groups

    def _sink_constants(self, levels: dict[ir.Node, int], position: dict[ir.Node, int]) -> None:
        """Move what is computed from weights alone (a Transpose, a DequantizeLinear) to its reader.

        There onnxruntime folds or fuses it; apart from it the whole weight would cross segments in
        every run.
        """
        made: set[ir.Node] = set()
        for node in levels:
            read = list(operands(node))
            if read and all(self._is_const(v) or v.producer() in made for v in read):
                made.add(node)
        readable = {**levels, **position}
        for node in reversed(list(levels)):
            users = [user for output in node.outputs for user, _ in output.uses()]
            is_output = any(output.is_graph_output() for output in node.outputs)
            if node in made and users and not is_output and all(u in readable for u in users):
                levels[node] = readable[node] = min(readable[user] for user in users)
                self.level.update((output, levels[node]) for output in node.outputs)

    def _constants(self, collectives: Sequence[ir.Node]) -> dict[str, ir.TensorProtocol]:
        """Contents of initializers and constants that are read from outside every segment."""
        found = {}
        for value in (*(node.inputs[0] for node in collectives), *self.model.graph.outputs):
            if value is not None and self._is_const(value):
                tensor = ir.convenience.get_const_tensor(value)
                if tensor is not None:
                    found[_name(value)] = tensor
        return found

    def _needed(
        self, collectives: Sequence[ir.Node], groups: Sequence[Sequence[ir.Node]]
    ) -> dict[ir.Value, int]:
        """Per value the last level that reads it; a reader at its own level does not count."""
        last = len(collectives) + 1
        needed: dict[ir.Value, int] = {}
        for position, node in enumerate(collectives):
            needed[_operand(node)] = position + 1
        for level, nodes in enumerate(groups):
            for node in nodes:
                for value in operands(node):
                    needed[value] = max(level, needed.get(value, 0))
                if self.expose_all:
                    needed.update((output, last) for output in node.outputs)
        needed.update((value, last) for value in self.model.graph.outputs)
        return needed

    def _segments(
        self,
        level: int,
        last: int,
        nodes: Sequence[ir.Node],
        needed: dict[ir.Value, int],
        native: Mapping[str, NativeOp],
    ) -> list[Segment]:
        """The segment of some levels, if there is anything in it."""
        if not nodes:
            return []
        inside = {output for node in nodes for output in node.outputs}
        read = dict.fromkeys(v for n in nodes for v in operands(n) if v not in inside)
        constants = list(dict.fromkeys(p for v in read if (p := v.producer()) and is_constant(p)))
        weights = [value for value in read if self._is_weight(value)]
        inputs = [value for value in read if not self._is_const(value)]
        outputs = [v for n in nodes for v in n.outputs if v.name and needed.get(v, 0) > last]
        for value in inputs:
            _check_typed(value)
        graph = self.model.graph
        view = ir.GraphView(
            inputs,
            outputs,
            nodes=[*constants, *nodes],
            initializers=weights,
            opset_imports={
                **{d: v for d, v in graph.opset_imports.items() if d != DOMAIN},
                **{op.domain: 1 for op in native.values()},
            },
            name=f"{graph.name or 'graph'}_{level}",
        )
        model = self._as_model(view)
        for value, copied in zip(outputs, model.graph.outputs):
            copied.meta[PASSES_ON] = not leaves(value)
        before: ir.Value | None = None
        for node in collectives_of(model) if native else ():
            before = _make_native(node, native[_name(node.outputs[0])], before)
        return [
            Segment(
                model,
                level,
                last,
                tuple(_name(value) for value in inputs),
                tuple(_name(value) for value in outputs),
            )
        ]

    def _as_model(self, view: ir.GraphView) -> ir.Model:
        return ir.Model(
            view.clone(),
            ir_version=min(self.model.ir_version, MAX_IR_VERSION),
            producer_name=self.model.producer_name,
            functions=list(self.model.functions.values()),
        )

    def _is_weight(self, value: ir.Value) -> bool:
        return value.is_initializer() and not value.is_graph_input()

    def _is_const(self, value: ir.Value) -> bool:
        producer = value.producer()
        return self._is_weight(value) or (producer is not None and is_constant(producer))


def _name(value: ir.Value) -> str:
    if not value.name:
        raise GraphError(f"value {value!r} has no name. Every value of a rank graph needs one.")
    return value.name


def _operand(node: ir.Node) -> ir.Value:
    operand = node.inputs[0] if node.inputs else None
    if operand is None:
        raise GraphError(f"collective '{node.name}' ({node.op_type}) has no operand.")
    return operand


def _make_native(node: ir.Node, op: NativeOp, before: ir.Value | None) -> ir.Value:
    """Turn a collective into an executor's node that runs after the one that made `before`."""
    node.domain, node.op_type = op.domain, op.op_type
    node.attributes.clear()
    for name, number in op.attributes.items():
        node.attributes.add(ir.AttrInt64(name, number))
    if before is not None:
        node.resize_inputs(2)
        node.replace_input_with(1, before)
    return node.outputs[0]


def exchanges_of(model: ir.Model) -> list[Exchange]:
    """The exchanges of a rank graph in their order. Raises GraphError."""
    return [exchange_of(node, level) for level, node in enumerate(collectives_of(model))]


def exchange_of(node: ir.Node, level: int) -> Exchange:
    """The exchange that a collective node stands for. Raises GraphError."""
    operand = _operand(node)
    return Exchange(
        op=parse_node(node),
        level=level,
        tag=tag_of(node),
        node=node.name or f"tag {tag_of(node)}",
        dtype=operand.dtype.name if operand.dtype is not None else "?",
        operand=_name(operand),
        result=_name(node.outputs[0]),
        keep=True,
    )


def _check_order(node: ir.Node, position: int, level: int, order: Sequence[ir.Node]) -> None:
    if level > position:
        raise GraphError(
            f"collective '{node.name}' has tag {tag_of(node)} but needs the result of "
            f"'{order[level - 1].name}' with tag {tag_of(order[level - 1])}. "
            "Tags must rise along the data flow. Write the bundle again."
        )


def _check_typed(value: ir.Value) -> None:
    if value.type is None:
        producer = value.producer()
        maker = f"the output of node '{producer.name}'" if producer is not None else "an input"
        raise GraphError(
            f"value '{value.name}', {maker}, crosses a collective but has no element type. "
            "Run shape inference on the rank graph first."
        )


def _with_liveness(
    steps: Sequence[Step],
    outputs: Sequence[str],
    owned: set[str],
    constants: set[str],
    keep_all: bool,
) -> list[Step]:
    """Say after which step each value is dropped, and which operands may serve as buffers."""
    alive = {*outputs, *constants}
    result: list[Step] = []
    for step in reversed(steps):
        made = {step.result} if isinstance(step, Exchange) else set(step.outputs)
        read = {step.operand} if isinstance(step, Exchange) else set(step.inputs)
        drop = () if keep_all else tuple(sorted((read | made) - alive))
        alive |= read
        if isinstance(step, Exchange):
            keep = step.operand in owned or step.operand not in drop
            result.append(replace(step, keep=keep, drop=drop))
        else:
            result.append(replace(step, drop=drop))
    return result[::-1]
