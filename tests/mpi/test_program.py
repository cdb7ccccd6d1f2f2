"""A rank program on real ranks: equal to the whole model and to lockstep, bit for bit."""

from __future__ import annotations

import os
import signal
import threading
import time

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from backends import comm_window, native
from backends.base import Communicator, Executor
from backends.comm_window import through_shared_memory
from backends.exec_ort import OrtExecutor
from backends.handshake import RankInfo, agree, collective_sequence, handshake
from backends.job import meet
from backends.lockstep import run_lockstep
from backends.placement import detect_environment
from backends.run import RankProgram, Silent
from backends.segments import Exchange, Segment
from backends.window import SLOT_BYTES
from graph.dialect import AllReduce
from graph.errors import BackendUnavailable, BundleError, ExecutionError, TpcoreError
from tests.backends.toys import HIDDEN, Maker, mlp_rank, mlp_reference, mlp_weights

PLACEMENT = detect_environment()
COMMUNICATOR = meet(PLACEMENT)
RANK, SIZE = COMMUNICATOR.rank, COMMUNICATOR.size
X = np.random.default_rng(1).normal(size=(3, HIDDEN)).astype(np.float32)


def executors() -> list[Executor]:
    """onnxruntime, and torch where the ranks have loaded it already."""
    if PLACEMENT.speaks_mpi:
        return [OrtExecutor()]
    from backends.exec_torch import TorchExecutor

    return [OrtExecutor(), TorchExecutor()]


COMPILED = pytest.mark.skipif(native.path() is None, reason="there was no C compiler")
EACH_EXECUTOR = pytest.mark.parametrize("executor", executors(), ids=lambda e: type(e).__name__)


@EACH_EXECUTOR
def test_ranks_equal_the_whole_mlp_and_lockstep(executor: Executor) -> None:
    program = RankProgram(mlp_rank(RANK, SIZE), executor, COMMUNICATOR)
    models = [mlp_rank(rank, SIZE) for rank in range(SIZE)]
    expected = run_lockstep(models, [{"x": X}] * SIZE, executor)[RANK]
    for _ in range(3):
        result = program.run({"x": X})
        for name, array in mlp_reference(X, mlp_weights()).items():
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5)
            assert result[name].tobytes() == expected[name].tobytes()


@COMPILED
def test_one_session_runs_collectives_that_need_each_other() -> None:
    shared, monitor = through_shared_memory(COMMUNICATOR), Places()
    program = RankProgram(mlp_rank(RANK, SIZE), OrtExecutor(), shared, monitor=monitor)
    assert [type(step) for step in program.program.steps] == [Segment, Exchange]  # an AllGather
    models = [mlp_rank(rank, SIZE) for rank in range(SIZE)]
    expected = run_lockstep(models, [{"x": X}] * SIZE, OrtExecutor())[RANK]
    for rows in (3, 3, 3, 1, 0):  # results that stay, and then not
        result = program.run({"x": X[:rows]})
        assert rows < 3 or all(result[n].tobytes() == expected[n].tobytes() for n in expected)
        assert result["y"].shape == (rows, HIDDEN)
    assert 0 < program.exchange_seconds < program.seconds
    assert monitor.seen[:4] == ["enter 0", "leave 2", "enter 3", "leave 3"]  # the node tells of 1


