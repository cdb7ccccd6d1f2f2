"""Weights as they lie on disk, and the parts of them that a rank holds, read only when asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graph.layout import Box, take_box


class ShardTensor(ir.LazyTensor):
    """One rank's part of a weight; nothing is read until `numpy()` is called, and nothing is kept.

    `source` is the whole tensor, `box` the ranges held per dim. With `zero` the part is all zeros
    of the box's shape: a partial sum on every rank but the one that holds the value.
    """

    def __init__(self, source: ir.TensorProtocol, box: Box, *, zero: bool = False) -> None:
        self.source = source
        self.box = box
        self.zero = zero
        shape = ir.Shape(
            size if held is None else sum(stop - start for start, stop in held)
            for size, held in zip(source.shape.numpy(), box)
        )
        super().__init__(self._evaluate, source.dtype, shape, cache=False, name=source.name)

    @property
    def key(self) -> tuple[int, Box, bool]:
        """Equal keys mean equal contents."""
        return (id(self.source), self.box, self.zero)

    def part_of(self, whole: np.ndarray) -> np.ndarray:
        """This part, given the contents of the whole source."""
        part = take_box(whole, self.box)
        return np.zeros_like(part) if self.zero else part

    def _evaluate(self) -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(self.part_of(read_whole(self.source)), order="C"))


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
