"""A plain ONNX graph as one torch.fx.GraphModule.

Every node becomes a call of its row's function. Values are tensors on the device, or plain: Python
numbers and tuples, for shapes and what is computed from them. A value is turned from one form into
the other where an op wants it so, once. What depends on constants alone is computed here, unless
that would take more memory than it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from graph.errors import ExecutionError

from . import control
from .plain_rows import PLAIN_ROWS, Dims, PlainRow, shape_of, shape_of_plain, size_of
from .row import Row, unknown
from .table import row_of
from .tensors import FLOATS, Tensor, to_torch
from .kinds import Types, wide_values
from .wanted import wanted_plain

MAX_PLAIN = 64
"""Constants of more elements stay tensors."""
FOLD_BYTES = 1 << 16
"""A folded result may always have so many bytes; beyond it, no more than its operands."""
NOT_FOLDED = {"DequantizeLinear", "Dropout", "Bernoulli", "Multinomial"}
"""Ops whose result is larger than what is stored, or another one each time."""
UNSET: Any = object()


@dataclass
class Held:
    """What an ONNX value is in the lowered graph."""

    tensor: Any = None
    """The node that makes the tensor, once somebody has asked for it."""
    plain: Any = UNSET
    """A Python number, a tuple, or the node that makes one."""
    dims: Dims | None = None
    """Of the plain form, where there is one."""
    constant: Tensor | None = None
    """Contents known before the run."""
    dtype: Any = None
    """torch's type, None where it is not known."""
    wide: bool = False
    """Whether it stays in float32 where floats are of another type."""
    other: Any = None
    """The tensor cast to the other of the two types."""


def tensor_of(value: Any, dtype: Any, device: Any) -> Tensor:
    """A plain value as a tensor."""
    return torch.tensor(value, dtype=dtype, device=device)


def plain_of(tensor: Tensor) -> Any:
    """A tensor as Python numbers, for which the device must have finished."""
    return _tuples(tensor.tolist())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def cast_floats(tensor: Tensor, dtype: Any) -> Tensor:
    """Floats in another type; other tensors as they are."""
    return tensor.to(dtype) if tensor.dtype in FLOATS else tensor


def item(results: Any, index: int) -> Any:
    """One of several results."""
    return results[index]


