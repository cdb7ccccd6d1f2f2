"""What one rank measures of its machine, through a backend's executor and communicator.

All ranks of a job measure the same at the same time, since they share memory, caches and cores; of
what they find the slowest counts, as a collective waits for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from backends.base import Communicator, Executor, Tensor
from backends.run import RankProgram
from tpcore.measure_graphs import BLOCK, activations, chain, collective, exchanges, matmuls
from tpcore.planner.topology import COLLECTIVES, Rates
from tpcore.reshard import ReshardKind

WIDTH = 1024
"""Rows and columns of a matrix for the memory's speed: 4 MiB, as in a model of some size."""
GEMM_WIDTH = 1024
GEMM_ROWS = (32, 128, 512)
GEMMS = 8
ROWS = 128
"""Rows of an activation for the cache's speed."""
SMALL_OPS = 256
ROUNDS = 16
"""Exchanges in the program that tells what a segment costs."""
SIZES = tuple(1024 * 4**step for step in range(8))
"""Bytes of the tensors that are exchanged: 1 KiB to 16 MiB."""
REPEATS = 9
EXCHANGE_REPEATS = 40
Point = tuple[float, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What one job has measured."""

    ranks: int
    threads: int
    rates: Rates
    collectives: Mapping[ReshardKind, Sequence[Point]]
    """(bytes, seconds) per kind; none for one rank alone."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rates = {name: getattr(self.rates, name) for name in Rates.__dataclass_fields__}
        times = {kind.value: list(points) for kind, points in self.collectives.items()}
        return {"ranks": self.ranks, "threads": self.threads, "rates": rates, "collectives": times}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Found:
        """Read what `to_json` has made."""
        times = {ReshardKind(kind): points for kind, points in data["collectives"].items()}
        return cls(data["ranks"], data["threads"], Rates(**data["rates"]), times)


@dataclass(frozen=True)
class Bench:
    """One rank that measures."""

    executor: Executor
    communicator: Communicator
    threads: int
    memory_bytes: int
    """Bytes of weights to read, more than any cache holds."""
    say: Say

    def measure(self) -> Found:
        """Measure everything, on all ranks at once."""
        began = time.perf_counter()
        op = self._op_seconds()
        rates = Rates({"f32": self._flops()}, self._memory(), self._cache(op), op)
        self.say(
            f"  {min(rates.flops_per_second.values()) / 1e9:.0f} GFLOP/s, "
            f"memory {rates.memory_bytes_per_second / 1e9:.1f} GB/s, "
            f"cache {rates.cache_bytes_per_second / 1e9:.1f} GB/s, {op * 1e6:.1f} us per op"
        )
        found = Found(self.communicator.size, self.threads, rates, self._collectives(op))
        self.say(f"  took {time.perf_counter() - began:.0f} s")
        return found

    def seconds(self, run: Callable[[], object], repeats: int = REPEATS) -> float:
        """Seconds of a run that all ranks begin together; those of the slowest rank.

        The lower quartile of some runs: what disturbs one only makes it longer.
        """
        times = []
        for _ in range(repeats + 1):
            self.communicator.exchange(b"")
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        mine = statistics.quantiles(times[1:], n=4)[0]
        return max(map(float, self.communicator.exchange(repr(mine).encode())))

    def _program_seconds(self, model: ir.Model, shape: Sequence[int]) -> float:
        program = RankProgram(model, self.executor, self.communicator, threads=self.threads)
        x = np.full(shape, 0.5, np.float32)
        return self.seconds(lambda: program.run({"x": x}))

    def _memory(self) -> float:
        """Bytes per second of matrices times a vector."""
        count = -(-self.memory_bytes // (4 * WIDTH * WIDTH))
        seconds = self._program_seconds(matmuls(count, 1, WIDTH), (1, WIDTH))
        return 4 * count * WIDTH * WIDTH / seconds

    def _flops(self) -> float:
        """Operations per second of matrix products: the median over some numbers of rows."""
        found = []
        for rows in GEMM_ROWS:
            model = matmuls(GEMMS, rows, GEMM_WIDTH)
            seconds = self._program_seconds(model, (rows, GEMM_WIDTH))
            found.append(2 * GEMMS * rows * GEMM_WIDTH**2 / seconds)
        return statistics.median(found)

    def _cache(self, op_seconds: float) -> float:
        """Bytes per second of what ops do to activations between the matrix products."""
        model, values = activations(ROWS, GEMM_WIDTH)
        seconds = self._program_seconds(model, (ROWS, GEMM_WIDTH)) - len(model.graph) * op_seconds
        return 4 * values * ROWS * GEMM_WIDTH / seconds

    def _op_seconds(self) -> float:
        """Seconds of an op on next to nothing."""
        seconds = self._program_seconds(chain(["Add"] * SMALL_OPS, (1, BLOCK)), (1, BLOCK))
        return seconds / SMALL_OPS

    def _collectives(self, op_seconds: float) -> dict[ReshardKind, list[Point]]:
        """Times of every kind and size, with what ending a segment and starting one costs."""
        ranks = self.communicator.size
        if ranks == 1:
            return {}
        bare = {kind: [self._exchange(kind, size) for size in SIZES] for kind in COLLECTIVES}
        shape = (BLOCK, SIZES[0] // (4 * BLOCK))
        rounds = self._program_seconds(exchanges(ROUNDS, shape), shape) / ROUNDS
        segment = max(rounds - op_seconds - bare[ReshardKind.ALL_REDUCE][0], 0.0)
        self.say(
            f"  segment {segment * 1e6:.0f} us, AllReduce "
            f"{bare[ReshardKind.ALL_REDUCE][0] * 1e6:.0f} us for {SIZES[0]} bytes, "
            f"{bare[ReshardKind.ALL_REDUCE][-1] * 1e3:.1f} ms for {SIZES[-1] >> 20} MiB"
        )
        return {
            kind: [(float(size), s + segment) for size, s in zip(SIZES, times)]
            for kind, times in bare.items()
        }

    def _exchange(self, kind: ReshardKind, size: int) -> float:
        op, shape = collective(kind, size, self.communicator.size, self.communicator.rank)
        operand = made_by_a_segment(self.executor, shape)
        if not self.communicator.takes(operand):
            operand = self.executor.to_array(operand)
        return self.seconds(lambda: self.communicator.run(op, operand), EXCHANGE_REPEATS)


def made_by_a_segment(executor: Executor, shape: Sequence[int]) -> Tensor:
    """A tensor of zeros that lies where the operands of a model's collectives do."""
    step = executor.prepare(chain(["Add"], shape), threads=1)
    (made,) = step({"x": executor.to_tensor(np.zeros(shape, np.float32))}).values()
    return made
