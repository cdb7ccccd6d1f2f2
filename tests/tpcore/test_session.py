"""A session: one model from the outside, with onnxruntime's methods; nothing left when it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import tpcore
from backends.flight import read_rank
from graph.errors import BundleError, ExecutionError, PlanError
from tests import big_model
from tests.models import GENAI, model_inputs, model_path, run_reference
from tests.tpcore.command import ROOT, check_sentence, environment, flip_byte, python_path, save
from tests.tpcore.small_models import INPUTS, decoder, mlp
from tests.tpcore.test_faults import LONG, processes_with
from tests.tpcore.test_run import check_equal
from tpcore.onnxruntime_names import REFUSED
from tpcore.partition import Options
from tpcore.session import InferenceSession
from tpcore.shard import shard


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`genai` and `mlp` on two ranks, and `long`, which takes seconds to run."""
    made = tmp_path_factory.mktemp("bundles")
    shard(model_path(GENAI), made / "genai", Options(2, split_outputs=["logits"]))
    shard(save(mlp(), made / "mlp.onnx"), made / "mlp", Options(2))
    shard(big_model.make(made / "long.onnx", **LONG), made / "long", Options(2))
    return made


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sessions of the test leave their records; no process may be left that knows of it."""
    folder = tmp_path / "longer than the address of a socket may be" / ("x" * 60)
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", python_path())
    yield folder
    check_nothing_is_left(folder)
    monkeypatch.setattr("tempfile.tempdir", None)


def check_nothing_is_left(folder: Path, seconds: float = 10.0) -> None:
    """No rank or launcher lives, and of a job only reports are left."""
    deadline = time.monotonic() + seconds
    while left := [line for pid, line in processes_with(str(folder)) if int(pid) != os.getpid()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    names = {path.name for path in folder.glob("tpcore-*/*")}
    assert all(re.fullmatch(r"rank\d\.flight\.json|failure\.json", name) for name in names), names


def pids(session: InferenceSession) -> list[int]:
    """The processes of the ranks."""
    folder = session._runner._ranks.run_dir  # type: ignore[attr-defined]
    states = [read_rank(folder, rank) for rank in range(2)]
    return [state.pid for state in states if state is not None]


# --- as onnxruntime -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "simulate"])
def test_outputs_are_those_of_onnxruntime(bundles: Path, backend: str) -> None:
    """Over several calls of one session, whose inputs shrink and grow."""
    path = model_path(GENAI)
    unsplit = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with tpcore.InferenceSession(bundles / "genai", backend=backend) as session:
        names = [output.name for output in unsplit.get_outputs()]
        for mine, theirs in (
            (session.get_inputs(), unsplit.get_inputs()),
            (session.get_outputs(), unsplit.get_outputs()),
        ):
            assert [(a.name, a.type, len(a.shape)) for a in mine] == [
                (a.name, a.type, len(a.shape)) for a in theirs
            ]
        kept = []
        for case in ("decode", "prefill", "decode"):
            inputs = model_inputs(GENAI, case)
            want = run_reference(path, inputs)
            kept.append((session.run(None, inputs), want))
            picked = session.run(["present.0.key", "logits"], inputs)
            assert [p.shape for p in picked] == [want[n].shape for n in ("present.0.key", "logits")]
        for got, want in kept:  # a later call has not written into what an earlier one returned
            check_equal(dict(zip(names, got)), want)
        assert session.rank_seconds > 0


def test_a_model_is_split_in_memory(tmp_path: Path) -> None:
    path = save(mlp(), tmp_path / "mlp.onnx")
    with InferenceSession(path, tp=2) as session:
        want = run_reference(path, INPUTS["mlp"])
        check_equal({"y": session.run(None, INPUTS["mlp"])[0]}, want)
    with InferenceSession(path, options=Options(2, pins={"w1": "replicate"})) as session:
        check_equal({"y": session.run(None, INPUTS["mlp"])[0]}, want)


SCRIPT = """
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
session = onnxruntime.InferenceSession(
    "MODEL", sess_options=options, providers=onnxruntime.get_available_providers()
)
session.disable_fallback()
for argument in session.get_inputs() + session.get_outputs():
    print(argument.name, argument.shape, argument.type)
about = session.get_modelmeta()
print(about.producer_name, about.graph_name, about.version, about.custom_metadata_map)
print(session.get_session_options().log_severity_level, session.get_overridable_initializers())
x = np.arange(np.prod([2, 8]), dtype=np.float32).reshape(2, -1) / 16
feed = {session.get_inputs()[0].name: x}
names = [output.name for output in session.get_outputs()]
for wanted in (None, [], names, names[::-1]):
    for y in session.run(wanted, feed):
        print(y.dtype, y.shape, y.round(3).tolist())
print(session.run(names, feed, onnxruntime.RunOptions())[0].shape)
for wrong in ({}, {"z": x}, {"x": x.astype(np.float64)}, {"x": x[:, :-1]}, {"x": x[0]}):
    try:
        session.run(None, wrong)
    except Exception as error:
        print("refused", len(wrong))
