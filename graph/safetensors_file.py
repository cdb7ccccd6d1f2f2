"""Write the weights of all ranks to safetensors files, reading each source tensor once.

A file is: 8 bytes with the header's length, a JSON header, the tensors. Alignment for memory
mapping needs gaps, which the format forbids, so a gap is a tensor of its own, `__pad_<n>__`. Each
source is read, every rank's part of it written, and freed: peak memory is one source and one part.
All files are written front to back, so their digests are computed on the way.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graph.digest import Digest, DigestWriter
from graph.weights import ShardTensor, read_whole

PAGE_BYTES = 4096
LINE_BYTES = 64
BIG_BYTES = 1 << 20
"""Tensors of this size start on a page of their own, smaller ones on a cache line."""
BLOCK_BYTES = 4 << 20
"""Strided parts are copied in blocks of about this size."""

DTYPES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.DOUBLE: "F64",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT8E5M2: "F8_E5M2",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT16: "I16",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT64: "U64",
    ir.DataType.UINT32: "U32",
    ir.DataType.UINT16: "U16",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
}
"""safetensors names; any other dtype is stored as flat bytes (U8) and only ONNX knows its type."""

Progress = Callable[[int, int], None]
"""Called with the bytes written and the bytes to write, over all files."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its file, in bytes from the start of the file."""

    offset: int
    length: int


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that has been written."""

    places: Mapping[str, Place]
    """By tensor name; tensors of equal contents share a place."""
    digest: Digest


@dataclass
class _Layout:
    """What goes where in one file."""

    header: dict[str, dict[str, object]] = field(default_factory=dict)
    parts: list[tuple[int, ir.TensorProtocol]] = field(default_factory=list)
    """(offset in the data, tensor), in file order."""
    names: dict[str, Hashable] = field(default_factory=dict)
    starts: dict[Hashable, Place] = field(default_factory=dict)
    """Place in the data, without the header, by key of the contents."""
    size: int = 0

    def add(self, name: str, tensor: ir.TensorProtocol) -> None:
        """Give a tensor its place, unless equal contents have one."""
        key = _key(tensor)
        self.names[name] = key
        if key in self.starts:
            return
        align = PAGE_BYTES if tensor.nbytes >= BIG_BYTES else LINE_BYTES
        gap = -self.size % align
        if gap and tensor.nbytes:
            self._place(f"__pad_{len(self.header)}__", "U8", [gap], gap)
        self.parts.append((self.size, tensor))
        self.starts[key] = Place(self.size, tensor.nbytes)
        named = tensor.dtype in DTYPES
        shape = list(tensor.shape.numpy()) if named else [tensor.nbytes]
        self._place(name, DTYPES.get(tensor.dtype, "U8"), shape, tensor.nbytes)

    def _place(self, name: str, dtype: str, shape: Sequence[int], nbytes: int) -> None:
        end = self.size + nbytes
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [self.size, end]}
        self.size = end

    def header_bytes(self) -> bytes:
        """Length and header, padded so that the data starts on a page."""
        entries = {"__metadata__": {"format": "tpcore"}, **self.header}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % PAGE_BYTES)
        return len(text).to_bytes(8, "little") + text


def write_weight_files(
    paths: Sequence[Path],
    tensors: Sequence[Mapping[str, ir.TensorProtocol]],
    progress: Progress | None = None,
) -> list[WeightFile]:
    """Write one new file per rank with the tensors named in `tensors[rank]`."""
    sources = _by_source(tensors)
    layouts = [_Layout() for _ in paths]
    for parts in sources:
        for rank, name, tensor in parts:
            layouts[rank].add(name, tensor)
    total = sum(layout.size for layout in layouts)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(DigestWriter(path)) for path in paths]
        starts = [_write_header(file, layout) for file, layout in zip(files, layouts, strict=True)]
        _write_data(files, layouts, starts, sources, total, progress)
    return [_finished(*one) for one in zip(files, layouts, starts, strict=True)]


_Part = tuple[int, str, ir.TensorProtocol]
"""(rank, name, tensor)."""


def _by_source(tensors: Sequence[Mapping[str, ir.TensorProtocol]]) -> list[list[_Part]]:
    """Group all ranks' tensors by the tensor they are parts of, in order of first appearance."""
    groups: dict[int, list[_Part]] = {}
    for rank, named in enumerate(tensors):
        for name, tensor in named.items():
            groups.setdefault(id(_source(tensor)), []).append((rank, name, tensor))
    return list(groups.values())


def _write_header(file: DigestWriter, layout: _Layout) -> int:
    file.write(layout.header_bytes())
    return file.size


def _write_data(
    files: Sequence[DigestWriter],
    layouts: Sequence[_Layout],
    starts: Sequence[int],
    sources: Sequence[Sequence[_Part]],
    total: int,
    progress: Progress | None,
) -> None:
    queues = [iter(layout.parts) for layout in layouts]
    waiting = [next(queue, None) for queue in queues]
    for parts in sources:
        whole = read_whole(_source(parts[0][2]))
        for rank, _, tensor in parts:
            head = waiting[rank]
            if head is None or head[1] is not tensor:
                continue  # equal contents are already there
            file = files[rank]
            file.write(bytes(starts[rank] + head[0] - file.size))
            for block in _blocks(tensor, whole):
                file.write(block)
            waiting[rank] = next(queues[rank], None)
        del whole
        if progress is not None:
            progress(sum(file.size for file in files) - sum(starts), total)


def _finished(file: DigestWriter, layout: _Layout, start: int) -> WeightFile:
    places = {}
    for name, key in layout.names.items():
        place = layout.starts[key]
        places[name] = Place(start + place.offset, place.length)
    return WeightFile(places, file.digest())


def _blocks(tensor: ir.TensorProtocol, whole: np.ndarray) -> Iterator[bytes | memoryview]:
    """The stored bytes of a tensor, given the contents of its source."""
    part = tensor.part_of(whole) if isinstance(tensor, ShardTensor) else whole
    if tensor.dtype.bitwidth < 8:
        yield ir.Tensor(np.ascontiguousarray(part), dtype=tensor.dtype).tobytes()
        return
    rows = [part]
    if not part.flags.c_contiguous:
        step = max(1, BLOCK_BYTES * part.shape[0] // part.nbytes)
        rows = [part[start : start + step] for start in range(0, part.shape[0], step)]
    for block in rows:
        if block.nbytes:
            yield np.ascontiguousarray(block).reshape(-1).view(np.uint8).data


def _source(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor.source if isinstance(tensor, ShardTensor) else tensor


def _key(tensor: ir.TensorProtocol) -> Hashable:
    return tensor.key if isinstance(tensor, ShardTensor) else id(tensor)
