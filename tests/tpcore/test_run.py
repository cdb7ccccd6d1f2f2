"""One model from the outside: every way to start a split model gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.graph.small import Arrays
from tests.models import GENAI, model_cases, model_inputs, model_path, run_reference
from tests.tpcore.command import (
    Done,
    assert_same_bits,
    load_arrays,
    on_cores,
    python_path,
    save,
    save_arrays,
    tpcore,
    tpcore_here,
)
from tests.tpcore.small_models import INPUTS, mlp
from tpcore.compare import compare
from tpcore.partition import Options
from tpcore.shard import shard

CASES = [
    (model, ranks)
    for model in ("llama-opset18-dynamic", "gpt2-opset18-dynamic", GENAI)
    for ranks in (2, 4)
]
Here = Callable[..., Done]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Run a command in this process."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    return lambda *argv: tpcore_here(capfd, *argv)


@pytest.mark.parametrize(("model", "ranks"), CASES)
def test_every_way_to_run_gives_the_same_bits(
    model: str, ranks: int, here: Here, tmp_path: Path
) -> None:
    """The bundle on ranks of our own and of mpirun, the model split in memory, all in lockstep.

    The last case of each model is run, for the one from genai a step on a cache that is split.
    All have one thread per rank: with other numbers of threads a sum may round in another place.
    """
    path = model_path(model)
    inputs = model_inputs(model, model_cases(model)[-1])
    given = save_arrays(tmp_path / "x.npz", inputs)
    bundle = shard(path, tmp_path / "b", Options(ranks)).path

    def outputs(run: Callable[..., Done], *argv: object, **how: int) -> bytes:
        made = tmp_path / "y.npz"
        made.unlink(missing_ok=True)
        done = run("run", *argv, "--inputs", given, "--outputs", made, **how)
        assert (done.status, done.err) == (0, "")
        assert done.out.endswith(f"written to {made}\n") and done.out.count("written") == 1
        return made.read_bytes()

    with on_cores(ranks):
        ours = outputs(here, bundle, "--backend", "cpu")
        assert outputs(tpcore, bundle, "--backend", "cpu", ranks=ranks) == ours
        if ranks == 2 or model == GENAI:  # each rank splits the model by itself, which takes time
            assert outputs(here, path, "--tp", ranks, "--backend", "cpu") == ours
        with on_cores(1):
            assert outputs(here, bundle, "--backend", "simulate") == ours
    check_equal(load_arrays(tmp_path / "y.npz"), run_reference(path, inputs))


def check_equal(got: Arrays, want: Arrays) -> None:
    """The verification's own comparison with the unsplit model."""
    assert list(got) == list(want)
    assert all(compare(name, got[name], want[name]).equal for name in want)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mlp.onnx`, bundles of it for 1 and 2 ranks, and `x.npz`."""
    made = tmp_path_factory.mktemp("run")
    save(mlp(), made / "mlp.onnx")
    save_arrays(made / "x.npz", INPUTS["mlp"])
    for ranks in (1, 2):
        shard(made / "mlp.onnx", made / f"b{ranks}", Options(ranks))
    return made


@pytest.mark.parametrize("backend", ["simulate", "cpu"])
def test_one_rank_needs_no_launcher(
    small: Path, backend: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpcore.run.launch", lambda *_: pytest.fail("ranks were started"))
    for target in ([small / "b1"], [small / "mlp.onnx", "--tp", 1]):
        done = here(
            "run", *target, "--backend", backend,
            "--inputs", small / "x.npz", "--outputs", tmp_path / "y.npz",
        )  # fmt: skip
        assert (done.status, done.err) == (0, "")
        check_equal(
            load_arrays(tmp_path / "y.npz"), run_reference(small / "mlp.onnx", INPUTS["mlp"])
        )


def test_simulate_under_mpirun_is_run_once(small: Path, tmp_path: Path) -> None:
    done = tpcore(
        "run", small / "b2", "--backend", "simulate", "--outputs", tmp_path / "y.npz", ranks=2
    )
    assert (done.status, done.err) == (0, "")
    assert done.out.count("y: float32[1, 8]") == 1 and list(load_arrays(tmp_path / "y.npz")) == [
        "y"
    ]


def test_other_ranks_stay_silent_and_nothing_is_left(
    small: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    for done in (here("run", small / "b2"), tpcore("run", small / "b2", ranks=2)):
        assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    assert not list(tmp_path.glob("tpcore-*"))
    assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*")}


def test_inputs_are_made_up_the_same_way_everywhere(
    small: Path, here: Here, tmp_path: Path
) -> None:
    """Without --inputs every rank makes them up by itself: they must agree.

    The model is split by the bundle's plan: for another batch it might be split otherwise.
    """
    same_plan = ["mlp.onnx", "--tp", "2", "--plan", str(small / "b2" / "plan.json")]
    for name, target in {"a": ["b2"], "b": same_plan}.items():
        line = ["run", small / target[0], *target[1:], "--shape", "batch=5"]
        done = here(*line, "--outputs", tmp_path / f"{name}.npz")
        assert (done.status, done.err) == (0, "") and "y: float32[5, 8]" in done.out
    done = here("run", small / "b2", "--backend", "simulate", "--shape", "batch=5",
                "--outputs", tmp_path / "c.npz")  # fmt: skip
    got = [load_arrays(tmp_path / f"{name}.npz") for name in "abc"]
    assert_same_bits(got[0], got[1])
    assert_same_bits(got[2], got[1])


def test_a_batch_of_nothing(small: Path, here: Here) -> None:
    for backend in ("simulate", "cpu"):
        done = here("run", small / "b2", "--backend", backend, "--shape", "batch=0")
        assert (done.status, done.err) == (0, "") and "y: float32[0, 8]" in done.out
