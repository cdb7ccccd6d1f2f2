"""Runs segments with ONNX Runtime on CPU. The one file that imports onnxruntime.

Values pass between segments as OrtValues, never copied: what one session returns is fed to the
next, and a collective works in place on a view of the same buffer. A session has one IOBinding,
in which all stays bound that can (`ort_binding.py`). Measured with two inputs and two outputs: a
call takes half of what it takes by name where all stays, and a quarter more where nothing does. So
a session in which nothing can stay is called by name.

Weights above `INLINE_BYTES` are handed to a session beside a model that only names them:
- memory-mapped ones are given twice, as external initializers (so that the optimizer can read them)
  and as user-owned initializers (so that the session uses the mapped pages and makes no copy), but
  only before ops whose weights no optimizer rewrites: it would rewrite its own and read ours;
- ones that were read into memory are given as external initializers only: the session makes the one
  copy it needs (packed for MatMul, or plain) and ours is let go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from graph.errors import ExecutionError
from graph.random_ops import RANDOM_OPS

from . import heaps, native
from .as_written import drop_rounding
from .base import Tensor
from .foreign_types import BYTE, FOREIGN_TYPES, bytes_of
from .given_weights import (
    give_back_freed_memory,
    inlined,
    large_weights,
    mapping_of,
    named_only,
    releasing,
    used_as_given,
)
from .ort_binding import Binding, OrtTensor, array_of
from .placement import local_ranks, usable_cores
from .scope import PASSES_ON, nodes_inside

_C = ort.capi._pybind_state
_CPU = ort.OrtDevice.make("cpu", 0)._get_c_device()
_QUIET = 4
"""onnxruntime's log level 'fatal': errors come as exceptions, once."""
_CARRIERS = {1: np.uint8, 2: np.uint16}
"""What types that numpy lacks (bfloat16, float8) are passed as, by size in bytes."""


class OrtExecutor:
    """Makes one session per segment.

    With `as_written` it rounds where an op's definition does and nowhere else: fused quantised ops
    round at other places than their parts do. Without `packs` sessions read mapped weights where
    they lie, so that several share them; one token runs as fast, a prompt about a quarter slower.
    With `copies`, as for `as_written`, every session has its own: proofs rely on nothing of ours.
    """

    runs_native = True

    def __init__(
        self,
        ranks_here: int | None = None,
        *,
        as_written: bool = False,
        packs: bool = True,
        copies: bool = False,
    ) -> None:
        self._ranks_here = local_ranks() if ranks_here is None else ranks_here
        self._as_written = as_written
        self._packs = packs
        self._copies = copies or as_written

    def prepare(self, segment: ir.Model, threads: int) -> OrtStep:
        """Make a session of a plain ONNX model. Raises ExecutionError if it refuses the model."""
        options = self._options(threads)
        weights = large_weights(segment)
        with named_only(weights), inlined(segment):
            model = ir.to_proto(segment)
        if self._as_written:
            drop_rounding(model)
        if heaps.in_use() or native.DOMAIN in segment.graph.opset_imports:
            options.register_custom_ops_library(native.path())
        given = _hand_over(options, weights, shares=not self._copies)
        mapped = [pair for pair in given if mapping_of(pair[1]) is not None]
        contents = model.SerializeToString()
        try:
            with releasing(array for _, array in mapped):
                session = ort.InferenceSession(contents, options, ["CPUExecutionProvider"])
        except Exception as error:
            raise _explain(error, segment.graph, "load") from error
        del model, contents
        if weights:
            give_back_freed_memory()
        return OrtStep(session, segment.graph, mapped)

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Wrap an array without a copy (a strided one is made contiguous first)."""
        if not _has_numbers(array):
            return OrtTensor(None, array)
        if not array.flags.c_contiguous:
            array = array.copy()
        return OrtTensor(_wrap(array), array)

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """A writable view of an OrtValue's memory, which lives as long as the view."""
        array, value = tensor.array, tensor.value
        return array if array is not None or value is None else array_of(value)

    def _options(self, threads: int) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        if not heaps.in_use():
            _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if self._as_written:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not self._packs:
            options.add_session_config_entry("session.disable_prepacking", "1")
        # One pool per session: a pool that spins after its run would take the next one's cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._ranks_here * threads > usable_cores():
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


@cache
def _share_arena() -> None:
    """Make one arena for all sessions, once, from which weights are kept away.

    With one each, every segment would hold on to the most it ever needed; and what one segment has
    let go is still in the cache when the next one takes it.
    """
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    _C.create_and_register_allocator(memory, ort.OrtArenaCfg({}))


