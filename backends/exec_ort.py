"""Runs segments with ONNX Runtime on CPU. The one file that imports onnxruntime.

Values pass between segments as OrtValues, never copied: what one session returns is fed to the
next, and a collective works in place on a view of the same buffer. Measured per call with two
inputs and two outputs: OrtValues 4 us, an IOBinding bound again 10 us, numpy arrays 6.5 us.

Weights above `INLINE_BYTES` are handed to a session beside a model that only names them:
- memory-mapped ones are given twice, as external initializers (so that the optimizer can read them)
  and as user-owned initializers (so that the session uses the mapped pages and makes no copy);
- ones that were read into memory are given as external initializers only: the session makes the one
  copy it needs (packed for MatMul, or plain) and ours is let go.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from graph.errors import ExecutionError

from .base import Tensor
from .placement import local_ranks, usable_cores

INLINE_BYTES = 1024
"""Weights up to this size travel inside the model."""

GIVEN = "given-at-load"
"""Location of a weight that is handed over beside the model."""

_C = ort.capi._pybind_state
_CPU = ort.OrtDevice.make("cpu", 0)._get_c_device()
_QUIET = 4
"""onnxruntime's log level 'fatal': errors come as exceptions, once."""
_CARRIERS = {1: np.uint8, 2: np.uint16}
"""What types that numpy lacks (bfloat16, float8) are passed as, by size in bytes."""


class OrtTensor:
    """An OrtValue, and the numpy array whose memory it borrows, if any."""

    __slots__ = ("owner", "value")

    def __init__(self, value: Any, owner: np.ndarray | None = None) -> None:
        self.value = value
        self.owner = owner


class OrtExecutor:
    """Makes one session per segment."""

    def __init__(self, ranks_here: int | None = None) -> None:
        self._ranks_here = local_ranks() if ranks_here is None else ranks_here

    def prepare(self, segment: ir.Model, threads: int) -> OrtStep:
        """Make a session of a plain ONNX model. Raises ExecutionError if it refuses the model."""
        options = self._options(threads)
        weights = _large_weights(segment)
        with _named_only(weights), _inlined(segment):
            proto = ir.to_proto(segment).SerializeToString()
        given = _hand_over(options, weights)
        try:
            session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _explain(error, segment.graph, "load") from error
        mapped = [pair for pair in given if _mapping_of(pair[1]) is not None]
        for _, array in mapped:
            _release_pages(array)
        return OrtStep(session, segment.graph, mapped)

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """Wrap an array without a copy (a strided one is made contiguous first)."""
        if not array.flags.c_contiguous:
            array = array.copy()
        return OrtTensor(_wrap(array), array)

    def to_array(self, tensor: Tensor) -> np.ndarray:
        """A writable view of an OrtValue's memory, which lives as long as the view."""
        value = tensor.value
        if tensor.owner is not None:
            return tensor.owner  # type: ignore[no-any-return]
        try:
            return value.numpy()  # type: ignore[no-any-return]
        except RuntimeError:
            return _view(value)

    def _options(self, threads: int) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        # One pool per session: a pool that spins after its run would take the next one's cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._ranks_here * threads > usable_cores():
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class OrtStep:
    """One segment's session."""

    def __init__(self, session: ort.InferenceSession, graph: ir.Graph, weights: list[Any]) -> None:
        self._session = session
        self._graph = graph
        self._weights = weights
        """The mapped weights that the session reads in place: they must live as long as it does."""
        self._inputs = tuple(value.name or "" for value in graph.inputs)
        self._outputs = [value.name or "" for value in graph.outputs]
        self._run = session._sess.run_with_ort_values

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the segment on the values it needs. Raises ExecutionError."""
        feeds = {name: values[name].value for name in self._inputs}
        try:
            results = self._run(feeds, self._outputs, None)
        except Exception as error:
            raise _explain(error, self._graph, "run") from error
        return {name: OrtTensor(value) for name, value in zip(self._outputs, results)}


def _wrap(array: np.ndarray) -> Any:
    """An OrtValue on the memory of `array`, which the caller keeps alive."""
    if array.dtype.kind in "biufc" and array.dtype not in _FOREIGN:
        return _C.OrtValue.ortvalue_from_numpy(array, _CPU)
    onnx_type = ir.DataType.from_numpy(array.dtype).value
    carrier = array.view(_CARRIERS[array.dtype.itemsize])
    return _C.OrtValue.ortvalue_from_numpy_with_onnx_type(carrier, onnx_type)


_FOREIGN = {
    np.dtype(kind)
    for kind in (
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
    )
}
"""Types with an ONNX name and no numpy name."""


class _Memory:
    """Lets numpy view an OrtValue's memory and keeps the OrtValue alive meanwhile."""

    def __init__(self, value: Any, typestr: str) -> None:
        self.value = value
        self.__array_interface__ = {
            "data": (value.data_ptr(), False),
            "shape": tuple(value.shape()),
            "typestr": typestr,
            "version": 3,
        }


