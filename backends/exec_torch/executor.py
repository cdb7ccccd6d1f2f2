"""TorchExecutor: segments as torch modules, on any device that torch has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from backends.scope import PASSES_ON
from graph.errors import ExecutionError
from graph.upgrade import TARGET, upgrade

from .bodies import inline_bodies, inline_functions
from .held import MAX_PLAIN, cast_floats, describe, plain_of
from .kinds import Types
from .loading import Loader
from .lower import Lowering
from .missing import DEFAULT, REASONS
from .row import takes
from .table import has_row
from .tensors import CARRIED, FLOATS, Tensor, carry, to_numpy, to_torch

GROWS = "grows"
"""What an op with a cache takes where its results may be written over its operands."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, None: None}


class TorchExecutor:
    """Lowers each segment to one torch.fx.GraphModule.

    With a `dtype` weights are cast on load and floats are computed in it; what comes in and goes
    out of the whole graph keeps the model's types.
    """

    def __init__(
        self,
        device: str = "cpu",
        dtype: str | None = None,
        compile: bool = False,
        loader: Loader | None = None,
    ) -> None:
        """`loader` is another executor's on the same device, to share its weights."""
        if dtype not in _DTYPES:
            raise ExecutionError(
                f"torch executor has no dtype '{dtype}'. Choose one of fp16, bf16, fp32."
            )
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions too
        self.loader = loader or Loader(self.device)
        self.types = Types(_DTYPES[dtype])
        self._compile = compile
        if compile:
            warnings.filterwarnings("ignore", module=r"torch\._inductor")  # advice to its authors
        self.fixed_shapes = compile and self.device.type == "cuda"

    def prepare(self, segment: ir.Model, threads: int) -> TorchStep:
        """Lower a plain ONNX model. Raises ExecutionError, which names all ops without a row."""
        torch.set_num_threads(threads)
        model = _decomposed(segment)
        missing = _missing(model)
        if missing:
            raise ExecutionError(
                f"torch has no row for {'; '.join(missing)}. Run the model with the backend 'cpu'."
            )
        return TorchStep(
            model.graph, self.types, self.loader, self._compile, captures=self.fixed_shapes
        )

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """A tensor on the array's memory, or a copy on the device; short shapes stay at hand."""
        tensor = to_torch(array)
        is_shape = array.dtype.kind in "iub" and array.ndim <= 1 and array.size <= MAX_PLAIN
        return tensor if is_shape else tensor.to(self.device)

    def to_cache(self, array: np.ndarray) -> Tensor:
        """A tensor of the type that floats are computed in."""
        tensor = self.to_tensor(array)
        return cast_floats(tensor, self.types.dtype) if self.types.dtype else tensor

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """A view of a tensor in memory, or a read-only copy of what numpy cannot reach."""
        array = to_numpy(tensor)
        if tensor.device.type != "cpu" or hasattr(tensor, "carries"):
            array.flags.writeable = False
        return array


def missing_ops(model: ir.Model) -> list[str]:
    """Ops of a model that torch cannot run, each with the reason."""
    return _missing(_decomposed(model))


def _missing(model: ir.Model) -> list[str]:
    nodes = [node for node in model.graph.all_nodes() if not has_row(node)]
    names = sorted({(node.domain or "ai.onnx", node.op_type) for node in nodes})
    return [f"{domain}:{op} ({REASONS.get(op, DEFAULT)})" for domain, op in names]


def _decomposed(segment: ir.Model) -> ir.Model:
    """A copy of ops with rows, as far as ONNX's own definitions lead there."""
    model = segment.clone()
    inline_functions(model)
    if model.graph.opset_imports.get("", TARGET) < TARGET:
        upgrade(model)
    inline_bodies(model, has_row)
    return model


@dataclass(frozen=True)
class _Port:
    """An input or output of a segment."""

    name: str
    dtype: Any
    """torch's type; None where it is not known, or need not be made."""
    is_plain: bool
    carried: ir.DataType | None = None
    """What the bytes stand for, where torch lacks the type."""