class OrtStep:
    """One segment's session."""

    def __init__(self, session: ort.InferenceSession, graph: ir.Graph, weights: list[Any]) -> None:
        self._session = session
        self._graph = graph
        self._weights = weights
        """The mapped weights that the session reads in place: they must live as long as it does."""
        self._inputs = [value.name or "" for value in graph.inputs]
        self._outputs = [value.name or "" for value in graph.outputs]
        interface = (*session.get_inputs(), *session.get_outputs())
        self._has_numbers_only = all(_is_number(value.type) for value in interface)
        passing = [value.name or "" for value in graph.outputs if value.meta.get(PASSES_ON)]
        may_stay = passing if _may_run_again(graph) else []
        self._by_name = not may_stay
        self._binding = Binding(
            _C.SessionIOBinding(session._sess),
            _CPU,
            self._inputs,
            self._outputs,
            may_stay=may_stay,
            nothing=_nothing(),
        )
        self._run = session._sess.run_with_iobinding
        self._run_by_name = session._sess.run_with_ort_values

    def write_into(self, outputs: Mapping[str, Tensor]) -> None:
        """From now on put these outputs into these tensors."""
        self._by_name = False
        self._binding.write_into(outputs)

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the segment on the values it needs. Raises ExecutionError."""
        try:
            if not self._has_numbers_only:
                return self._run_in_python(values)
            if self._by_name:
                given = {name: values[name].value for name in self._inputs}
                made = self._run_by_name(given, self._outputs, None)
                return dict(zip(self._outputs, map(OrtTensor, made)))
            binding = self._binding
            binding.bind(values)
            try:
                self._run(binding.bound, None)
            except Exception:
                if not binding.forget():
                    raise
                self._run(binding.bound, None)  # shapes have changed
            return binding.results()
        except Exception as error:
            raise _explain(error, self._graph, "run") from error

    def _run_in_python(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on what Python has for every type, as strings, sequences and maps need it."""
        given = {name: values[name] for name in self._inputs}
        feeds = {n: t.array if t.value is None else ort.OrtValue(t.value) for n, t in given.items()}
        results = self._session.run(self._outputs, feeds)
        return {name: _hold(result) for name, result in zip(self._outputs, results)}


@cache
def _nothing() -> Any:
    return _C.OrtValue.ortvalue_from_shape_and_type([0], np.float32, _CPU)


def _hold(value: Any) -> OrtTensor:
    return OrtTensor(_wrap(value) if _has_numbers(value) else None, value)


def _may_run_again(graph: ir.Graph) -> bool:
    """Whether nobody notices that it ran twice: it draws no random numbers, and no rank waits."""
    nodes = (inner for node in graph for inner in (node, *nodes_inside(node)))
    return not any(node.op_type in RANDOM_OPS or node.domain == native.DOMAIN for node in nodes)


def _is_number(kind: str) -> bool:
    return kind.startswith("tensor(") and kind != "tensor(string)"


def _has_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "OSU"


def _wrap(array: np.ndarray) -> Any:
    """An OrtValue on the memory of `array`, which the caller keeps alive.

    Of types below eight bits it has a packed copy.
    """
    dtype = _foreign_type(array.dtype)
    if dtype is None:
        return _C.OrtValue.ortvalue_from_numpy(array, _CPU)
    if dtype.bitwidth < BYTE:
        value = _C.OrtValue.ortvalue_from_shape_and_onnx_type(array.shape, dtype.value, _CPU)
        bytes_of(value)[:] = np.frombuffer(ir.Tensor(array, dtype=dtype).tobytes(), np.uint8)
        return value
    carrier = array.view(_CARRIERS[array.dtype.itemsize])
    return _C.OrtValue.ortvalue_from_numpy_with_onnx_type(carrier, dtype.value)


@cache
def _foreign_type(dtype: np.dtype[Any]) -> ir.DataType | None:
    """The type in ONNX of arrays whose type numpy itself does not have."""
    found = ir.DataType.from_numpy(dtype)
    return found if found in FOREIGN_TYPES else None


def _hand_over(
    options: ort.SessionOptions, weights: list[ir.Value], *, shares: bool
) -> list[tuple[ort.OrtValue, np.ndarray]]:
    """Give the weights' contents to a session to be made; returns what must live until then."""
    names, given = [], []
    for weight in weights:
        tensor = weight.const_value
        if tensor is None:
            continue
        array = np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape.numpy())
        value = ort.OrtValue(_wrap(array), array)
        names.append(weight.name)
        given.append((value, array))
        if shares and mapping_of(array) is not None and used_as_given(weight):
            options.add_initializer(weight.name, value)
    if names:
        options.add_external_initializers(names, [value for value, _ in given])
    return given


def _explain(error: Exception, graph: ir.Graph, verb: str) -> ExecutionError:
    """Name the node that onnxruntime's text names, or else the segment."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    named = re.search(r"Name:'([^']+)'", text) or re.search(r"Node \(([^)]+)\)", text)
    nodes = [node.name for node in graph if node.name]
    between = f" {nodes[0]} .. {nodes[-1]}" if nodes else " of nodes without a name"
    place = f"node '{named.group(1)}'" if named else f"the segment{between}"
    detail = text.split("Status Message: ")[-1].splitlines()[0] if text else type(error).__name__
    return ExecutionError(f"onnxruntime cannot {verb} {place}: {detail}")
