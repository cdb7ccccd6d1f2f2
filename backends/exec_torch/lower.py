"""A plain ONNX graph as one torch.fx.GraphModule.

Every node becomes a call of its row's function. Values are tensors on the device, or plain: Python
numbers and tuples, for shapes and what is computed from them. A value is turned from one form into
the other where an op wants it so, once. What depends on constants alone is computed here, in host
memory, unless that would take more of it than it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from graph.errors import ExecutionError

from . import control
from .held import (
    UNSET,
    Held,
    attributes_of,
    cast_floats,
    constant_of,
    describe,
    item,
    plain_of,
    tensor_of,
    within,
)
from .kinds import Types
from .loading import Loader
from .plain import lower_plain
from .plain_dims import Dims
from .row import Row, unknown
from .table import row_of
from .tensors import FLOATS
from .wanted import plain_dims, wanted_plain
from .wide import wide_values

FOLD_BYTES = 1 << 16
"""Operands and results of up to so many bytes are always folded."""
NOT_FOLDED = set("DequantizeLinear Transpose Reshape Squeeze Unsqueeze Slice Identity".split())
"""Ops on larger ones that are not: views cost nothing in a run, codes are smaller than floats."""
DRAWN = set("Dropout RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Ops that draw anew in each run."""


class Lowering:
    """The state while one graph (or the body of an If, Loop or Scan) is lowered."""

    def __init__(
        self, graph: ir.Graph, types: Types, loader: Loader, opset: int,
        parent: Lowering | None = None,
    ) -> None:  # fmt: skip
        self.onnx = graph
        self.types, self.loader, self.opset, self.parent = types, loader, opset, parent
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
                self._hold_weight(value, value.const_value)

    # --- inputs and outputs ---

    def add_input(self, value: ir.Value, dims: Dims | None = None) -> None:
        """An argument of the module: a tensor, or plain where `dims` says so."""
        held = self._placeholder(dims)
        held.dtype = self.types.of(value.dtype) if value.dtype is not None else None
        self._held[value] = held

    def wants_plain(self, value: ir.Value) -> Dims | None:
        """How many dims an integer input has that somebody reads as a shape; None for others."""
        return plain_dims(value) if self.is_wanted(value) else None

    def is_wanted(self, value: ir.Value) -> bool:
        """Whether somebody reads a value as Python numbers."""
        return value in self._wanted

    def finish(self, outputs: Iterable[Any]) -> Any:
        """The module that returns these nodes."""
        self.fx.output(tuple(outputs))
        return fx.GraphModule(self.attributes, self.fx)

    def child(self, graph: ir.Graph) -> Lowering:
        """The lowering of a body, which may read what is held here."""
        return Lowering(graph, self.types, self.loader, self.opset, self)

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
        if outer.is_constant:
            held = Held(contents=outer.contents, source=outer.source)
            held.plain, held.dims = outer.plain, outer.dims
        else:
            held = self._placeholder(outer.dims)
            self.captured.append(outer)
        held.dtype, held.wide = outer.dtype, outer.wide
        return self.hold(value, held)

    def hold(self, value: ir.Value, held: Held) -> Held:
        """Say what a value is."""
        self._held[value] = held
        return held

    def hold_tensor(self, value: ir.Value, node: Any, wide: bool = False) -> None:
        """Make a node's result the tensor of a value."""
        dtype = self.types.of(value.dtype, wide) if value.dtype is not None else None
        self.hold(value, Held(tensor=node, dtype=dtype, wide=wide))

    def tensor(self, held: Held, wide: bool = False) -> Any:
        """The node that makes a value as a tensor, in the type of those who are wide or not."""
        if held.tensor is None and held.is_constant:
            kind, read = held.kind, held.read
            if self.types.dtype is not None and kind in FLOATS:
                kind = self.types.float_of(held.wide)
                if held.contents is not None:
                    read = partial(within, held.contents, kind)
            weight = self.loader.load(read, kind, held.source)
            held.tensor = self.attribute("weight", weight)
        elif held.tensor is None:
            held.tensor = self.call(tensor_of, (held.plain, held.dtype, self.loader.device))
        if self.types.dtype is None or held.wide == wide:
            return held.tensor
        if held.other is None:
            held.other = self.call(cast_floats, (held.tensor, self.types.float_of(wide)))
        return held.other

    def plain(self, held: Held) -> Any:
        """A value as Python numbers."""
        if held.plain is UNSET:
            held.plain = (
                plain_of(held.read()) if held.is_constant else self.call(plain_of, (held.tensor,))
            )
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

    def _hold_weight(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        wide = value in self._wide
        self.hold(value, Held.of_weight(tensor, self.types.of(tensor.dtype, wide), wide))

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
            self._hold_weight(node.outputs[0], constant_of(node))
        elif node.op_type in control.LOWERED and node.domain == "":
            control.LOWERED[node.op_type](self, node)
        elif not lower_plain(self, node):
            self._lower_row(node)

    def _lower_row(self, node: ir.Node) -> None:
        row = row_of(node)
        if row is None:
            raise ExecutionError(f"torch has no row for {describe(node)}.")
        wide = any(value in self._wide for value in node.outputs)
        attributes = attributes_of(node, self.types, wide)
        extra = unknown(row.function, attributes) if row.parameters else []
        if extra:
            raise NotImplementedError(f"no meaning for the attributes {', '.join(extra)}")
        attributes.update(self._extras(node, row, wide))
        operands = [None if value is None else self.find(value) for value in node.inputs]
        if not self._fold(node, row, operands, attributes, wide):
            made = self._call_row(row, operands, attributes, wide)
            for index, value in enumerate(node.outputs):
                if value.name or value.uses():
                    one = self.call(item, (made, index)) if row.many else made
                    self.hold_tensor(value, one, wide)

    def _call_row(
        self, row: Row, operands: list[Held | None], attributes: dict[str, Any], wide: bool
    ) -> Any:
        if row.prepack is not None:
            known = [held.read() if held and held.is_constant else None for held in operands]
            dtype = self.types.dtype or (operands[0] and operands[0].dtype)
            packed = row.prepack(known, attributes, self.loader.device, dtype)
            if packed is not None:
                kept = [None if i in packed.operands else h for i, h in enumerate(operands)]
                given = self._operands(row, kept, wide)
                for place, tensor in packed.operands.items():
                    if place < len(given) and tensor is not None:
                        given[place] = self.attribute("packed", tensor)
                return self.call(packed.function, given, packed.attributes)
        return self.call(row.function, self._operands(row, operands, wide), attributes)

    def _operands(self, row: Row, operands: list[Held | None], wide: bool) -> list[Any]:
        given: list[Any] = []
        for place, held in enumerate(operands):
            if held is None:
                given.append(None)
            elif place in row.plain:
                given.append(self.plain(held))
            elif place in row.scalar and held.dims is not None and held.dims.rank == 0:
                given.append(self.types.number(held.plain, wide))
            else:
                given.append(self.tensor(held, wide))
        first = operands[0] if operands else None
        is_all_plain = all(held is None or held.dims is not None for held in operands)
        if first is not None and 0 in row.scalar and is_all_plain:
            given[0] = self.tensor(first, wide)
        return given

    def _fold(
        self, node: ir.Node, row: Row, operands: list[Held | None], attributes: dict[str, Any],
        wide: bool,
    ) -> bool:  # fmt: skip
        """Compute now what depends on constants alone; whether that was done."""
        given = [held for held in operands if held is not None]
        if not given or not all(held.is_constant for held in given) or node.op_type in DRAWN:
            return False
        size = sum(held.nbytes for held in given)
        if size > FOLD_BYTES and node.op_type in NOT_FOLDED:
            return False
        read = [
            None if held is None else self._known(held, place in row.plain, wide)
            for place, held in enumerate(operands)
        ]
        if "device" in attributes:
            attributes = {**attributes, "device": "cpu"}
        with torch.no_grad():
            made = row.function(*read, **attributes)
        results = made if row.many else (made,)
        if sum(one.nbytes for one in results if one is not None) > max(FOLD_BYTES, size):
            return False
        for value, one in zip(node.outputs, results):
            if one is not None:
                self.hold(value, Held.of(one, one.dtype, value in self._wide))
        return True

    def _known(self, held: Held, as_plain: bool, wide: bool) -> Any:
        """A constant as a folded op reads it."""
        if as_plain or self.types.dtype is None:
            return self.plain(held) if as_plain else held.read()
        return cast_floats(held.read(), self.types.float_of(wide))

    def _extras(self, node: ir.Node, row: Row, wide: bool) -> dict[str, Any]:
        first = node.inputs[0] if node.inputs else None
        made = node.outputs[0].dtype
        found = {
            "opset": self.opset,
            "outputs": len(node.outputs),
            "operand_dtype": self.find(first).dtype if first is not None else None,
            "made": self.types.of(made, wide) if made is not None else None,
            "device": self.loader.device,
        }
        return {name: found[name] for name in row.extras}
