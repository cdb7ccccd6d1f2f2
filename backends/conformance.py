"""The suites that every backend inherits: each collective and each executor against its meaning.

A backend's test module subclasses `CollectiveSuite` (and `ExecutorSuite`), says how to run one
collective on all ranks' operands, and pytest collects the cases. Only tests import this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graph.dialect import (
    REDUCTIONS,
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    ReduceScatter,
)
from graph.layout import Layout, box_of, take_box

from .base import Executor

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.int64, np.bool_)
MIB = 1 << 20
SIZES_BYTES = (0, 1, 1001, 16 << 10, MIB, 4 * MIB + 4099)
"""Bytes of an operand, rounded up to whole elements: empty, one, odd, both sides of every limit."""
LAYOUTS = ("even", "uneven", "packed", "overlapping", "empty")


def layout(kind: str, ranks: int) -> Layout:
    """A layout of one dim over `ranks` ranks."""
    if kind == "even":
        return Layout.even(6 * ranks, ranks)
    if kind == "uneven":
        return Layout.even(3 * ranks + max(1, ranks // 2), ranks)
    if kind == "empty":
        return Layout((((0, 5),), *((),) * (ranks - 1)))
    if kind == "overlapping":
        return Layout(tuple(((r // 2 * 3, r // 2 * 3 + 3),) for r in range(ranks)))
    half = 2 * ranks
    return Layout(
        tuple(((2 * r, 2 * r + 2), (half + 3 * r, half + 3 * r + 3)) for r in range(ranks))
    )


def values(shape: Sequence[int], dtype: Any, seed: int) -> np.ndarray:
    """Sign-changing values with rounding in every sum, the same in every process."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype) == np.bool_:
        return np.asarray(random.integers(0, 2, size=shape)).astype(np.bool_)
    if np.dtype(dtype).kind == "i":
        return np.asarray(random.integers(-1000, 1000, size=shape)).astype(dtype)
    scales = 10.0 ** random.integers(-2, 3, size=shape)
    return np.asarray(random.normal(size=shape) * scales).astype(dtype)


