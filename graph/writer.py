"""Write models as ONNX files whose weights lie in a safetensors file beside them.

What is written stays within ONNX Runtime's limits: IR version 13 at most. Both kinds of tool read
the weights: ONNX as external data of `model.onnx`, safetensors by its own header.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from graph import dialect
from graph.digest import Digest, write_file
from graph.external_data import bytes_needed, tensors_of
from graph.safetensors_file import Place, Progress, write_weight_files

IR_VERSION = 13
"""Newest ONNX file format that ONNX Runtime reads."""
MODEL_FILE = "model.onnx"
WEIGHT_FILE = "model.safetensors"
INLINE_BYTES = 256
"""Tensors up to this size, shape constants among them, stay inside the ONNX file."""


Digests = dict[str, Digest]
"""By file name."""


def write_models(
    folders: Sequence[Path],
    ranks: Sequence[Mapping[str, ir.Model]],
    progress: Progress | None = None,
) -> list[Digests]:
    """Write the models of each rank, by file name, into its (existing, empty) folder.

    The models of a rank share one weight file; a tensor that several need is stored once, and one
    that several ranks need parts of is read once.
    """
    values = [_values_of(models) for models in ranks]
    tensors = [{name: _const(value) for name, value in named.items()} for named in values]
    files = write_weight_files([f / WEIGHT_FILE for f in folders], tensors, progress)
    written: list[Digests] = []
    for folder, models, named, file in zip(folders, ranks, values, files, strict=True):
        with _placed(named, file.places):
            protos = {name: to_proto(model) for name, model in models.items()}
        digests = {
            name: write_file(folder / name, proto.SerializeToString(deterministic=True))
            for name, proto in protos.items()
        }
        written.append({**digests, WEIGHT_FILE: file.digest})
    return written


def _values_of(models: Mapping[str, ir.Model]) -> dict[str, ir.Value]:
    """Stored values of all models of a rank; those of the first keep their names."""
    found: dict[str, ir.Value] = {}
    for file, model in models.items():
        prefix = f"{file}/" if found else ""
        found.update({prefix + name: value for name, value in _stored_values(model)})
    return found


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The protobuf form of a model, within ONNX Runtime's limits; small weights are embedded."""
    proto = ir.serde.serialize_model(model)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    domains = {opset.domain for opset in proto.opset_import}
    if dialect.DOMAIN not in domains:
        proto.opset_import.add(domain=dialect.DOMAIN, version=dialect.VERSION)
    for tensor in tensors_of(proto):
        _embed_foreign(tensor)
    return proto


def _stored_values(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Values whose contents go into the weight file, under names unique in the model."""
    names: set[str] = set()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            if tensor.nbytes <= INLINE_BYTES:
                continue
            while name in names:  # a subgraph may use a name of the graph around it
                name += "_"
            names.add(name)
            yield name, value


@contextlib.contextmanager
def _placed(values: Mapping[str, ir.Value], places: Mapping[str, Place]) -> Iterator[None]:
    """Let values point into the weight file, for the time of writing the graph."""
    before = {name: _const(value) for name, value in values.items()}
    try:
        for name, value in values.items():
            tensor, place = before[name], places[name]
            value.const_value = ir.ExternalTensor(
                WEIGHT_FILE,
                place.offset,
                place.length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or name,
            )
        yield
    finally:
        for name, value in values.items():
            value.const_value = before[name]


def _const(value: ir.Value) -> ir.TensorProtocol:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"initializer '{value.name}' has no contents")
    return tensor


def _embed_foreign(tensor: onnx.TensorProto) -> None:
    """Embed a tensor that still lies in the source model's external data."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if entries["location"] == WEIGHT_FILE:
        return
    with open(entries["location"], "rb") as file:
        file.seek(int(entries.get("offset", 0)))
        need = bytes_needed(ir.DataType(tensor.data_type), math.prod(tensor.dims))
        tensor.raw_data = file.read(need)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
