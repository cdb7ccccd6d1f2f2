"""Where a model's external data may lie, and whether it is all there.

The rule has two roots, as ONNX Runtime's: the real file must lie under the folder of the model, or
under the folder of the file that the model's path links to. The second makes the Hugging Face cache
work, where model and data are links into one `blobs` folder. Hard links are allowed: they cannot be
told from the copies that package managers make.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

TYPED_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.STRING: "string_data",
    **dict.fromkeys(
        (
            ir.DataType.INT32,
            ir.DataType.INT16,
            ir.DataType.INT8,
            ir.DataType.UINT16,
            ir.DataType.UINT8,
            ir.DataType.BOOL,
            ir.DataType.FLOAT16,
            ir.DataType.BFLOAT16,
        ),
        "int32_data",
    ),
}
"""Field with one entry per element; dtypes left out pack several, or a part, into one entry."""


@dataclass(frozen=True)
class DataFile:
    """One external data file: where it really lies, or why it is refused."""

    path: str = ""
    size_bytes: int = 0
    refusal: str = ""


def check_external_data(proto: onnx.ModelProto, model_path: Path) -> list[str]:
    """Violations of all tensors; where there is none, external locations become real paths."""
    violations = []
    files: dict[str, DataFile] = {}
    for tensor in tensors_of(proto):
        violation = _check_tensor(tensor, model_path, files)
        if violation:
            violations.append(violation)
    return list(dict.fromkeys(violations))


def data_files(proto: onnx.ModelProto, model_path: Path) -> tuple[dict[str, int], list[str]]:
    """Sizes in bytes of all external data files, by location in the model, and violations."""
    tensors = [t for t in tensors_of(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    locations = sorted({_external_entries(tensor).get("location", "") for tensor in tensors})
    found = {location: find_data_file(location, model_path) for location in locations}
    violations = [file.refusal for file in found.values() if file.refusal]
    return {location: file.size_bytes for location, file in found.items()}, violations


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a model: initializers and attributes, subgraphs and functions."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _check_tensor(
    tensor: onnx.TensorProto, model_path: Path, files: dict[str, DataFile]
) -> str | None:
    try:
        dtype = ir.DataType(tensor.data_type)
        count = math.prod(tensor.dims)
        if dtype == ir.DataType.UNDEFINED or any(dim < 0 for dim in tensor.dims):
            raise ValueError
    except ValueError:
        return (
            f"tensor '{tensor.name}' has dtype number {tensor.data_type} and shape "
            f"{list(tensor.dims)}, which is no tensor type"
        )
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _check_external(tensor, dtype, count, model_path, files)
    return _check_embedded(tensor, dtype, count)


def _check_embedded(tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> str | None:
    if tensor.HasField("raw_data"):
        have, need, unit = len(tensor.raw_data), bytes_needed(dtype, count), "bytes"
    elif dtype in TYPED_FIELDS:
        have, need, unit = len(getattr(tensor, TYPED_FIELDS[dtype])), count, "elements"
    else:
        return None
    if have == need:
        return None
    return (
        f"tensor '{tensor.name}' {dtype.name}{list(tensor.dims)} needs {need} {unit}, "
        f"the file holds {have}"
    )


def _check_external(
    tensor: onnx.TensorProto,
    dtype: ir.DataType,
    count: int,
    model_path: Path,
    files: dict[str, DataFile],
) -> str | None:
    if dtype == ir.DataType.STRING:
        return f"tensor '{tensor.name}' keeps strings in external data, which ONNX does not allow"
    entries = _external_entries(tensor)
    location = entries.get("location", "")
    if location not in files:
        files[location] = find_data_file(location, model_path)
    file = files[location]
    if file.refusal:
        return file.refusal
    what = f"tensor '{tensor.name}' {dtype.name}{list(tensor.dims)}"
    violation = _check_extent(what, entries, bytes_needed(dtype, count), location, file)
    if violation is None:
        _set_location(tensor, file.path)
    return violation


def _check_extent(
    what: str, entries: dict[str, str], need: int, location: str, file: DataFile
) -> str | None:
    offset, length = _number(entries.get("offset", "0")), _number(entries.get("length", str(need)))
    if offset is None or length is None:
        return (
            f"{what} has offset '{entries.get('offset')}' and length '{entries.get('length')}' "
            f"in '{location}', which are not both numbers of bytes"
        )
    if length != need:
        return f"{what} needs {need} bytes, its external data in '{location}' states {length}"
    if offset + need > file.size_bytes:
        return (
            f"{what} needs bytes {offset} to {offset + need} of '{location}', which has "
            f"{file.size_bytes}: the file is truncated or of another model, copy it again"
        )
    return None


def find_data_file(location: str, model_path: Path) -> DataFile:
    """Resolve an external location by the two-root rule and look the file up."""
    shown = f"external data '{location}'"
    parts = location.split("/")
    if not location or "\0" in location or os.path.isabs(location) or ".." in parts:
        return DataFile(
            refusal=f"{shown.encode('unicode_escape').decode()} is not a plain path inside the "
            f"model's folder '{model_path.parent}'"
        )
    real = os.path.realpath(model_path.parent / location)
    try:
        status = os.stat(real)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return DataFile(refusal=f"{shown} cannot be opened at '{real}' ({reason})")
    roots = (os.path.realpath(model_path.parent), os.path.dirname(os.path.realpath(model_path)))
    if not any(_inside(real, root) for root in roots):
        return DataFile(
            refusal=f"{shown} is a link to '{real}', outside the model's folder '{roots[0]}'; "
            "copy the file there"
        )
    if not stat.S_ISREG(status.st_mode):
        return DataFile(refusal=f"{shown} is not a regular file")
    return DataFile(real, status.st_size)


def bytes_needed(dtype: ir.DataType, count: int) -> int:
    """Bytes that `count` elements take when stored, 4-bit and 2-bit types packed."""
    return (count * dtype.bitwidth + 7) // 8


def _inside(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _set_location(tensor: onnx.TensorProto, path: str) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = path
