"""The cases of an executor: segments in, values out, and buffers that a collective may write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.errors import ExecutionError

from .base import Executor
from .conformance_cases import DTYPES, values

Check = Callable[[Executor], None]
"""Raises ExecutionError if an executor does not do what it must."""


def executor_cases() -> list[Check]:
    """All of them."""
    shapes = [(), (0, 3), (5,), (2, 3)]
    passing = [partial(_pass, shape=shape, dtype=dtype) for dtype in DTYPES for shape in shapes]
    return [*passing, _own_buffers, _written_results, _copies_are_read_only]


def _pass(executor: Executor, shape: tuple[int, ...], dtype: type) -> None:
    """Array to tensor, through a segment, and back: unchanged."""
    step = executor.prepare(_model("Identity", dtype, len(shape)), 1)
    array = values(shape, dtype, 3)
    result = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
    same_kind = result.dtype == array.dtype and result.shape == array.shape
    if not same_kind or result.tobytes() != array.tobytes():
        raise ExecutionError(
            f"Identity of {array.dtype}{list(shape)} came back as {result.dtype}"
            f"{list(result.shape)}{', with other values' if same_kind else ''}."
        )


def _own_buffers(executor: Executor) -> None:
    """Writing into one result changes neither the operand nor another run's result."""
    step = executor.prepare(_model("Identity", np.float32, 1), 1)
    array = np.ones(4, np.float32)
    first = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
    second = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
    if first.flags.writeable:
        first[...] = 9
    if array.tolist() != [1, 1, 1, 1] or second.tolist() != [1, 1, 1, 1]:
        raise ExecutionError("two runs of a segment share the buffer of their results.")


def _written_results(executor: Executor) -> None:
    """What a collective leaves in its buffer is what the next segment reads."""
    step = executor.prepare(_model("Neg", np.float32, 1), 1)
    middle = step({"x": executor.to_tensor(np.ones(4, np.float32))})["y"]
    array = executor.to_array(middle)
    if not array.flags.writeable:
        array = array.copy()
    array[...] = 5
    result = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
    if result.tolist() != [-5, -5, -5, -5]:
        raise ExecutionError("a segment does not read what was written into its operand.")


def _copies_are_read_only(executor: Executor) -> None:
    """An array that can be written into is the tensor's own memory."""
    step = executor.prepare(_model("Neg", np.float32, 1), 1)
    tensor = step({"x": executor.to_tensor(np.ones(4, np.float32))})["y"]
    array = executor.to_array(tensor)
    if array.flags.writeable:
        array[...] = 5
        if executor.to_array(tensor).tolist() != [5, 5, 5, 5]:
            raise ExecutionError("what is written into a result is lost: make copies read-only.")


def _model(op_type: str, dtype: Any, ndim: int) -> ir.Model:
    """`y = op(x)`."""
    kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    dims = [f"d{dim}" for dim in range(ndim)]
    x = ir.Value(name="x", type=kind, shape=ir.Shape(dims))
    node = ir.node(op_type, [x])
    node.outputs[0].name, node.outputs[0].type = "y", kind
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="one")
    return ir.Model(graph, ir_version=10)
