"""Exchanges between ranks with torch.distributed: gloo through the host, and NCCL, RCCL, oneCCL or
HCCL between devices.

Everything travels as bytes, so any dtype passes; sums are formed here, in rank order, on the device
where the operand lies, and never by the library: the same bits as every other communicator.

Which calls: gathers of equal parts (padded to the longest one where they differ), all-to-alls with
any parts, and broadcasts: those that all libraries have.

Streams: calls are queued on the current stream of the device, behind the segment that made the
operand and before the one that reads the result; nobody waits on the host.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.distributed as dist

from graph.dialect import AllGather, AllReduce, AllToAll, Broadcast, Collective, ReduceScatter
from graph.errors import ExecutionError
from graph.layout import Box, box_views

from .base import Communicator, Tensor
from .exec_torch.tensors import DTYPES, UNSIGNED


@dataclass(frozen=True)
class Chunks:
    """How an AllReduce is cut."""

    small_bytes: int
    """Up to this size any number of ranks gathers all operands and sums: fewer calls, more
    bytes."""
    chunk_bytes: int
    """The most that one call sends to another rank; bounds the memory of all parts."""


_ON_HOST = Chunks(16 << 10, 4 << 20)
_ON_DEVICE = Chunks(256 << 10, 64 << 20)
"""One-shot up to where NCCL's own switches to it on NVLink; not measured on hardware yet."""

_NARROW = (torch.float16, torch.bfloat16)
_REDUCE = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What types that torch lacks travel as, by size in bytes."""
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The name since torch 2.13, and the one before."""


