"""Running rank graphs in one process."""

from __future__ import annotations

import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from backends.comm_local import SingleCommunicator
from backends.exec_ort import OrtExecutor
from backends.flight import Recorder, read_rank
from backends.job import Watched
from backends.lockstep import run_lockstep
from backends.run import RankProgram
from graph.dialect import AllReduce
from graph.errors import BundleError, ExecutionError, PlanError
from tests.backends.toys import HIDDEN, Maker, mlp_rank, mlp_reference, mlp_weights

X = np.random.default_rng(1).normal(size=(3, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_lockstep_equals_the_whole_mlp(ranks: int) -> None:
    models = [mlp_rank(rank, ranks) for rank in range(ranks)]
    results = run_lockstep(models, [{"x": X}] * ranks, OrtExecutor())
    expected = mlp_reference(X, mlp_weights())
    for result in results:
        for name, array in expected.items():
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5)


def test_the_hook_sees_every_value_of_every_rank() -> None:
    seen: dict[int, list[str]] = {0: [], 1: []}
    models = [mlp_rank(rank, 2) for rank in range(2)]
    run_lockstep(
        models, [{"x": X}] * 2, OrtExecutor(), hook=lambda rank, name, _: seen[rank].append(name)
    )
    assert seen[0] == seen[1]
    assert seen[0] == [node.outputs[0].name for node in models[0].graph]


def test_a_program_of_one_rank_runs_repeatedly() -> None:
    program = RankProgram(mlp_rank(0, 1), OrtExecutor(), SingleCommunicator())
    first = program.run({"x": X})
    again = program.run({"x": X[:1]})
    assert first["y"].shape == (3, HIDDEN) and again["y"].shape == (1, HIDDEN)
    np.testing.assert_allclose(first["y"][:1], again["y"], rtol=1e-6)
    assert 0 <= program.exchange_seconds < program.seconds


def test_a_job_s_recorder_is_the_monitor_unless_another_is_given(tmp_path: Path) -> None:
    """Compiled collectives write into it, and the watcher would not know the places."""
    recorder = Recorder(tmp_path, 0)
    watched = Watched(SingleCommunicator(), recorder)
    RankProgram(mlp_rank(0, 1), OrtExecutor(), watched).run({"x": X})
    state = read_rank(tmp_path, 0)
    assert state is not None and state.place == "AllGather #1 at node 'AllGather_1'"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.bool_])
def test_every_type_passes_between_segments(dtype: type) -> None:
    maker = Maker(dtype)
    x = maker.input("x", ("n",))
    total = maker.collective(AllReduce("tp", "max"), maker.op("Identity", x), "reduce")
    models = [maker.model([maker.op("Identity", total, name="y")])] * 2
    given: list[dict[str, np.ndarray]] = [
        {"x": np.array([rank, 1 - rank, 1]).astype(dtype)} for rank in range(2)
    ]
    for result in run_lockstep(models, given, OrtExecutor()):
        assert result["y"].dtype == dtype
        assert result["y"].astype(np.float32).tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "dtype", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2fnuz]
)
def test_types_that_numpy_lacks_come_in_and_go_out(dtype: type, size: int) -> None:
    maker = Maker(dtype)
    x = maker.input("x", ("n",))
    given: np.ndarray = np.array([1, 7, 0, 4, 3][:size]).astype(dtype)
    wide = maker.op("Cast", x, to=ir.DataType.FLOAT)
    wide.type = ir.TensorType(ir.DataType.FLOAT)
    narrow = maker.op("Cast", wide, name="y", to=ir.DataType.from_numpy(np.dtype(dtype)))
    program = maker.model([narrow], opset=21)
    (result,) = run_lockstep([program], [{"x": given}], OrtExecutor())
    assert result["y"].dtype == dtype and np.array_equal(result["y"], given)


def test_outputs_outlive_the_program() -> None:
    program = RankProgram(mlp_rank(0, 1), OrtExecutor(), SingleCommunicator())
    result = program.run({"x": X})
    copies = {name: array.copy() for name, array in result.items()}
    for _ in range(20):
        program.run({"x": X * 2})
    del program
    assert all(np.array_equal(result[name], copies[name]) for name in copies)


def test_mapped_weights_are_not_copied(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    maker = Maker()
    x = maker.input("x", (1024,))
    w = maker.weight("w", np.zeros((1024, 1024), np.float32))
    w.const_value = ir.ExternalTensor(
        "w.bin", 0, weight.nbytes, ir.DataType.FLOAT, shape=ir.Shape((1024, 1024)), name="w",
        base_dir=tmp_path,
    )  # fmt: skip
    model = maker.model([maker.op("Add", x, w, name="y")])
    before = anonymous_kib()
    program = RankProgram(model, OrtExecutor(), SingleCommunicator())
    assert anonymous_kib() - before < 2048
    given = np.ones(1024, np.float32)
    assert np.array_equal(program.run({"x": given})["y"], weight + 1)


def anonymous_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    pytest.skip("needs /proc")


def test_a_failing_node_is_named() -> None:
    maker = Maker()
    x = maker.input("x", ("n",))
    y = maker.input("y", ("m",))
    model = maker.model([maker.op("Add", x, y)])
    program = RankProgram(model, OrtExecutor(), SingleCommunicator())
    with pytest.raises(ExecutionError, match="onnxruntime cannot run node 'Add_0'"):
        program.run({"x": np.ones(2, np.float32), "y": np.ones(3, np.float32)})


def test_an_op_that_does_not_exist_is_named() -> None:
    maker = Maker()
    model = maker.model([maker.op("NoSuchOp", maker.input("x", (2,)))])
    with pytest.raises(ExecutionError, match="cannot load"):
        RankProgram(model, OrtExecutor(), SingleCommunicator())


def test_all_wrong_inputs_are_reported_at_once() -> None:
    program = RankProgram(mlp_rank(0, 1), OrtExecutor(), SingleCommunicator())
    with pytest.raises(PlanError, match="'z' is no input; 'x' is missing"):
        program.run({"z": X})
    with pytest.raises(PlanError, match=r"'x' is float64\[3, 8\] where the graph has float32"):
        program.run({"x": X.astype(np.float64)})


def reordered(rank: int) -> ir.Model:
    maker = Maker()
    x = maker.input("x", (2,))
    parts = [maker.op("Neg", x), maker.op("Abs", x)]
    names = ["neg", "abs"]
    order = [0, 1] if rank == 0 else [1, 0]
    results = [maker.collective(AllReduce("tp"), parts[i], names[i]) for i in order]
    return maker.model(results)


def test_lockstep_refuses_ranks_with_another_order() -> None:
    given = [{"x": np.ones(2, np.float32)}] * 2
    with pytest.raises(BundleError, match=r"rank 1 .* position 0: rank 1 has #0 .*'abs'.*'neg'"):
        run_lockstep([reordered(0), reordered(1)], given, OrtExecutor())


def test_segments_do_not_each_hold_what_they_needed_most() -> None:
    segments, mib = 24, 1 << 20
    maker = Maker()
    value = maker.input("x", ("n",))
    for number in range(segments):
        turned = maker.op("Exp", maker.op("Sin", value))
        value = maker.collective(AllReduce("tp", "max"), turned, f"reduce_{number}")
    model = maker.model([maker.op("Neg", value, name="y")])
    program = RankProgram(model, OrtExecutor(), SingleCommunicator())
    before = resident_bytes()
    program.run({"x": np.zeros(2 * mib, np.float32)})
    assert resident_bytes() - before < segments * 8 * mib / 2


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
