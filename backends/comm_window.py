"""Exchanges between the ranks of one host through memory that they share.

Every collective is some rounds of a `Window`: write, meet, read. What a round needs to know (views
of the slots, boxes, who has how much) is worked out once per collective and shape and kept, so a
call costs a few microseconds of Python. Operands larger than a slot go in chunks.

AllReduce of two ranks, and small ones of more: every rank reads all operands and sums them, one
meeting. Larger ones of more ranks: every rank sums its share of each chunk into its slot, and all
read the sums, two meetings, each byte summed once. Larger ones of float32 that lie in the ranks'
heaps (`heaps.py`): compiled code sums them there, two meetings and no copy. Sums run in rank order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dialect import AllGather, AllReduce, AllToAll, Broadcast, Collective, ReduceScatter
from graph.layout import box_of, put_box

from .base import Communicator, Tensor
from .heaps import share_heaps
from .native import Link, link_through, runs
from .placement import core_numbers
from .shared_memory import SharedMemory, map_memory, shared
from .sums import NARROW, reduction
from .swap import cut, in_chunks, swap
from .window import SLOT_BYTES, Fence, Window, needs_fence, window_bytes

SMALL_BYTES = 32 << 10
"""Up to this size more than two ranks all sum everything: one meeting less, more bytes read."""
CHUNK_BYTES = 512 << 10
"""Bytes of an operand that are summed at a time, so that they come from the second-level cache."""
_MAX_PLANS = 1024

Shape = tuple[int, ...]
Plan = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Runs one collective on an operand of one shape; the second array may serve for the result."""


