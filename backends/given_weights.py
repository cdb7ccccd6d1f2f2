"""Weights that are handed to an executor beside the model: in the model they are only named."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import onnx_ir as ir

INLINE_BYTES = 1024
"""Weights up to this size travel inside the model."""

RELEASE_SECONDS = 0.02
"""How often pages are let go; packing reads some 20 MiB meanwhile."""

GIVEN = "given-at-load"
"""Location of a weight that is handed over beside the model."""


def large_weights(segment: ir.Model) -> list[ir.Value]:
    """Initializers that are handed over beside the model."""
    return [
        value
        for value in segment.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and tensor.dtype != ir.DataType.STRING
        and tensor.dtype.bitwidth in (8, 16, 32, 64)
        and tensor.nbytes > INLINE_BYTES
    ]


USED_AS_GIVEN = {
    *("MatMul", "Gemm", "Gather", "MatMulNBits", "GatherBlockQuantized", "MoE", "QMoE"),
    *("GroupQueryAttention", "RotaryEmbedding"),
}
"""Ops whose weights no optimizer of onnxruntime rewrites in place. Before others it may: it moves a
Transpose behind an Add and transposes the Add's constant, under the same name."""


def used_as_given(weight: ir.Value) -> bool:
    """Whether a session may read the weight from our memory: no optimizer changes it."""
    users = [user for user, _ in weight.uses()]
    return all(user.op_type in USED_AS_GIVEN and user.graph is weight.graph for user in users)


@contextmanager
def named_only(weights: list[ir.Value]) -> Iterator[None]:
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
def inlined(segment: ir.Model) -> Iterator[None]:
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


def mapping_of(array: np.ndarray) -> mmap.mmap | None:
    """The memory map that `array` lies in, if any."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


@contextmanager
def releasing(arrays: Iterable[np.ndarray]) -> Iterator[None]:
    """While inside, and at the end, forget the pages of their files that are touched.

    Those that somebody reads come back by themselves. A session that packs its weights reads each
    once, and would else hold both the file and what it makes of it.
    """
    found = {id(mapping): mapping for a in arrays if (mapping := mapping_of(a)) is not None}
    mappings = [m for m in found.values() if hasattr(m, "madvise")]
    done = threading.Event()

    def release() -> None:
        for mapping in mappings:
            mapping.madvise(mmap.MADV_DONTNEED)

    def work() -> None:
        while not done.wait(RELEASE_SECONDS):
            release()

    thread = threading.Thread(target=work, daemon=True)
    if mappings:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if mappings:
            thread.join()
            release()


def give_back_freed_memory() -> None:
    """Return what packing has freed to the system; glibc would keep it for this process."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