@COMPILED
@pytest.mark.parametrize("slot_bytes", [4096, SLOT_BYTES])
@pytest.mark.parametrize("count", [0, 1, 7, 8191, 65537, 524_287])
@pytest.mark.parametrize("way", ["in heaps", "in slots", "some ranks in Python"])
def test_compiled_sums_are_those_of_python(
    way: str, count: int, slot_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "in heaps":
        monkeypatch.setattr(comm_window, "share_heaps", lambda _: None)
    in_python = way == "some ranks in Python" and RANK > 0  # these take the same rounds
    if in_python:
        monkeypatch.setattr(comm_window, "link_through", lambda *_: None)
    maker, random = Maker(), np.random.default_rng(0)
    total = maker.collective(AllReduce("tp"), maker.op("Neg", maker.input("x", ("n",))), "sum")
    model = maker.model([maker.op("Identity", total, name="y")])
    shared = through_shared_memory(COMMUNICATOR, slot_bytes=slot_bytes)
    program = RankProgram(model, OrtExecutor(), shared)
    assert len(program.program.exchanges) == in_python
    parts = [random.standard_normal(count).astype(np.float32) * 100 for _ in range(SIZE)]
    for repeat in range(6):
        if (repeat + RANK) % 3 == 0:
            sum(range(1000 * RANK))  # ranks come late by turns
        made = program.run({"x": parts[RANK]})["y"]
        expected = AllReduce("tp").meaning([-part for part in parts])[0]
        assert made.tobytes() == expected.tobytes()
    in_heaps = way == "in heaps" and 4 * count > comm_window.SMALL_BYTES
    assert in_python or _link(shared).sums_in_heaps == 6 * in_heaps


@COMPILED
def test_sums_lie_where_their_operands_lay() -> None:
    """As a step and as a node, unless somebody reads the operand later; and so for its bits."""
    shared, op, count = through_shared_memory(COMMUNICATOR), AllReduce("tp"), 100_003
    random = np.random.default_rng(1)
    parts = [random.standard_normal(count).astype(np.float32) for _ in range(SIZE)]
    (expected,) = {total.tobytes() for total in op.meaning([-part for part in parts])}
    executor, maker = OrtExecutor(), Maker()
    negate = maker.model([maker.op("Neg", maker.input("x", ("n",)), name="y")])
    step = executor.prepare(negate, threads=1)
    for number in range(1, 4):
        operand = executor.to_array(step({"x": executor.to_tensor(parts[RANK])})["y"])
        assert shared.run(op, operand) is operand and operand.tobytes() == expected
        assert _link(shared).sums_in_heaps == number
    elsewhere = -parts[RANK]
    assert shared.run(op, elsewhere).tobytes() == expected
    assert _link(shared).sums_in_heaps == 3


@COMPILED
def test_ranks_that_sum_unequal_numbers_of_values_are_refused() -> None:
    """In memory that all reach, one would write behind the other's."""
    program, shared = _summing()
    with pytest.raises(ExecutionError, match="unequal numbers of values"):
        program.run({"x": np.ones(100_000 - RANK, np.float32)})
    with pytest.raises(ExecutionError, match="unequal numbers of values"):
        shared.run(AllReduce("tp"), np.ones(100_000 - RANK, np.float32))
    assert program.run({"x": np.ones(9, np.float32)})["y"].tolist() == [-SIZE] * 9


@COMPILED
def test_memory_that_the_system_refuses_is_an_error() -> None:
    """onnxruntime does not look at what an allocator gives it."""
    maker = Maker(np.int64)
    huge = maker.op("ConstantOfShape", maker.input("x", (1,)))
    largest = maker.op("ReduceMax", huge, name="y")
    huge.type = largest.type = ir.TensorType(ir.DataType.FLOAT)
    program = RankProgram(
        maker.model([largest]), OrtExecutor(), through_shared_memory(COMMUNICATOR)
    )
    with pytest.raises(ExecutionError, match=r"bad_alloc|allocate"):
        program.run({"x": np.array([1 << 44])})


@COMPILED
def test_a_ctrl_c_that_python_has_handled_does_not_end_the_next_run() -> None:
    program, _ = _summing()
    program.run({"x": np.ones(3, np.float32)})
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert program.run({"x": np.ones(3, np.float32)})["y"].tolist() == [-SIZE] * 3


def _summing() -> tuple[RankProgram, Communicator]:
    """Ranks that sum what they negate."""
    maker = Maker()
    total = maker.collective(AllReduce("tp"), maker.op("Neg", maker.input("x", ("n",))), "sum")
    shared = through_shared_memory(COMMUNICATOR)
    model = maker.model([maker.op("Identity", total, name="y")])
    return RankProgram(model, OrtExecutor(), shared), shared


def _link(communicator: Communicator) -> native.Link:
    assert isinstance(communicator, comm_window.WindowCommunicator) and communicator.native
    return communicator.native


@COMPILED
def test_collectives_that_do_not_need_each_other_run_in_their_order() -> None:
    program = RankProgram(two_reductions(False), OrtExecutor(), through_shared_memory(COMMUNICATOR))
    assert [type(step) for step in program.program.steps] == [Segment]
    negated, absolute = program.run({"x": np.array([1, -2], np.float32)}).values()
    assert negated.tolist() == [-SIZE, 2 * SIZE] and absolute.tolist() == [SIZE, 2 * SIZE]


@COMPILED
def test_the_order_holds_where_an_optimizer_finds_no_need_of_it() -> None:
    """Of static shapes it computes Shape ahead, so on most ranks the second sum needs nothing."""
    maker = Maker()
    x = maker.input("x", (4,))
    first = maker.collective(AllReduce("tp"), maker.op("Neg", x), "first")
    first.shape = ir.Shape([4])
    if RANK == 0:
        base = maker.op("Identity", first)
    else:
        shape = maker.op("Shape", first)
        shape.type = ir.TensorType(ir.DataType.INT64)
        base = maker.op("ConstantOfShape", shape)
    second = maker.collective(AllReduce("tp"), maker.op("Add", base, maker.op("Abs", x)), "second")
    model = maker.model([maker.op("Tanh", second, name="y"), first])
    program = RankProgram(model, OrtExecutor(), through_shared_memory(COMMUNICATOR))
    assert [type(step) for step in program.program.steps] == [Segment]
    given = np.array([1, -2, 3, 0.5], np.float32) / 8
    for _ in range(20):
        y, negated = program.run({"x": given}).values()
        assert negated.tolist() == (-SIZE * given).tolist()
        np.testing.assert_allclose(y, np.tanh(SIZE * (np.abs(given) - given)), rtol=1e-6)


@COMPILED
def test_ctrl_c_ends_a_wait_inside_a_session() -> None:
    program = RankProgram(mlp_rank(RANK, SIZE), OrtExecutor(), through_shared_memory(COMMUNICATOR))
    program.run({"x": X})
    if RANK:
        time.sleep(2)
        return
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        program.run({"x": X})
    assert time.monotonic() - began < 1.5


class Places(Silent):
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def enter(self, step: int) -> None:
        self.seen.append(f"enter {step}")

    def leave(self, step: int) -> None:
        self.seen.append(f"leave {step}")


@EACH_EXECUTOR
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_values_pass(dtype: type, executor: Executor) -> None:
    maker = Maker(dtype)
    total = maker.collective(AllReduce("tp"), maker.op("Identity", maker.input("x", ("n",))), "sum")
    program = RankProgram(
        maker.model([maker.op("Identity", total, name="y")]), executor, COMMUNICATOR
    )
    result = program.run({"x": np.array([RANK, 1], dtype)})["y"]
    assert result.dtype == dtype
    assert result.astype(np.float32).tolist() == [SIZE * (SIZE - 1) / 2, SIZE]


@EACH_EXECUTOR
def test_a_value_that_is_read_again_is_not_written(executor: Executor) -> None:
    maker = Maker()
    part = maker.op("Neg", maker.input("x", ("n",)), name="part")
    total = maker.collective(AllReduce("tp"), part, "sum", "total")
    again = maker.op("Identity", part, name="again")
    program = RankProgram(maker.model([total, again]), executor, COMMUNICATOR)
    x = np.array([RANK, 1], np.float32)
    result = program.run({"x": x})
    assert result["again"].tolist() == [-RANK, -1]
    assert result["total"].tolist() == [-SIZE * (SIZE - 1) / 2, -SIZE]
    assert x.tolist() == [RANK, 1]


def test_what_one_rank_cannot_make_no_rank_makes() -> None:
    def make() -> int:
        if RANK == SIZE - 1:
            raise BackendUnavailable("the card is missing.")
        return 1

    with pytest.raises(BackendUnavailable, match="the card is missing") as caught:
        agree(COMMUNICATOR, make)
    assert caught.value.agreed
    assert agree(COMMUNICATOR, lambda: RANK) == RANK


def test_ranks_that_agree_shake_hands() -> None:
    model = mlp_rank(RANK, SIZE)
    handshake(COMMUNICATOR, RankInfo("b", "1", SIZE), collective_sequence(model))


def two_reductions(swap: bool, reduce: str = "sum") -> ir.Model:
    maker = Maker()
    x = maker.input("x", (2,))
    parts = [maker.op("Neg", x), maker.op("Abs", x)]
    order = [1, 0] if swap else [0, 1]
    names = ["neg", "abs"]
    return maker.model(
        [maker.collective(AllReduce("tp", reduce), parts[i], names[i]) for i in order]
    )


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (two_reductions(swap=RANK == 1), "rank 1 .* position 0: rank 1 has #0 .*'abs'"),
        (two_reductions(False, "max" if RANK == 1 else "sum"), "reduce=max.*reduce=sum"),
    ],
    ids=["order", "reduction"],
)
def test_ranks_that_differ_are_refused(model: ir.Model, text: str) -> None:
    with pytest.raises(BundleError, match=text) as caught:
        handshake(COMMUNICATOR, RankInfo("b", "1", SIZE), collective_sequence(model))
    assert caught.value.agreed
    messages = COMMUNICATOR.exchange(str(caught.value).encode())
    assert len(set(messages)) == 1


@pytest.mark.parametrize(
    ("info", "kind", "text"),
    [
        (RankInfo("a" if RANK else "b", "1", SIZE), BundleError, "the bundle 'a|the bundle 'b"),
        (RankInfo("b", "1", SIZE + 1), BundleError, f"split for {SIZE + 1} ranks but {SIZE} were"),
        (
            RankInfo("b", "1", SIZE, error="disk full" if RANK == 1 else "", error_status=3),
            ExecutionError,
            "rank 1 cannot run: disk full",
        ),
        (RankInfo("b", "1", SIZE, error="no such file"), BundleError, "^no such file$"),
    ],
    ids=["bundle", "world", "one-error", "all-error"],
)
def test_what_ranks_refuse_together(info: RankInfo, kind: type[TpcoreError], text: str) -> None:
    with pytest.raises(kind, match=text):
        handshake(COMMUNICATOR, info)
