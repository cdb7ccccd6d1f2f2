"""Forms of an ONNX file that say nothing of their own, as the plain ones that the rest knows.

- Sparse weights become dense: onnxruntime makes them dense too when it loads them.
- Sizes below zero, which some exporters write for unknown ones, become unknown.
- The types of results that are maps, which onnx_ir lacks, or were sparse are left out: the ops that
  make them say which they are.
- Domains whose ops are used without an import, as onnxruntime lets its own be, are imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

MAX_BYTES = 2**31 - 1
"""A protobuf message holds no more."""
UNREADABLE = (ValueError, IndexError, TypeError, KeyError, OverflowError)
"""What reading a sparse tensor that makes no sense raises."""


def make_dense(proto: onnx.ModelProto) -> list[str]:
    """Replace the sparse weights of all graphs in place; returns what is wrong with any of them.

    Those are sparse initializers and what Constant nodes hold.
    """
    violations: list[str] = []
    for graph in _graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            dense = _dense(sparse, violations)
            if dense is not None:
                graph.initializer.append(dense)
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                _make_value_dense(attribute, violations)
    return violations


def import_domains(proto: onnx.ModelProto) -> None:
    """Import version 1 of every domain but the standard one that a graph uses without an import."""
    known = {opset.domain for opset in proto.opset_import}
    used = {node.domain for graph in _graphs(proto.graph) for node in graph.node}
    for domain in sorted(used - known - {"", "ai.onnx"}):
        proto.opset_import.add(domain=domain, version=1)


def drop_odd_types(graph: onnx.GraphProto) -> None:
    """Forget sizes below zero, and the types of results that are maps or sparse."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if size.dim_value < 0:
                size.ClearField("dim_value")
    for value in (*graph.output, *graph.value_info):
        kind = value.type
        while kind.WhichOneof("value") == "sequence_type":
            kind = kind.sequence_type.elem_type
        if kind.WhichOneof("value") in ("map_type", "sparse_tensor_type"):
            value.ClearField("type")


def _make_value_dense(attribute: onnx.AttributeProto, violations: list[str]) -> None:
    if not attribute.HasField("sparse_tensor"):
        return
    dense = _dense(attribute.sparse_tensor, violations)
    if dense is not None:
        attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, violations: list[str]) -> onnx.TensorProto | None:
    name, dims = sparse.values.name, tuple(sparse.dims)
    try:
        values, indices = _numbers(sparse.values), _numbers(sparse.indices)
        size = math.prod(dims) * values.itemsize
        if size > MAX_BYTES or min(dims, default=0) < 0:
            raise ValueError(f"its {list(dims)} would be {size} bytes")
        dense = np.zeros(dims, values.dtype)
        places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        dense.reshape(-1)[places] = values
    except UNREADABLE as error:
        violations.append(f"sparse tensor '{name}' cannot be read: {error}")
        return None
    return numpy_helper.from_array(dense, name)


def _numbers(tensor: onnx.TensorProto) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError("its numbers lie in another file")
    return numpy_helper.to_array(tensor)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and the bodies of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _graphs(inner)