def _view(value: Any) -> np.ndarray:
    """View an OrtValue whose type numpy lacks as its ml_dtypes type."""
    dtype = np.dtype(ir.DataType(value.element_type()).numpy())
    return np.asarray(_Memory(value, f"|V{dtype.itemsize}")).view(dtype)


def _large_weights(segment: ir.Model) -> list[ir.Value]:
    """Initializers that are handed over beside the model."""
    return [
        value
        for value in segment.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and tensor.dtype != ir.DataType.STRING
        and tensor.dtype.bitwidth in (8, 16, 32, 64)
        and tensor.nbytes > INLINE_BYTES
    ]


@contextmanager
def _named_only(weights: list[ir.Value]) -> Iterator[None]:
    """While inside, the model has of these weights only name, type and shape."""
    tensors = [value.const_value for value in weights]
    for value, tensor in zip(weights, tensors):
        if tensor is not None and value.name:
            value.const_value = ir.ExternalTensor(
                GIVEN,
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=_shape(tensor),
                name=value.name,
            )
    try:
        yield
    finally:
        for value, tensor in zip(weights, tensors):
            value.const_value = tensor


@contextmanager
def _inlined(segment: ir.Model) -> Iterator[None]:
    """While inside, small weights that lie in a file are part of the model."""
    small = [
        (value, tensor)
        for value in segment.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor) and value.name
        if str(tensor.location) != GIVEN
    ]
    for value, tensor in small:
        value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
    try:
        yield
    finally:
        for value, tensor in small:
            value.const_value = tensor


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(tensor.shape.numpy())


def _hand_over(
    options: ort.SessionOptions, weights: list[ir.Value]
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
        if _mapping_of(array) is not None:
            options.add_initializer(weight.name, value)
    if names:
        options.add_external_initializers(names, [value for value, _ in given])
    return given


def _mapping_of(array: np.ndarray) -> mmap.mmap | None:
    """The memory map that `array` lies in, if any."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def _release_pages(array: np.ndarray) -> None:
    """Forget the pages that loading touched; those that a kernel reads come back by themselves."""
    mapping = _mapping_of(array)
    if mapping is not None and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _explain(error: Exception, graph: ir.Graph, verb: str) -> ExecutionError:
    """Name the node that onnxruntime's text names, or else the segment."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    named = re.search(r"Name:'([^']+)'", text) or re.search(r"Node \(([^)]+)\)", text)
    nodes = [node.name for node in graph if node.name]
    between = f" {nodes[0]} .. {nodes[-1]}" if nodes else " of nodes without a name"
    place = f"node '{named.group(1)}'" if named else f"the segment{between}"
    detail = text.split("Status Message: ")[-1].splitlines()[0] if text else type(error).__name__
    return ExecutionError(f"onnxruntime cannot {verb} {place}: {detail}")