class TorchStep:
    """One segment's module."""

    def __init__(
        self, graph: ir.Graph, types: Types, loader: Loader, compile: bool, captures: bool
    ) -> None:
        """If it `captures`, a device replays what it has compiled, which then has one shape."""
        self._device = loader.device
        lowering = Lowering(graph, types, loader, graph.opset_imports.get("", TARGET))
        self._inputs = []
        for value in graph.inputs:
            dims = lowering.wants_plain(value)
            lowering.add_input(value, dims)
            self._inputs.append(_Port(value.name or "", types.dtype, dims is not None))
        lowering.run()
        self._outputs = [_output_port(lowering, value, types) for value in graph.outputs]
        held = [lowering.find(value) for value in graph.outputs]
        self._makers = {value.name or "": value.producer() for value in graph.outputs}
        self._module = lowering.finish(
            h.plain if port.is_plain else lowering.tensor(h, h.wide)
            for h, port in zip(held, self._outputs)
        )
        weights = self._module.buffers()
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._into: dict[str, Tensor] = {}
        self._compiles = compile
        self._captures = captures
        self._run = self._compiled()

    def write_into(self, outputs: Mapping[str, Tensor]) -> None:
        """From now on put these outputs into these tensors; a cache among them grows in place."""
        self._into = dict(outputs)
        makers = {self._makers[name] for name in outputs}
        for node in self._module.graph.nodes:
            if node.meta.get("onnx") in makers and takes(node.target, GROWS):
                node.kwargs = {**node.kwargs, GROWS: True}
        self._module.recompile()
        for tensor in outputs.values() if self._captures else ():
            torch._dynamo.mark_static_address(tensor)
        self._run = self._compiled()

    def _compiled(self) -> Any:
        if not self._compiles:
            return self._module
        mode = "reduce-overhead" if self._captures else None
        return torch.compile(self._module, dynamic=True, mode=mode)

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the segment on the values it needs. Raises ExecutionError."""
        with torch.inference_mode():
            given = [self._take(port, values[port.name]) for port in self._inputs]
            if self._captures:  # what an earlier run returned was copied: its memory may be reused
                torch.compiler.cudagraph_mark_step_begin()
            try:
                made = self._run(*given)
            except Exception as error:
                raise self._explain(error, given) from error
            return self._give(made, given)

    def _take(self, port: _Port, tensor: Tensor) -> Any:
        if port.is_plain:
            return plain_of(tensor)
        if port.dtype is not None and tensor.dtype in FLOATS:
            return tensor.to(self._device, port.dtype)
        return tensor if tensor.device == self._device else tensor.to(self._device)

    def _give(self, made: tuple[Any, ...], given: list[Any]) -> dict[str, Tensor]:
        """Outputs in buffers of their own, which a collective may write into."""
        taken = {t.untyped_storage().data_ptr() for t in given if isinstance(t, torch.Tensor)}
        results = {}
        for port, one in zip(self._outputs, made):
            if port.is_plain:
                results[port.name] = torch.tensor(one, dtype=port.dtype)
                continue
            if port.name in self._into:
                results[port.name] = _put(one, self._into[port.name])
                continue
            one = one if port.dtype is None else one.to(port.dtype)
            one = one.contiguous()
            place = one.untyped_storage().data_ptr()
            if self._captures or (place and (place in taken or place in self._weights)):
                one = one.clone()
            taken.add(one.untyped_storage().data_ptr())
            results[port.name] = carry(one, port.carried)
        return results

    def _explain(self, error: Exception, given: list[Any]) -> ExecutionError:
        """Run once more, node by node, to name the one that fails."""
        tracer, place = _Tracer(self._module), "a segment"
        try:
            tracer.run(*given)
        except Exception as again:
            error = again
            place = place if tracer.current is None else describe(tracer.current)
        text = str(error).split("\n\nWhile executing")[0].strip() or type(error).__name__
        return ExecutionError(f"torch cannot run {place}: {' '.join(text.split())[:400]}")


def _put(made: Tensor, tensor: Tensor) -> Tensor:
    """A result in a tensor that is there already, which it may be itself."""
    if made.data_ptr() != tensor.data_ptr() or made.shape != tensor.shape:
        tensor[tuple(slice(size) for size in made.shape)] = made
    return tensor


def _output_port(lowering: Lowering, value: ir.Value, types: Types) -> _Port:
    held = lowering.find(value)
    is_plain = held.tensor is None and not held.is_constant
    dtype = held.dtype if is_plain else None
    declared = value.dtype
    if not is_plain and types.dtype is not None and declared is not None:
        found = Types().of(declared)
        if found in FLOATS:
            dtype = types.dtype if value.meta.get(PASSES_ON) else found
    return _Port(value.name or "", dtype, is_plain, declared if declared in CARRIED else None)


class _Tracer(fx.Interpreter):  # type: ignore[misc]
    """Runs a module node by node and knows where it is."""

    current: ir.Node | None = None

    def run_node(self, n: Any) -> Any:
        """Run one node."""
        self.current = n.meta.get("onnx", self.current)
        return super().run_node(n)