class Lowering:
    """The state while one graph (or the body of an If, Loop or Scan) is lowered."""

    def __init__(
        self, graph: ir.Graph, types: Types, device: Any, opset: int, parent: Lowering | None = None
    ) -> None:
        self.onnx = graph
        self.types, self.device, self.opset, self.parent = types, device, opset, parent
        self.fx = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self.captured: list[Held] = []
        """Values of the parent's graph that are arguments beside the inputs, in order."""
        self._held: dict[ir.Value, Held] = {}
        self._last: Any = None
        self._node: ir.Node | None = None
        self._wanted = wanted_plain(graph)
        self._wide = wide_values(graph) if types.dtype is not None else set()
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input():
                self._hold_constant(value, value.const_value)

    # --- inputs and outputs ---

    def add_input(self, value: ir.Value, dims: Dims | None = None) -> None:
        """An argument of the module: a tensor, or plain where `dims` says so."""
        held = self._placeholder(dims)
        held.dtype = self.types.of(value.dtype) if value.dtype is not None else None
        self._held[value] = held

    def wants_plain(self, value: ir.Value) -> Dims | None:
        """How many dims an integer input has that somebody reads as a shape; None for others."""
        if value not in self._wanted or value.shape is None or value.dtype is None:
            return None
        is_list = value.dtype.is_integer() and len(value.shape) <= 1
        return Dims(len(value.shape)) if is_list else None

    def is_plain(self, value: ir.Value) -> bool:
        """Whether a value exists as Python numbers alone."""
        held = self.find(value)
        return held.tensor is None and held.constant is None

    def finish(self, outputs: Iterable[Any]) -> Any:
        """The module that returns these nodes."""
        self.fx.output(tuple(outputs))
        return fx.GraphModule(self.attributes, self.fx)

    def _placeholder(self, dims: Dims | None) -> Held:
        with self.fx.inserting_after(self._last):
            made = self.fx.placeholder(f"value_{len(self.fx.nodes)}")
        self._last = made
        return Held(plain=made, dims=dims) if dims is not None else Held(tensor=made)

    # --- values ---

    def find(self, value: ir.Value) -> Held:
        """What a value is here; one of an outer graph becomes an argument."""
        if value in self._held:
            return self._held[value]
        if self.parent is None:
            raise ExecutionError(f"value '{value.name}' is read before it is made. Sort the graph.")
        outer = self.parent.find(value)
        if outer.constant is not None:
            held = Held(plain=outer.plain, dims=outer.dims, constant=outer.constant)
        else:
            held = self._placeholder(outer.dims)
            self.captured.append(outer)
        held.dtype, held.wide = outer.dtype, outer.wide
        self._held[value] = held
        return held

    def tensor(self, held: Held, wide: bool = False) -> Any:
        """The node that makes a value as a tensor, in the type of those who are wide or not."""
        if held.tensor is None and held.constant is not None:
            held.tensor = self.attribute("constant", held.constant)
        elif held.tensor is None:
            held.tensor = self.call(tensor_of, (held.plain, held.dtype, self.device))
        if self.types.dtype is None or held.wide == wide:
            return held.tensor
        if held.other is None:
            kind = torch.float32 if wide else self.types.dtype
            held.other = self.call(cast_floats, (held.tensor, kind))
        return held.other

    def plain(self, held: Held) -> Any:
        """A value as Python numbers."""
        if held.plain is UNSET:
            if held.constant is not None:
                held.plain = plain_of(held.constant)
            else:
                held.plain = self.call(plain_of, (held.tensor,))
        return held.plain

    def attribute(self, kind: str, contents: Any) -> Any:
        """A node that stands for a weight or for the module of a body."""
        name = f"{kind}_{len(self.attributes)}"
        self.attributes[name] = contents
        return self.fx.get_attr(name)

    def call(
        self, function: Callable[..., Any], arguments: Any, named: dict[str, Any] | None = None
    ) -> Any:
        """A node that calls a function."""
        made = self.fx.call_function(function, tuple(arguments), named or {})
        made.meta["onnx"] = self._node
        return made

    def _hold_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        contents = to_torch(tensor.numpy().reshape(tensor.shape.numpy()))
        kind = self.types.of(tensor.dtype, value in self._wide)
        self._hold(value, contents, kind if tensor.dtype.is_floating_point() else contents.dtype)

    def _hold(self, value: ir.Value, contents: Tensor, dtype: Any) -> None:
        held = Held(constant=contents.to(self.device, dtype), dtype=dtype)
        held.wide = value in self._wide
        if contents.numel() <= MAX_PLAIN and contents.ndim <= 1 and not dtype.is_complex:
            held.plain = plain_of(contents)
            held.dims = Dims(contents.ndim, contents.numel() if contents.ndim else None)
        self._held[value] = held

    # --- nodes ---

    def run(self) -> None:
        """Lower all nodes. Raises ExecutionError, which names the node."""
        for node in self.onnx:
            self._node = node
            try:
                self._lower(node)
            except ExecutionError:
                raise
            except Exception as error:
                raise ExecutionError(
                    f"torch cannot prepare {describe(node)}: {error}. "
                    "Run the model with the backend 'cpu'."
                ) from error

    def _lower(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain == "":
            self._hold_constant(node.outputs[0], constant_of(node))
        elif node.op_type in control.LOWERED and node.domain == "":
            control.LOWERED[node.op_type](self, node)
        elif not self._lower_plain(node):
            self._lower_row(node)

    def _lower_plain(self, node: ir.Node) -> bool:
        """Compute in Python if all operands are plain; whether that was done."""
        if node.domain != "":
            return False
        if node.op_type in ("Shape", "Size"):
            self._measure(node)
            return True
        row = PLAIN_ROWS.get(node.op_type)
        operands = [None if value is None else self.find(value) for value in node.inputs]
        given = [held for held in operands if held is not None]
        if row is None or not given or any(held.dims is None for held in given):
            return False
        attributes = self._attributes(node)
        dims = row.rank_of([held.dims for held in given if held.dims], attributes)
        is_wanted = not row.grows or any(value in self._wanted for value in node.outputs)
        if dims is None or not is_wanted or unknown(row.function, attributes):
            return False
        dtype = attributes.get("to") or row.gives or given[node.op_type == "Where"].dtype
        if node.op_type == "ConstantOfShape":
            dtype = attributes.get("value", (0.0, torch.float32))[1]
        if not isinstance(dtype, torch.dtype) or (row.grows and dtype.is_floating_point):
            return False
        self._emit_plain(node, row, [h and h.plain for h in operands], attributes, dims, dtype)
        return True

    def _emit_plain(
        self, node: ir.Node, row: PlainRow, operands: list[Any], attributes: dict[str, Any],
        dims: Dims, dtype: Any,
    ) -> None:  # fmt: skip
        if node.op_type == "Split":
            attributes["outputs"] = len(node.outputs)
        if any(isinstance(operand, fx.Node) for operand in operands):
            made = self.call(row.function, operands, attributes)
        else:
            made = row.function(*operands, **attributes)
        for index, value in enumerate(node.outputs):
            one = made
            if node.op_type == "Split":
                one = self.call(item, (made, index)) if isinstance(made, fx.Node) else made[index]
            self._held[value] = Held(plain=one, dims=dims, dtype=dtype)
            if isinstance(one, tuple) and dims.rank == 1:
                self._held[value].dims = Dims(1, len(one))

    def _measure(self, node: ir.Node) -> None:
        """Shape and Size, which read no contents."""
        value = node.inputs[0]
        held = self.find(value) if value is not None else Held()
        attributes = self._attributes(node)
        is_list = node.op_type == "Shape"
        if held.dims is not None and is_list:
            made = self.call(shape_of_plain, (held.plain,), attributes)
            dims = Dims(1, held.dims.rank if not attributes else None)
        else:
            made = self.call(shape_of if is_list else size_of, (self.tensor(held),), attributes)
            rank = len(value.shape) if value is not None and value.shape is not None else None
            dims = Dims(1, rank if not attributes else None) if is_list else Dims(0)
        self._held[node.outputs[0]] = Held(plain=made, dims=dims, dtype=torch.int64)

    def _lower_row(self, node: ir.Node) -> None:
        row = row_of(node)
        if row is None:
            raise ExecutionError(f"torch has no row for {describe(node)}.")
        wide = any(value in self._wide for value in node.outputs)
        attributes = self._attributes(node, wide)
        extra = unknown(row.function, attributes) if row.parameters else []
        if extra:
            raise NotImplementedError(f"no meaning for the attributes {', '.join(extra)}")
        attributes.update(self._extras(node, row, wide))
        operands = [None if value is None else self.find(value) for value in node.inputs]
        if not self._fold(node, row, operands, attributes, wide):
            made = self.call(row.function, self._operands(row, operands, wide), attributes)
            self._hold_results(node, row, made, wide)

    def _operands(self, row: Row, operands: list[Held | None], wide: bool) -> list[Any]:
        given: list[Any] = []
        for place, held in enumerate(operands):
            if held is None:
                given.append(None)
            elif place in row.plain:
                given.append(self.plain(held))
            elif place in row.scalar and held.dims is not None and held.dims.rank == 0:
                given.append(held.plain)
            else:
                given.append(self.tensor(held, wide))
        first = operands[0] if operands else None
        if row.scalar and first is not None and 0 in row.scalar and not _has_node(given):
            given[0] = self.tensor(first, wide)
        return given

    def _fold(
        self, node: ir.Node, row: Row, operands: list[Held | None], attributes: dict[str, Any],
        wide: bool,
    ) -> bool:  # fmt: skip
        """Compute now what depends on constants alone; whether that was done."""
        given = [held for held in operands if held is not None]
        known = [held.constant for held in given if held.constant is not None]
        if not given or len(known) < len(given) or node.op_type in NOT_FOLDED:
            return False
        read = [
            None if held is None else self._known(held, place in row.plain, wide)
            for place, held in enumerate(operands)
        ]
        with torch.no_grad():
            made = row.function(*read, **attributes)
        results = made if row.many else (made,)
        limit = max(FOLD_BYTES, sum(tensor.nbytes for tensor in known))
        if sum(one.nbytes for one in results if one is not None) > limit:
            return False
        for value, one in zip(node.outputs, results):
            if one is not None:
                self._hold(value, one, one.dtype)
        return True

    def _known(self, held: Held, as_plain: bool, wide: bool) -> Any:
        """A constant as a folded op reads it."""
        if as_plain or self.types.dtype is None or held.wide == wide:
            return self.plain(held) if as_plain else held.constant
        return cast_floats(held.constant, torch.float32 if wide else self.types.dtype)

    def child(self, graph: ir.Graph) -> Lowering:
        """The lowering of a body, which may read what is held here."""
        return Lowering(graph, self.types, self.device, self.opset, self)

    def _hold_results(self, node: ir.Node, row: Row, made: Any, wide: bool) -> None:
        for index, value in enumerate(node.outputs):
            if value.name or value.uses():
                one = self.call(item, (made, index)) if row.many else made
                dtype = self.types.of(value.dtype, wide) if value.dtype is not None else None
                self._held[value] = Held(tensor=one, dtype=dtype, wide=wide)

    def hold_tensor(self, value: ir.Value, node: Any) -> None:
        """Make a node's result the tensor of a value."""
        dtype = self.types.of(value.dtype) if value.dtype is not None else None
        self._held[value] = Held(tensor=node, dtype=dtype)

    def _extras(self, node: ir.Node, row: Row, wide: bool) -> dict[str, Any]:
        first = node.inputs[0] if node.inputs else None
        made = node.outputs[0].dtype
        found = {
            "opset": self.opset,
            "outputs": len(node.outputs),
            "operand_dtype": self.find(first).dtype if first is not None else None,
            "made": self.types.of(made, wide) if made is not None else None,
            "device": self.device,
        }
        return {name: found[name] for name in row.extras}

    def _attributes(self, node: ir.Node, wide: bool = False) -> dict[str, Any]:
        return {
            name: found
            for name, attribute in node.attributes.items()
            if (found := _read(name, attribute, self.types, wide)) is not None
        }


TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name an element type."""


def _read(name: str, attribute: ir.Attr, types: Types, wide: bool) -> Any:
    value = attribute.value
    if name in TYPES:
        return types.of(ir.DataType(value), wide) if value else None
    if attribute.type == ir.AttributeType.TENSOR:
        array = value.numpy().reshape(-1)
        return array[0].item(), types.of(value.dtype, wide)
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _has_node(operands: list[Any]) -> bool:
    return any(isinstance(operand, fx.Node) for operand in operands)


def constant_of(node: ir.Node) -> ir.TensorProtocol:
    """Contents of a Constant. Raises ExecutionError where it holds no numbers."""
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        raise ExecutionError(f"{describe(node)} holds no numbers, and torch has no strings.")
    return tensor


def describe(node: ir.Node) -> str:
    """`node 'name' (ai.onnx:Op)`."""
    return f"node '{node.name}' ({node.domain or 'ai.onnx'}:{node.op_type})"