class CollectiveSuite:
    """Every collective of the dialect, bit for bit as its meaning says."""

    def ranks(self) -> int:
        """Number of ranks to test with."""
        raise NotImplementedError

    def run(self, op: Collective, operands: list[np.ndarray]) -> Mapping[int, np.ndarray]:
        """Run one collective; results of those ranks that this process can see."""
        raise NotImplementedError

    def check(self, op: Collective, operands: list[np.ndarray]) -> None:
        """Compare the results with the meaning, bitwise."""
        expected = op.meaning(operands)
        for rank, result in self.run(op, [array.copy() for array in operands]).items():
            assert result.dtype == expected[rank].dtype
            assert result.shape == expected[rank].shape
            assert result.tobytes() == expected[rank].tobytes(), f"{op} differs on rank {rank}"

    @pytest.mark.parametrize("reduce", list(REDUCTIONS))
    @pytest.mark.parametrize("size_bytes", SIZES_BYTES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_all_reduce(self, dtype: type, size_bytes: int, reduce: str) -> None:
        """The reduction in rank order, for operands on both sides of every chunk."""
        if size_bytes > MIB and reduce != "sum":
            pytest.skip("big operands are cut alike for every reduction")
        count = -(-size_bytes // np.dtype(dtype).itemsize)
        self.check(
            AllReduce("tp", reduce), [values([count], dtype, r) for r in range(self.ranks())]
        )

    @pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 3, 5)])
    def test_all_reduce_keeps_the_shape(self, shape: tuple[int, ...]) -> None:
        """Scalars and empty tensors included."""
        self.check(AllReduce("tp"), [values(shape, np.float32, r) for r in range(self.ranks())])

    @pytest.mark.parametrize("kind", LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("dim", [0, 1, 2])
    def test_all_gather(self, dim: int, dtype: type, kind: str) -> None:
        """The whole from parts of every layout on every dim."""
        self._gather((dim,), (layout(kind, self.ranks()),), dtype, other=3)

    @pytest.mark.parametrize("kind", ["even", "uneven", "packed"])
    def test_all_gather_of_big_parts(self, kind: str) -> None:
        """Parts of more than one chunk."""
        self._gather((1,), (layout(kind, self.ranks()),), np.float32, other=300_000, ndim=2)

    def test_all_gather_of_boxes(self) -> None:
        """Two dims split at once: rank r holds r's ranges of both."""
        ranks = self.ranks()
        whole = Layout((((0, 2),),) * ranks)
        self._gather((0, 1), (whole, layout("uneven", ranks)), np.float32, other=3)

    def _gather(
        self,
        dims: tuple[int, ...],
        layouts: tuple[Layout, ...],
        dtype: Any,
        other: int,
        ndim: int = 3,
    ) -> None:
        sizes = {dim: held.global_size for dim, held in zip(dims, layouts)}
        whole = values([sizes.get(dim, other) for dim in range(ndim)], dtype, 7)
        boxes = [box_of(dims, layouts, rank, ndim) for rank in range(self.ranks())]
        parts = [np.ascontiguousarray(take_box(whole, box)) for box in boxes]
        op = AllGather("tp", dims, layouts)
        assert op.assemble(parts).tobytes() == whole.tobytes()
        self.check(op, parts)

    @pytest.mark.parametrize("kind", LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("reduce", ["sum", "max"])
    def test_reduce_scatter(self, reduce: str, dtype: type, kind: str) -> None:
        """Every rank's part of the reduction, in rank order."""
        held = layout(kind, self.ranks())
        shape = (3, held.global_size, 2)
        operands = [values(shape, dtype, rank) for rank in range(self.ranks())]
        self.check(ReduceScatter("tp", (1,), (held,), reduce), operands)

    def test_reduce_scatter_of_big_parts(self) -> None:
        """Parts of more than one chunk."""
        held = layout("uneven", self.ranks())
        shape = (held.global_size, 300_000)
        operands = [values(shape, np.float32, rank) for rank in range(self.ranks())]
        self.check(ReduceScatter("tp", (0,), (held,)), operands)

    @pytest.mark.parametrize("split", ["even", "uneven", "packed", "empty"])
    @pytest.mark.parametrize("concat", ["even", "uneven", "packed"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_all_to_all(self, dtype: type, concat: str, split: str) -> None:
        """The split moves from one dim to another, both with any layout."""
        ranks = self.ranks()
        op = AllToAll("tp", 0, 2, layout(split, ranks), layout(concat, ranks))
        whole = values((op.split_layout.global_size, 3, op.concat_layout.global_size), dtype, 5)
        boxes = [box_of([2], [op.concat_layout], rank, 3) for rank in range(ranks)]
        self.check(op, [np.ascontiguousarray(take_box(whole, box)) for box in boxes])

    @pytest.mark.parametrize("size_bytes", SIZES_BYTES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_broadcast(self, dtype: type, size_bytes: int) -> None:
        """The value of every possible root."""
        count = -(-size_bytes // np.dtype(dtype).itemsize)
        for root in range(self.ranks()):
            operands = [values([count], dtype, rank) for rank in range(self.ranks())]
            self.check(Broadcast("tp", root), operands)

    def test_sum_of_16_bit_values_is_rounded_once(self) -> None:
        """2048 + 1 is not representable: summing in 16 bits would lose every one."""
        operands = [
            np.full(3, 2048 if rank == 0 else 1, np.float16) for rank in range(self.ranks())
        ]
        expected = np.float16(np.float32(2047 + self.ranks()))
        for result in self.run(AllReduce("tp"), operands).values():
            assert (result == expected).all()


class ExecutorSuite:
    """Segments in, values out, and a buffer that a collective may write into."""

    def executor(self) -> Executor:
        """The executor to test."""
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
    def test_values_pass_unchanged(self, shape: tuple[int, ...], dtype: type) -> None:
        """Array to tensor, through a segment, and back."""
        executor = self.executor()
        step = executor.prepare(_model("Identity", dtype, len(shape)), 1)
        array = values(shape, dtype, 3)
        result = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
        assert result.dtype == array.dtype and result.shape == array.shape
        assert result.tobytes() == array.tobytes()

    def test_results_are_buffers_of_their_own(self) -> None:
        """Writing into one result changes neither the operand nor another run's result."""
        executor = self.executor()
        step = executor.prepare(_model("Identity", np.float32, 1), 1)
        array = np.ones(4, np.float32)
        first = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
        second = executor.to_array(step({"x": executor.to_tensor(array)})["y"])
        first[...] = 9
        assert array.tolist() == second.tolist() == [1, 1, 1, 1]

    def test_a_written_result_is_what_the_next_segment_reads(self) -> None:
        """A collective in place needs no copy into the next segment."""
        executor = self.executor()
        step = executor.prepare(_model("Neg", np.float32, 1), 1)
        middle = step({"x": executor.to_tensor(np.ones(4, np.float32))})["y"]
        view = executor.to_array(middle)
        view[...] = 5
        result = executor.to_array(step({"x": executor.to_tensor(view)})["y"])
        assert result.tolist() == [-5, -5, -5, -5]


def _model(op_type: str, dtype: Any, ndim: int) -> ir.Model:
    """`y = op(x)`."""
    kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    dims = [f"d{dim}" for dim in range(ndim)]
    x = ir.Value(name="x", type=kind, shape=ir.Shape(dims))
    node = ir.node(op_type, [x])
    node.outputs[0].name, node.outputs[0].type = "y", kind
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="one")
    return ir.Model(graph, ir_version=10)
