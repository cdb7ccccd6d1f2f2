"""Results that stay in place from run to run: the same numbers, and nobody's output overwritten."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from backends.comm_local import SingleCommunicator
from backends.exec_ort import OrtExecutor, OrtStep
from backends.lockstep import Lockstep
from backends.ort_binding import STAYING_BYTES
from backends.run import RankProgram
from backends.segments import Segment, cut
from graph.dialect import AllReduce, Broadcast
from graph.errors import ExecutionError
from tests.backends.toys import HIDDEN, Maker, mlp_rank, mlp_reference, mlp_weights

RANDOM = np.random.default_rng(0)


def first_step(model: ir.Model) -> OrtStep:
    """The first segment of a rank graph, prepared."""
    segment = next(step for step in cut(model).steps if isinstance(step, Segment))
    return OrtExecutor().prepare(segment.model, 1)


def passing_on(columns: int = 2) -> ir.Model:
    """Add and Mul, whose first result is summed over the ranks and whose second is an output."""
    maker = Maker()
    x = maker.input("x", ("rows", columns))
    doubled, squared = maker.op("Add", x, x, name="doubled"), maker.op("Mul", x, x, name="squared")
    return maker.model(
        [maker.op("Neg", maker.collective(AllReduce("tp"), doubled, "sum")), squared]
    )


def test_runs_of_changing_shapes_equal_the_reference_and_leave_old_outputs_alone() -> None:
    program = Lockstep([mlp_rank(rank, 2) for rank in range(2)], OrtExecutor())
    seen = []
    for rows in (1, 1, 1, 1, 3, 3, 3, 1, 1, 1, 0, 0, 0, 2):
        x = RANDOM.normal(size=(rows, HIDDEN)).astype(np.float32)
        seen.append((mlp_reference(x, mlp_weights()), program.run([{"x": x}] * 2)))
    for want, got in seen:
        for name in want:
            np.testing.assert_allclose(got[0][name], want[name], atol=1e-5)
            np.testing.assert_array_equal(got[0][name], got[1][name])


def test_small_results_stay_once_their_shape_has_come_twice() -> None:
    executor, step = OrtExecutor(), first_step(passing_on())
    x = executor.to_tensor(np.ones((2, 2), np.float32))
    first, second, third = ([*step({"x": x}).values()] for _ in range(3))
    assert first[0] is not second[0] is third[0]
    assert first[1] is not second[1] is not third[1]  # the output is the caller's
    assert executor.to_array(third[0]).tolist() == [[2, 2], [2, 2]]


def test_large_results_do_not_stay() -> None:
    executor, step = OrtExecutor(), first_step(passing_on(1 + STAYING_BYTES // 4))
    x = executor.to_tensor(np.ones((1, 1 + STAYING_BYTES // 4), np.float32))
    made = [step({"x": x})["doubled"] for _ in range(4)]
    assert len({id(tensor) for tensor in made}) == 4


def test_an_output_that_two_collectives_make_is_the_callers() -> None:
    """Both work in place, so it lies where the segment has put it."""
    maker = Maker()
    part = maker.op("Neg", maker.input("x", (2,)))
    total = maker.collective(AllReduce("tp"), part, "sum")
    model = maker.model([maker.collective(Broadcast("tp", 0), total, "told", "y")])
    program = RankProgram(model, OrtExecutor(), SingleCommunicator())
    made = [program.run({"x": np.full(2, n, np.float32)})["y"] for n in range(5)]
    assert [y.tolist() for y in made] == [[-n, -n] for n in range(5)]


def test_random_numbers_are_drawn_once_in_a_run() -> None:
    """A run that is made again, since a result that stays has another shape, would draw twice."""
    maker = Maker()
    x = maker.input("x", ("rows", 2))
    noise = maker.op("RandomNormalLike", x, seed=1.0)
    total = maker.collective(AllReduce("tp"), noise, "sum")
    model = maker.model([maker.op("Neg", total, name="y")])

    def draws(rows: list[int]) -> list[float]:
        program = RankProgram(model, OrtExecutor(), SingleCommunicator())
        runs = [program.run({"x": np.zeros((n, 2), np.float32)})["y"] for n in rows]
        values: list[float] = np.concatenate(runs).reshape(-1).tolist()
        return values

    assert draws([1, 1, 1, 2, 2, 1]) == draws([2, 1, 1, 2, 1, 1])


def test_results_go_where_the_caller_wants_them_whatever_their_shape() -> None:
    executor, step = OrtExecutor(), first_step(passing_on())
    room = executor.to_tensor(np.zeros((1, 2), np.float32))
    step.write_into({"squared": room})
    for value in range(4):
        made = step({"x": executor.to_tensor(np.full((1, 2), value, np.float32))})
        assert made["squared"] is room
        assert executor.to_array(made["doubled"]).tolist() == [[2 * value] * 2]
        assert executor.to_array(room).tolist() == [[value**2] * 2]


def test_a_step_that_fails_goes_on_with_the_next_run() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    index = maker.op("Cast", x, to=ir.DataType.INT64)
    index.type = ir.TensorType(ir.DataType.INT64)
    found = maker.op("Gather", maker.weight("w", np.arange(3, dtype=np.float32)), index)
    model = maker.model(
        [maker.op("Neg", maker.collective(AllReduce("tp"), found, "sum"), name="y")]
    )
    program = RankProgram(model, OrtExecutor(), SingleCommunicator())

    def run(*wanted: int) -> list[float]:
        values: list[float] = program.run({"x": np.array(wanted, np.float32)})["y"].tolist()
        return values

    assert [run(0, 1), run(1, 2), run(2, 0)] == [[0, -1], [-1, -2], [-2, 0]]
    for _ in range(3):
        with pytest.raises(ExecutionError, match="node 'Gather_1'"):
            run(0, 3)
    assert run(2, 1) == [-2, -1]


def test_what_the_caller_gives_is_not_held_after_the_run() -> None:
    executor, step = OrtExecutor(), first_step(passing_on())
    for _ in range(3):
        step({"x": executor.to_tensor(np.ones((1, 2), np.float32))})
    assert step._binding._held == [None]
    assert step._binding._loose == []
