"""Weights as they lie on disk, and the parts of them that a rank holds, read only when asked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir

from graph.layout import Box, take_box
from graph.packing import bytes_of_codes, pack, unpack


class CodesTensor(ir.LazyTensor):
    """A weight of codes several to a byte, which is split code by code.

    Bytes are no unit to split by: two codes of one may belong to two ranks. The contents are bytes
    as before, u8[..., bytes], every row of `count` codes padded to whole bytes; a rank's part is
    cut out of the codes and packed again.
    """

    def __init__(self, source: ir.TensorProtocol, bits: int, count: int) -> None:
        self.bits = bits
        self.count = count
        sizes = source.shape.numpy()
        row = bytes_of_codes(count, bits)
        # Older models hold the rows of a matrix one after another, in one dim.
        rows = (sizes[0] // row,) if len(sizes) == 1 else sizes[:-1]
        self.source = source
        super().__init__(
            self._evaluate, source.dtype, ir.Shape([*rows, row]), cache=False, name=source.name
        )

    def codes_of(self, packed: np.ndarray) -> np.ndarray:
        """The codes in the contents of this tensor, u8[..., count]."""
        return unpack(packed, self.bits)[..., : self.count]

    def _evaluate(self) -> ir.TensorProtocol:
        return ir.Tensor(read_whole(self.source).reshape(self.shape.numpy()))


def dims_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Sizes by which a weight is split: those of its shape, or of its codes where packed."""
    sizes = tuple(int(size) for size in tensor.shape.numpy())
    return (*sizes[:-1], tensor.count) if isinstance(tensor, CodesTensor) else sizes


class ShardTensor(ir.LazyTensor):
    """One rank's part of a weight; nothing is read until `numpy()` is called, and nothing is kept.

    `source` is the whole tensor, `box` the ranges held per dim. With `zero` the part is all zeros
    of the box's shape: a partial sum on every rank but the one that holds the value.
    """

    def __init__(self, source: ir.TensorProtocol, box: Box, *, zero: bool = False) -> None:
        self.source = source
        self.box = box
        self.zero = zero
        sizes = [
            size if held is None else sum(stop - start for start, stop in held)
            for size, held in zip(dims_of(source), box)
        ]
        if isinstance(source, CodesTensor):
            sizes[-1] = bytes_of_codes(sizes[-1], source.bits)
        shape = ir.Shape(sizes)
        super().__init__(self._evaluate, source.dtype, shape, cache=False, name=source.name)

    @property
    def key(self) -> tuple[int, Box, bool]:
        """Equal keys mean equal contents."""
        return (id(self.source), self.box, self.zero)

    def part_of(self, whole: np.ndarray) -> np.ndarray:
        """This part, given the contents of the whole source."""
        if isinstance(self.source, CodesTensor):
            part = pack(take_box(self.source.codes_of(whole), self.box), self.source.bits)
        else:
            part = take_box(whole, self.box)
        return np.zeros_like(part) if self.zero else part

    def _evaluate(self) -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(self.part_of(read_whole(self.source)), order="C"))


def identity(tensor: ir.TensorProtocol) -> Hashable | None:
    """Equal for tensors of equal contents, whichever model they were read with; None if unknown.

    Holds as long as nobody writes into the files.
    """
    shape = tuple(tensor.shape.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        return str(tensor.path), tensor.offset, tensor.dtype, shape
    if isinstance(tensor, CodesTensor):
        source = identity(tensor.source)
        return source and (source, tensor.bits, tensor.count, shape)
    if isinstance(tensor, ShardTensor):
        source = identity(tensor.source)
        return source and (source, tensor.box, tensor.zero)
    return None


def bytes_of(dtype: ir.DataType | None, count: int) -> int:
    """Bytes of `count` elements; strings count as pointers, unknown types as floats."""
    if dtype is None:
        return 4 * count
    return 8 * count if dtype == ir.DataType.STRING else dtype.bitwidth * count // 8


def read_whole(tensor: ir.TensorProtocol) -> np.ndarray:
    """Contents of a tensor; external data is read into memory of its own, no page stays mapped."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    if tensor.dtype.bitwidth >= 8:
        # Reading, unlike copying from a mapping, does not hold the contents twice.
        offset, dtype = tensor.offset or 0, tensor.dtype.numpy()
        contents = np.fromfile(tensor.path, dtype, count=tensor.size, offset=offset)
        return contents.reshape(tensor.shape.numpy())
    contents = np.array(tensor.numpy())
    tensor.release()
    return contents


INDEX_BITS = 32
"""Integers of as many bits are indices, shapes and sums; quantised weights have fewer."""


def is_index(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant holds indices or shapes, as opposed to weights, quantised or not."""
    return tensor.dtype.is_integer() and tensor.dtype.bitwidth >= INDEX_BITS


def transposed(source: ir.TensorProtocol, perm: Sequence[int]) -> ir.LazyTensor:
    """`source` with its dims permuted when it is read."""
    sizes = source.shape.numpy()

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(np.transpose(read_whole(source), perm), order="C"))

    shape = ir.Shape([sizes[axis] for axis in perm])
    return ir.LazyTensor(evaluate, source.dtype, shape, name=source.name)


def has_type(array: np.ndarray, dtype: ir.DataType) -> bool:
    """Whether an array holds elements of a type; numpy has several types for strings."""
    if dtype == ir.DataType.STRING:
        return array.dtype.kind in "OSU"
    return array.dtype == dtype.numpy()


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new constant of `graph`, by this name or one like it."""
    while name in graph.initializers:
        name += "_"
    value = ir.val(name, tensor.dtype, list(tensor.shape.numpy()), const_value=tensor)
    graph.register_initializer(value)
    return value