class TorchCommunicator:
    """The ranks of a process group, whose tensors lie on `device`."""

    def __init__(
        self, group: Any, device: torch.device, meeting: Communicator | None = None
    ) -> None:
        self._group = group
        self._device = device
        self._meeting = meeting
        """Through which messages between ranks go; None where this is how they have met."""
        self._chunks = _ON_HOST if device.type == "cpu" else _ON_DEVICE
        self._scratch: dict[str, torch.Tensor] = {}
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.asynchronous = device.type != "cpu"

    def takes(self, tensor: Tensor) -> bool:
        """Torch's tensors on this communicator's device."""
        return isinstance(tensor, torch.Tensor) and tensor.device.type == self._device.type

    def run(self, op: Collective, operand: Tensor, *, keep: bool = False) -> Tensor:
        """Run one collective; AllReduce and Broadcast use a tensor that may be lost as buffer."""
        if isinstance(operand, np.ndarray):
            return self._run_array(op, operand, keep)
        with torch.inference_mode():
            in_place = self.size == 1 or isinstance(op, AllReduce | Broadcast)
            if keep and in_place:
                operand = operand.clone(memory_format=torch.contiguous_format)
            if self.size == 1:
                return operand
            return _METHODS[type(op)](self, op, operand.contiguous())

    def exchange(self, message: bytes) -> list[bytes]:
        """Every rank's message, in rank order."""
        if self._meeting is not None:
            return self._meeting.exchange(message)
        with torch.inference_mode():
            length = torch.tensor([len(message)])
            lengths = [int(n) for n in self._gather(length, [1] * self.size)]
            mine = torch.from_numpy(np.frombuffer(message, np.uint8).copy())
            return [part.numpy().tobytes() for part in self._gather(mine, lengths)]

    def abort(self, status: int) -> None:
        """End this process at once; its launcher and the watcher end the others."""
        if self._meeting is not None:
            self._meeting.abort(status)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def all_reduce(self, op: AllReduce, operand: torch.Tensor) -> torch.Tensor:
        """Reduce in place, chunk by chunk."""
        flat = operand.view(-1)
        # Two ranks send the same bytes either way, and one call beats two.
        gather = self.size == 2 or flat.nbytes <= self._chunks.small_bytes
        step = self._chunks.chunk_bytes // flat.itemsize * (1 if gather else self.size)
        for start in range(0, flat.numel(), step):
            chunk = flat[start : start + step]
            even = 0 if gather else chunk.numel() // self.size * self.size
            if even:
                self._scatter_chunk(op, chunk[:even])
            if even < chunk.numel():
                self._gather_chunk(op, chunk[even:])
        return operand

    def _gather_chunk(self, op: AllReduce, chunk: torch.Tensor) -> None:
        """Every rank gathers all operands and reduces them."""
        parts = self._buffer("gathered", self.size * chunk.numel(), chunk.dtype)
        self._all_gather(parts, chunk)
        _reduce_into(chunk, parts.view(self.size, -1), op.reduce)

    def _scatter_chunk(self, op: AllReduce, chunk: torch.Tensor) -> None:
        """Every rank reduces one of equal parts of the chunk, and the parts are gathered."""
        parts = self._buffer("parts", chunk.numel(), chunk.dtype)
        dist.all_to_all_single(_bytes(parts), _bytes(chunk), group=self._group)
        total = self._buffer("total", chunk.numel() // self.size, chunk.dtype)
        _reduce_into(total, parts.view(self.size, -1), op.reduce)
        self._all_gather(chunk, total)

    def _all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        _all_gather_single(_bytes(whole), _bytes(part), group=self._group)

    def all_gather(self, op: AllGather, operand: torch.Tensor) -> torch.Tensor:
        """Gather the parts and put each into its place."""
        whole = operand.new_empty(op.result_shape(tuple(operand.shape), self.rank))
        shapes = [op.operand_shape(tuple(whole.shape), rank) for rank in range(self.size)]
        if op.in_order(tuple(whole.shape)) and len(set(shapes)) == 1:
            if whole.numel():
                self._all_gather(whole.view(-1), operand.view(-1))
            return whole
        parts = self._gather(operand.view(-1), [math.prod(shape) for shape in shapes])
        op.fill(whole, [part.view(shape) for part, shape in zip(parts, shapes)])
        return whole

    def _gather(self, mine: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """The flat operands of all ranks, of which rank r has `sizes[r]` elements."""
        longest = max(sizes)
        received = self._buffer("gathered", self.size * longest, mine.dtype).view(self.size, -1)
        if longest:
            padded = mine
            if mine.numel() < longest:
                padded = self._buffer("padded", longest, mine.dtype)
                padded[: mine.numel()] = mine
            self._all_gather(received.view(-1), padded)
        return [row[:size] for row, size in zip(received, sizes)]

    def reduce_scatter(self, op: ReduceScatter, operand: torch.Tensor) -> torch.Tensor:
        """Send every rank its piece, then reduce the pieces that arrived."""
        shape, ranks = tuple(operand.shape), range(self.size)
        shapes = [op.result_shape(shape, rank) for rank in ranks]
        boxes = [op.piece_box(rank, operand.ndim) for rank in ranks]
        result = operand.new_empty(shapes[self.rank])
        parts = self._send_pieces(operand, boxes, shapes, [result.numel()] * self.size)
        if result.numel():
            _reduce_into(result.view(-1), parts.view(self.size, -1), op.reduce)
        return result

    def all_to_all(self, op: AllToAll, operand: torch.Tensor) -> torch.Tensor:
        """Send every rank its piece, then put the pieces that arrived into their places."""
        shape, ranks, me = tuple(operand.shape), range(self.size), self.rank
        boxes = [op.piece_box(target, operand.ndim) for target in ranks]
        outgoing = [op.piece_shape(shape, me, target) for target in ranks]
        incoming = [op.piece_shape(shape, source, me) for source in ranks]
        sizes = [math.prod(shape) for shape in incoming]
        arrived = self._send_pieces(operand, boxes, outgoing, sizes).split(sizes)
        whole = operand.new_empty(op.result_shape(shape, me))
        op.fill(whole, [piece.view(shape) for piece, shape in zip(arrived, incoming)])
        return whole

    def _send_pieces(
        self,
        operand: torch.Tensor,
        boxes: Sequence[Box],
        shapes: Sequence[tuple[int, ...]],
        incoming: Sequence[int],
    ) -> torch.Tensor:
        """Send rank r the part of `operand` in `boxes[r]`; what arrived, one after the other."""
        sizes, item = [math.prod(shape) for shape in shapes], operand.itemsize
        send = self._buffer("sent", sum(sizes), operand.dtype)
        for box, shape, piece in zip(boxes, shapes, send.split(sizes)):
            for held, part in box_views(operand, box, piece.view(shape)):
                part[...] = held
        received = self._buffer("parts", sum(incoming), operand.dtype)
        dist.all_to_all_single(
            _bytes(received),
            _bytes(send),
            [size * item for size in incoming],
            [size * item for size in sizes],
            group=self._group,
        )
        return received

    def broadcast(self, op: Broadcast, operand: torch.Tensor) -> torch.Tensor:
        """Receive the root's value in place."""
        if operand.numel():
            dist.broadcast(_bytes(operand.view(-1)), group_src=op.root, group=self._group)
        return operand

    def _run_array(self, op: Collective, array: np.ndarray, keep: bool) -> np.ndarray:
        """Run on a numpy array by way of a tensor on this communicator's device."""
        given = _to_tensor(array, isinstance(op, AllReduce | ReduceScatter))
        operand = given.to(self._device)
        result = self.run(op, operand, keep=keep and operand is given)
        if result is given and given.data_ptr() == array.__array_interface__["data"][0]:
            return array
        host: np.ndarray = _bytes(result.cpu().view(-1)).numpy()
        return host.view(array.dtype).reshape(result.shape)

    def _buffer(self, use: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A buffer of `size` elements that is reused; it grows to the largest operand at most."""
        needed = size * dtype.itemsize
        held = self._scratch.get(use)
        if held is None or held.numel() < needed:
            held = torch.empty(needed, dtype=torch.uint8, device=self._device)
            self._scratch[use] = held
        return held[:needed].view(dtype)


_METHODS: dict[type[Any], Callable[[TorchCommunicator, Any, torch.Tensor], torch.Tensor]] = {
    AllReduce: TorchCommunicator.all_reduce,
    AllGather: TorchCommunicator.all_gather,
    ReduceScatter: TorchCommunicator.reduce_scatter,
    AllToAll: TorchCommunicator.all_to_all,
    Broadcast: TorchCommunicator.broadcast,
}


def _bytes(flat: torch.Tensor) -> torch.Tensor:
    """A flat contiguous tensor as bytes: the libraries know few types."""
    return flat.view(torch.uint8)


def _to_tensor(array: np.ndarray, reduced: bool) -> torch.Tensor:
    """A tensor on the memory of `array`, or of a copy where that cannot be shared."""
    dtype = DTYPES.get(ir.DataType.from_numpy(array.dtype))
    if dtype is None and reduced:
        raise _irreducible(array.dtype)
    flat = np.require(array, requirements=["C", "W"]).reshape(-1).view(np.uint8)
    kind = dtype or _CARRIERS[array.dtype.itemsize]
    return torch.from_numpy(flat).view(kind).view(array.shape)


def _irreducible(dtype: Any) -> ExecutionError:
    return ExecutionError(f"torch cannot reduce {dtype}. Exchange with --collectives mpi.")


def _reduce_into(total: torch.Tensor, parts: torch.Tensor, reduce: str) -> None:
    """Reduce the rows of `parts` in rank order into `total`; 16-bit floats in float32."""
    function = _REDUCE[reduce]
    if parts.dtype in UNSIGNED or (parts.is_floating_point() and parts.itemsize == 1):
        raise _irreducible(parts.dtype)
    if parts.dtype in _NARROW and reduce == "sum":
        wide = parts[0].float()
        for part in parts[1:]:
            wide += part
        total.copy_(wide)
        return
    function(parts[0], parts[1], out=total)
    for part in parts[2:]:
        function(total, part, out=total)