"""


def test_a_script_for_onnxruntime_runs_with_another_import_and_path(
    bundles: Path, tmp_path: Path
) -> None:
    model = mlp()
    model.metadata_props["made by"] = "a test"
    path = save(model, tmp_path / "mlp.onnx")
    bundle = shard(path, tmp_path / "mlp", Options(2)).path
    said = []
    for module, target in (("onnxruntime", path), ("tpcore as onnxruntime", bundle)):
        text = SCRIPT.replace("import onnxruntime", f"import {module}")
        done = script(text.replace("MODEL", str(target)))
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout)
    assert said[0] == said[1] and "tensor(float)" in said[0]
    assert said[0].count("refused") == 5 and "{'made by': 'a test'}" in said[0]


@pytest.mark.parametrize("module", [tpcore, onnxruntime])
def test_settings_of_onnxruntime_are_taken_and_those_without_effect_named(
    module: Any, bundles: Path
) -> None:
    options = module.SessionOptions()
    options.intra_op_num_threads = 3
    more: dict[str, Any] = {
        "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "backend": "simulate",
    }
    with pytest.warns(UserWarning, match=r"backend does: sess_options.intra_op_num_threads=3 has"):
        session = InferenceSession(bundles / "mlp", options, **more)
    assert session.get_session_options() is options
    again = module.RunOptions()
    again.terminate = True
    with pytest.warns(UserWarning, match=r"backend does: run_options.terminate=True has no effe"):
        session.run(None, INPUTS["mlp"], again)
    with pytest.warns(
        UserWarning, match=r"provider_options=\[{'device_id': 1}, {}\] has no effect"
    ):
        InferenceSession(bundles / "mlp", None, provider_options=[{"device_id": 1}, {}], **more)


def test_methods_that_are_missing_say_what_to_do_instead(bundles: Path) -> None:
    session = InferenceSession(bundles / "mlp", backend="simulate")
    for name in REFUSED:
        assert hasattr(onnxruntime.InferenceSession, name) and not hasattr(session, name)
        with pytest.raises(PlanError, match=f"a session of tpcore has no {name}. ") as caught:
            getattr(session, name)
        check_sentence(str(caught.value))
    with pytest.raises(AttributeError, match="'InferenceSession' object has no attribute 'fly'"):
        session.fly()
    known = {name for name in dir(onnxruntime.InferenceSession) if name[0] != "_"}
    assert not {name for name in dir(session) if name[:4] == "get_"} - known


def script(text: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-c", text],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "simulate"])
def test_wrong_calls_are_refused_and_the_session_goes_on(bundles: Path, backend: str) -> None:
    x = INPUTS["mlp"]["x"]
    wrong = {
        "'x' is missing": (None, {}),
        f"'x' is float64{list(x.shape)} where": (None, {"x": x.astype(np.float64)}),
        "'z' is no input": (None, {"x": x, "z": x}),
        "'nope' is no output": (["nope"], {"x": x}),
    }
    with InferenceSession(bundles / "mlp", backend=backend) as session:
        for text, (names, feed) in wrong.items():
            with pytest.raises(PlanError) as caught:
                session.run(names, feed)
            assert text in str(caught.value)
            check_sentence(str(caught.value))
        assert session.run(None, {"x": x})[0].shape[0] == len(x)
    with pytest.raises(ExecutionError, match="is closed. Make a new one."):
        session.run(None, {"x": x})


@pytest.mark.parametrize("backend", ["cpu", "simulate"])
def test_what_fails_inside_the_graph(
    tmp_path_factory: pytest.TempPathFactory, backend: str
) -> None:
    """Ranks may be anywhere in it then, and have to end; in one process nothing has to."""
    folder = tmp_path_factory.mktemp("fails")
    save(decoder(), folder / "decoder.onnx")
    shard(folder / "decoder.onnx", folder / "bundle", Options(2))
    ids = INPUTS["decoder"]["ids"]
    with InferenceSession(folder / "bundle", backend=backend) as session:
        with pytest.raises(ExecutionError, match="out of data bounds"):
            session.run(None, {"ids": ids + 1000})
        if backend == "simulate":
            assert session.run(None, {"ids": ids})[0].shape[:2] == ids.shape
            return
        with pytest.raises(ExecutionError, match=r"closed, since a call of it .* rank \d failed"):
            session.run(None, {"ids": ids})


def test_a_session_belongs_to_the_process_that_made_it(bundles: Path) -> None:
    """A forked one would read its parent's answers."""
    x = INPUTS["mlp"]["x"]
    with InferenceSession(bundles / "mlp") as session:
        (before,) = session.run(None, {"x": x})
        child = os.fork()
        if child == 0:
            try:
                session.run(None, {"x": x})
            except ExecutionError as error:
                os._exit(0 if "has forked this one. Make one here." in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        (after,) = session.run(None, {"x": x})
    assert after.tobytes() == before.tobytes()


def test_what_has_no_effect_is_refused(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: dict[str, dict[str, Any]] = {
        "leaves nothing to tpcore": {"providers": ["CUDAExecutionProvider"]},
        "sess_options is a object, which is none": {"sess_options": object()},
    }
    for text, more in refused.items():
        with pytest.raises(PlanError, match=text) as caught:
            InferenceSession(bundles / "mlp", **more)
        check_sentence(str(caught.value))
    with pytest.raises(PlanError, match="not from its contents: every rank reads"):
        InferenceSession((bundles / "mlp.onnx").read_bytes())  # type: ignore[arg-type]
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(PlanError, match="starts its own ranks. Start the script without"):
        InferenceSession(bundles / "mlp")


def test_a_rank_that_cannot_start_says_why(tmp_path: Path) -> None:
    bundle = shard(save(mlp(), tmp_path / "m.onnx"), tmp_path / "b", Options(2)).path
    flip_byte(bundle / "rank-00001" / "model.safetensors", 0.9)
    with pytest.raises(BundleError, match=r"rank 1 cannot run: .*rank-00001/model.safetensors"):
        InferenceSession(bundle)


# --- faults ---------------------------------------------------------------------------------------


def test_a_rank_killed_in_a_call_is_named(bundles: Path) -> None:
    inputs = made_up(bundles / "long")
    session = InferenceSession(bundles / "long")
    killer = threading.Timer(0.3, lambda: os.kill(pids(session)[1], signal.SIGKILL))
    killer.start()
    with pytest.raises(ExecutionError, match=r"^rank 1 \(pid \d+ on .*\) was killed by SIGKILL"):
        session.run(None, inputs)
    killer.join()
    with pytest.raises(ExecutionError, match="is closed"):
        session.run(None, inputs)


def test_a_rank_killed_between_calls_is_named(bundles: Path) -> None:
    session = InferenceSession(bundles / "mlp")
    session.run(None, INPUTS["mlp"])
    os.kill(pids(session)[0], signal.SIGKILL)
    with pytest.raises(ExecutionError, match=r"^rank 0 \(pid \d+ on .*\) (was killed by|died)"):
        session.run(None, INPUTS["mlp"])


def made_up(bundle: Path) -> dict[str, np.ndarray]:
    """Inputs as `tpcore run` makes them up."""
    from tpcore.inputs import make_inputs
    from tpcore.target import open_target

    return make_inputs(open_target(bundle, None).inputs, {})


HEAD = """
import os, signal, sys, threading, time
import tpcore
from tests.tpcore.test_session import made_up
from pathlib import Path
session = tpcore.InferenceSession("BUNDLE")
inputs = made_up(Path("BUNDLE"))
"""
ENDS = {
    "exit": "session.run(None, inputs)",
    "exception": "session.run(None, inputs); raise ValueError('mine')",
    "hard exit": "os._exit(6)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "killed in a call": """
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
for _ in range(1000): session.run(None, inputs)
""",
    "killed in a thread": """
del session
def work():
    session = tpcore.InferenceSession("BUNDLE")
    session.run(None, inputs)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=work).start()
""",
    "garbage": """
session.run(None, inputs)
del session
print(list(Path(os.environ["TMPDIR"]).glob("tpcore-*")))
""",
    "interrupt": """
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
for _ in range(1000): session.run(None, inputs)
""",
}
STATUS = {"exit": 0, "exception": 1, "hard exit": 6, "garbage": 0, "interrupt": -signal.SIGINT}
STATUS |= {"terminated": -signal.SIGTERM}
IN_A_CALL = ("interrupt", "killed in a call")


@pytest.mark.parametrize("how", ENDS)
def test_nothing_is_left_however_a_script_ends(bundles: Path, how: str, scratch: Path) -> None:
    bundle = bundles / ("long" if how in IN_A_CALL else "mlp")
    done = script((HEAD + ENDS[how]).replace("BUNDLE", str(bundle)))
    assert done.returncode == STATUS.get(how, -signal.SIGKILL), done.stderr
    said = {"exception": "ValueError: mine", "interrupt": "KeyboardInterrupt"}
    assert said.get(how, "") in done.stderr
    assert how in said or done.stderr == ""
    assert how != "garbage" or done.stdout == "[]\n"
    check_nothing_is_left(scratch)
    assert not list(scratch.glob("tpcore-*"))


def test_ranks_use_no_core_between_calls(bundles: Path) -> None:
    with InferenceSession(bundles / "mlp") as session:
        session.run(None, INPUTS["mlp"])
        time.sleep(0.2)
        before = [cpu_ticks(pid) for pid in pids(session)]
        time.sleep(0.6)
        assert [cpu_ticks(pid) for pid in pids(session)] == before


def cpu_ticks(pid: int) -> int:
    """Hundredths of a second that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
