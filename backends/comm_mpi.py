"""Exchanges between MPI ranks of several hosts, and how all of them meet.

The one file that imports mpi4py, and only when a job has ranks.

Everything travels as bytes, so any dtype passes; sums are formed here, in rank order, and never by
the MPI library: the same bits on every rank, in every run and with every MPI.

Which calls: Allgather where the parts are equal, else Alltoallv in rounds of `MESSAGE_BYTES`; never
Allgatherv, whose ring of 32 KiB pieces took 1.2 s for 16 MiB on 4 ranks of 2 cores where Alltoallv
took 8 ms (MPICH 5.0.2). One AllReduce of 16 MiB on 2 ranks costs what MPI's own does, and at 4 KiB
3 us more.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from graph.dialect import (
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    ReduceScatter,
)

from .base import Tensor
from .placement import detect_environment
from .sums import reduction
from .swap import cut, starts

if TYPE_CHECKING:
    from mpi4py import MPI

MESSAGE_BYTES = 1 << 20
"""The most that one rank sends another in one round."""
SMALL_BYTES = 16 << 10
"""Up to this size any number of ranks gathers all operands and sums: fewer calls, more bytes."""


class MpiCommunicator:
    """The ranks of MPI's COMM_WORLD."""

    asynchronous = False

    def __init__(self) -> None:
        _save_memory()
        from mpi4py import MPI

        self._comm: MPI.Intracomm = MPI.COMM_WORLD
        self._byte = MPI.BYTE
        self.rank = self._comm.Get_rank()
        self.size = self._comm.Get_size()
        self._scratch: dict[str, np.ndarray] = {}

    def takes(self, tensor: Tensor) -> bool:
        """Nothing but numpy arrays."""
        return False

    def run(self, op: Collective, operand: Tensor, *, keep: bool = False) -> Tensor:
        """Run one collective; AllReduce and Broadcast use the operand as the buffer."""
        if self.size == 1:
            return operand.copy() if keep else operand
        in_place = isinstance(op, AllReduce | Broadcast)
        is_buffer = operand.flags.c_contiguous and operand.flags.writeable and not keep
        if not (is_buffer if in_place else operand.flags.c_contiguous):
            operand = operand.copy()
        return _METHODS[type(op)](self, op, operand)

    def exchange(self, message: bytes) -> list[bytes]:
        """Every rank's message, in rank order."""
        if self.size == 1:
            return [message]
        lengths = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([len(message)], np.int64), lengths)
        received = np.empty(int(lengths.sum()), np.uint8)
        mine = np.frombuffer(message, np.uint8)
        self._comm.Allgatherv([mine, self._byte], [received, lengths.tolist(), self._byte])
        ends = np.cumsum(lengths).tolist()
        return [received[end - n : end].tobytes() for end, n in zip(ends, lengths.tolist())]

    def abort(self, status: int) -> None:
        """End every rank of the job."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(status)

    def fence(self) -> Callable[[], None]:
        """Make what keeps the order of this process's loads and stores for others."""
        from mpi4py import MPI

        window = MPI.Win.Create_dynamic(comm=MPI.COMM_SELF)
        window.Lock_all()

        def leave() -> None:
            window.Unlock_all()
            window.Free()

        atexit.register(leave)
        return window.Sync

    def all_reduce(self, op: AllReduce, operand: np.ndarray) -> np.ndarray:
        """Reduce in place, chunk by chunk."""
        flat = operand.reshape(-1)
        # Two ranks send the same bytes either way, and one call beats two.
        gather = self.size == 2 or operand.nbytes <= SMALL_BYTES
        reduce_chunk = self._gather_chunk if gather else self._scatter_chunk
        step = MESSAGE_BYTES // flat.dtype.itemsize * (1 if gather else self.size)
        for start in range(0, flat.size, step):
            reduce_chunk(op, flat[start : start + step])
        return operand

    def _gather_chunk(self, op: AllReduce, chunk: np.ndarray) -> None:
        """Every rank gathers all operands and reduces them."""
        parts = self._buffer("gathered", self.size * chunk.size, chunk.dtype)
        self._comm.Allgather([_bytes(chunk), self._byte], [_bytes(parts), self._byte])
        reduction(op.reduce, chunk.dtype)(chunk, list(parts.reshape(self.size, -1)))

    def _scatter_chunk(self, op: AllReduce, chunk: np.ndarray) -> None:
        """Every rank reduces one part of the chunk, and the parts are gathered."""
        item = chunk.dtype.itemsize
        counts, starts = _even_parts(chunk.size, self.size, item)
        mine = counts[self.rank]
        parts = self._buffer("parts", self.size * mine // item, chunk.dtype)
        self._comm.Alltoallv(
            [_bytes(chunk), counts, starts, self._byte],
            [_bytes(parts), [mine] * self.size, None, self._byte],
        )
        total = self._buffer("total", mine // item, chunk.dtype)
        reduction(op.reduce, chunk.dtype)(total, list(parts.reshape(self.size, -1)))
        self._gather(_bytes(total), _bytes(chunk), counts)

    def _gather(self, mine: np.ndarray, target: np.ndarray, sizes: list[int]) -> None:
        """Gather the bytes of all ranks, of which rank r has `sizes[r]`, one after the other."""
        if min(sizes) == max(sizes):
            self._comm.Allgather([mine, self._byte], [target, self._byte])
            return
        for begin in range(0, max(sizes), MESSAGE_BYTES):
            counts, offsets = _window(sizes, begin, MESSAGE_BYTES)
            sent = [counts[self.rank]] * self.size
            start = [min(begin, mine.size)] * self.size
            self._comm.Alltoallv(
                [mine, sent, start, self._byte], [target, counts, offsets, self._byte]
            )

    def all_gather(self, op: AllGather, operand: np.ndarray) -> np.ndarray:
        """Gather the parts and put each into its place, or straight into place."""
        whole = op.result_shape(operand.shape, self.rank)
        shapes = [op.operand_shape(whole, rank) for rank in range(self.size)]
        parts = self._gather_parts(operand, shapes)
        if op.in_order(whole):
            return parts.reshape(whole)
        return op.assemble(cut(parts, shapes))

    def _gather_parts(self, operand: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The operands of all ranks, one after the other."""
        sizes = [int(np.prod(shape)) * operand.dtype.itemsize for shape in shapes]
        received = np.empty(sum(sizes) // operand.dtype.itemsize, operand.dtype)
        self._gather(_bytes(operand.reshape(-1)), _bytes(received), sizes)
        return received

    def reduce_scatter(self, op: ReduceScatter, operand: np.ndarray) -> np.ndarray:
        """Send every rank its piece, then reduce the pieces that arrived."""
        pieces = [op.piece(operand, rank) for rank in range(self.size)]
        mine = pieces[self.rank].shape
        parts = self._all_to_all(pieces, [[piece.size for piece in pieces]] * self.size)
        result = np.empty(mine, operand.dtype)
        reduce_into = reduction(op.reduce, operand.dtype)
        reduce_into(result.reshape(-1), list(parts.reshape(self.size, -1)))
        return result

    def all_to_all(self, op: AllToAll, operand: np.ndarray) -> np.ndarray:
        """Send every rank its piece, then put the pieces that arrived into their places."""
        ranks = range(self.size)
        shapes = [[op.piece_shape(operand.shape, s, t) for t in ranks] for s in ranks]
        sizes = [[int(np.prod(shape)) for shape in row] for row in shapes]
        pieces = [op.piece(operand, target) for target in ranks]
        arrived = self._all_to_all(pieces, sizes)
        return op.assemble(cut(arrived, [row[self.rank] for row in shapes]), self.rank)

    def _all_to_all(
        self, pieces: Sequence[np.ndarray], sizes: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """What the others sent this rank; sizes[source][target] counts elements."""
        dtype = pieces[0].dtype
        item, limit = dtype.itemsize, MESSAGE_BYTES
        send = _bytes(np.concatenate([piece.reshape(-1) for piece in pieces]))
        outgoing = [size * item for size in sizes[self.rank]]
        incoming = [row[self.rank] * item for row in sizes]
        received = np.empty(sum(incoming) // item, dtype)
        longest = max(size * item for row in sizes for size in row)
        for begin in range(0, longest, limit):
            self._comm.Alltoallv(
                [send, *_window(outgoing, begin, limit), self._byte],
                [_bytes(received), *_window(incoming, begin, limit), self._byte],
            )
        return received

    def broadcast(self, op: Broadcast, operand: np.ndarray) -> np.ndarray:
        """Receive the root's value in place."""
        data = _bytes(operand.reshape(-1))
        for start in range(0, data.size, MESSAGE_BYTES):
            self._comm.Bcast([data[start : start + MESSAGE_BYTES], self._byte], root=op.root)
        return operand

    def _buffer(self, use: str, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        """A buffer of `size` elements that is reused; it grows to a chunk per rank at most."""
        needed = size * dtype.itemsize
        held = self._scratch.get(use)
        if held is None or held.size < needed:
            held = self._scratch[use] = np.empty(needed, np.uint8)
        return held[:needed].view(dtype)


def _save_memory() -> None:
    """Keep small what MPICH's UCX sets up between the ranks of a host and MPICH never sends by.

    It is 4 MiB a rank; MPICH has shared memory of its own. Open MPI does send by it.
    """
    if detect_environment().launcher == "mpich":
        for transport in ("POSIX", "SYSV"):
            os.environ.setdefault(f"UCX_{transport}_SEG_SIZE", "1024")


_METHODS: dict[type[Any], Callable[[MpiCommunicator, Any, np.ndarray], np.ndarray]] = {
    AllReduce: MpiCommunicator.all_reduce,
    AllGather: MpiCommunicator.all_gather,
    ReduceScatter: MpiCommunicator.reduce_scatter,
    AllToAll: MpiCommunicator.all_to_all,
    Broadcast: MpiCommunicator.broadcast,
}


def _bytes(flat: np.ndarray) -> np.ndarray:
    """A flat contiguous array as bytes: MPI knows no bfloat16, and numpy's buffers neither."""
    return flat.view(np.uint8)


@lru_cache(maxsize=256)
def _even_parts(size: int, ranks: int, item: int) -> tuple[list[int], list[int]]:
    """Bytes and byte offsets of `ranks` nearly even parts of `size` elements."""
    base, extra = divmod(size, ranks)
    counts = [(base + (rank < extra)) * item for rank in range(ranks)]
    return counts, starts(counts)


def _window(sizes: Sequence[int], begin: int, limit: int) -> tuple[list[int], list[int]]:
    """Of blocks that lie one after the other: counts and offsets of bytes begin..begin+limit."""
    counts = [min(max(size - begin, 0), limit) for size in sizes]
    offsets = [start + min(begin, size) for start, size in zip(starts(sizes), sizes)]
    return counts, offsets