class WindowCommunicator:
    """The ranks of one host; messages and the end of the job go as they did when the ranks met."""

    asynchronous = False

    def __init__(self, meeting: Communicator, window: Window, native: Link | None = None) -> None:
        self.rank, self.size = meeting.rank, meeting.size
        self.exchange, self.abort = meeting.exchange, meeting.abort
        self._window = window
        self.native = native
        """How compiled code runs some collectives in the same rounds, where there is any."""
        self._plans: dict[tuple[int, Shape, Any], tuple[Collective, bool, Plan]] = {}

    def takes(self, tensor: Tensor) -> bool:
        """Nothing but numpy arrays."""
        return False

    def run(self, op: Collective, operand: Tensor, *, keep: bool = False) -> Tensor:
        """Run one collective; AllReduce and Broadcast use the operand as the buffer."""
        # By identity: to hash an op with its layouts costs more than to run it. The plan holds the
        # op, so no other can have its number.
        found = self._plans.get((id(op), operand.shape, operand.dtype))
        _, in_place, plan = found or self._make_plan(op, operand.shape, operand.dtype)
        flags = operand.flags
        if not flags.c_contiguous:
            operand, keep = operand.copy(), False
        elif in_place and (keep or not flags.writeable):
            return plan(operand, np.empty_like(operand))
        return plan(operand, operand)

    def _make_plan(
        self, op: Collective, shape: Shape, dtype: np.dtype[Any]
    ) -> tuple[Collective, bool, Plan]:
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        make: Callable[[WindowCommunicator, Any, Shape, np.dtype[Any]], Plan] = _MAKERS[type(op)]
        made = op, isinstance(op, AllReduce | Broadcast), make(self, op, shape, dtype)
        self._plans[id(op), shape, dtype] = made
        return made

    def all_reduce(self, op: AllReduce, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Reduce chunk by chunk, or by compiled code where it may find operands in heaps."""
        size, native = math.prod(shape), self.native
        in_heaps = native is not None and native.has_heaps and size * dtype.itemsize > SMALL_BYTES
        if native is not None and in_heaps and runs(op, ir.DataType.from_numpy(dtype).name):
            return native.sum
        step = min(CHUNK_BYTES, self._window.slot_bytes) // dtype.itemsize
        make = self._sum_all
        # To widen 16-bit floats costs more than a meeting, so each is widened by one rank.
        if size * dtype.itemsize > SMALL_BYTES and (self.size > 2 or dtype in NARROW):
            make = self._sum_shares
        if size <= step:
            return make(op, shape, dtype) if size else lambda operand, total: total
        whole, rest = make(op, (step,), dtype), make(op, (size % step or step,), dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            source, target = operand.reshape(-1), total.reshape(-1)
            for begin in range(0, size, step):
                end = begin + step
                chunk = whole if end <= size else rest
                chunk(source[begin:end], target[begin:end])
            return total

        return run

    def _sum_all(self, op: AllReduce, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Every rank sums everything."""
        window, rank = self._window, self.rank
        views = window.views([shape] * self.size, dtype)
        reduce_into = reduction(op.reduce, dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            parts = views[window.turn]
            np.copyto(parts[rank], operand)
            window.meet()
            if rank < 2:  # one stream of memory less
                parts = [*parts]
                parts[rank] = operand
            reduce_into(total, parts)
            return total

        return run

    def _sum_shares(self, op: AllReduce, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Every rank sums its share into its slot, and all copy the sums."""
        window, rank, ranks = self._window, self.rank, range(self.size)
        size = math.prod(shape)
        views = window.views([(size,)] * self.size, dtype)
        ends = [size * (r + 1) // self.size for r in ranks]
        shares = [slice(begin, end) for begin, end in zip([0, *ends], ends)]
        mine = shares[rank]
        reduce_into = reduction(op.reduce, dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            parts, sums = views[window.turn], views[1 - window.turn]
            np.copyto(parts[rank], operand.reshape(-1))
            window.meet()
            reduce_into(sums[rank][mine], [part[mine] for part in parts])
            window.meet()
            flat = total.reshape(-1)
            for share, held in zip(shares, sums):
                np.copyto(flat[share], held[share])
            return total

        return run

    def all_gather(self, op: AllGather, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Put every rank's part into its place, straight from its slot where it fits."""
        window, rank = self._window, self.rank
        whole_shape = op.result_shape(shape, rank)
        shapes = [op.operand_shape(whole_shape, r) for r in range(self.size)]
        boxes = [box_of(op.dims, op.layouts, r, len(shape)) for r in range(self.size)]
        placed = list(zip(boxes, range(self.size)))[::-1]
        if max(map(math.prod, shapes)) * dtype.itemsize > window.slot_bytes:
            return self._gather_in_chunks(op, shapes, whole_shape, dtype)
        views = window.views(shapes, dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            parts = views[window.turn]
            np.copyto(parts[rank], operand)
            window.meet()
            whole = np.empty(whole_shape, dtype)
            for box, source in placed:
                put_box(whole, box, parts[source])
            return whole

        return run

    def _gather_in_chunks(
        self, op: AllGather, shapes: Sequence[Shape], whole: Shape, dtype: np.dtype[Any]
    ) -> Plan:
        rows = [[shape] * self.size for shape in shapes]
        receive = in_chunks(self._window, rows, dtype, same_for_all=True)
        in_order = op.in_order(whole)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            flat = receive([operand])
            return flat.reshape(whole) if in_order else op.assemble(cut(flat, shapes))

        return run

    def reduce_scatter(self, op: ReduceScatter, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Hand every rank its piece, then reduce the pieces that came."""
        ranks = range(self.size)
        pieces = [op.result_shape(shape, target) for target in ranks]
        exchange = swap(self._window, [pieces] * self.size, dtype)
        reduce_into = reduction(op.reduce, dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            parts = exchange([op.piece(operand, target) for target in ranks])
            result = np.empty(pieces[self.rank], dtype)
            reduce_into(result, parts)
            return result

        return run

    def all_to_all(self, op: AllToAll, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Hand every rank its piece, then put the pieces that came into their places."""
        ranks = range(self.size)
        shapes = [[op.piece_shape(shape, s, t) for t in ranks] for s in ranks]
        exchange = swap(self._window, shapes, dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            return op.assemble(exchange([op.piece(operand, t) for t in ranks]), self.rank)

        return run

    def broadcast(self, op: Broadcast, shape: Shape, dtype: np.dtype[Any]) -> Plan:
        """Copy the root's value, chunk by chunk."""
        window, size, root = self._window, math.prod(shape), op.root
        step = window.slot_bytes // dtype.itemsize
        views = window.views([(min(step, size),)] * self.size, dtype)

        def run(operand: np.ndarray, total: np.ndarray) -> np.ndarray:
            source, target = operand.reshape(-1), total.reshape(-1)
            for begin in range(0, size, step):
                end = min(begin + step, size)
                held = views[window.turn][root][: end - begin]
                if self.rank == root:
                    np.copyto(held, source[begin:end])
                window.meet()
                if self.rank != root or total is not operand:
                    np.copyto(target[begin:end], held)
            return total

        return run


_MAKERS: dict[type[Any], Callable[[WindowCommunicator, Any, Shape, np.dtype[Any]], Plan]] = {
    AllReduce: WindowCommunicator.all_reduce,
    AllGather: WindowCommunicator.all_gather,
    ReduceScatter: WindowCommunicator.reduce_scatter,
    AllToAll: WindowCommunicator.all_to_all,
    Broadcast: WindowCommunicator.broadcast,
}


def through_shared_memory(
    meeting: Communicator,
    make_fence: Callable[[], Fence] | None = None,
    slot_bytes: int = SLOT_BYTES,
) -> Communicator:
    """Exchange through memory between the ranks that have met, or as they met if they share none.

    Every rank must call it. Where processors need a fence and there is none, ranks share nothing.
    """
    fenced = needs_fence()
    if meeting.size == 1 or (fenced and make_fence is None):
        return meeting
    needed = window_bytes(meeting.size, slot_bytes)
    memory = shared(
        meeting, lambda: SharedMemory(needed), lambda address: map_memory(address, needed)
    )
    if memory is None:
        return meeting
    cores = [json.loads(text) for text in meeting.exchange(json.dumps(core_numbers()).encode())]
    crowded = meeting.size > len(set().union(*cores))  # launchers may give each rank its own
    fence = make_fence() if fenced and make_fence is not None else None
    window = Window(memory, meeting.rank, meeting.size, slot_bytes, crowded=crowded, fence=fence)
    heaps = share_heaps(meeting)
    return WindowCommunicator(
        meeting, window, link_through(window, CHUNK_BYTES, SMALL_BYTES, heaps)
    )
