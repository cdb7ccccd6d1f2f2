"""The command line: every bad request gets one sentence and status 2, every --json one object."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.graph.small import weight
from tests.tpcore.command import (
    Done,
    check_sentence,
    command,
    environment,
    flip_byte,
    python_path,
    save,
    save_arrays,
    tpcore,
    tpcore_here,
)
from tests.tpcore.small_models import INPUTS, decoder, mlp
from tpcore.__main__ import main as start
from tpcore.cli import main
from tpcore.partition import Options
from tpcore.shard import shard

Here = Callable[..., Done]
X = INPUTS["mlp"]["x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, bundles, plans and inputs, good and bad; nothing in it is changed by a test."""
    made = tmp_path_factory.mktemp("cli")
    for name, model in {"mlp": mlp(), "decoder": decoder()}.items():
        save(model, made / f"{name}.onnx")
    for ranks in (2, 4):
        shard(made / "mlp.onnx", made / f"mlp{ranks}", Options(ranks))
    _make_bad_models(made)
    _make_plans(made)
    _make_arrays(made)
    return made


def _make_bad_models(made: Path) -> None:
    (made / "text.onnx").write_text("this is no model")
    (made / "empty.onnx").write_bytes(b"")
    (made / "plain").mkdir()
    (made / "plain" / "file").write_text("not a bundle")
    cut = made / "cut"
    cut.mkdir()
    shutil.copy(made / "mlp.onnx", cut)
    contents = (made / "mlp.onnx.data").read_bytes()
    (cut / "mlp.onnx.data").write_bytes(contents[:-100])
    alone = made / "alone"
    alone.mkdir()
    shutil.copy(made / "mlp.onnx", alone)


def _make_plans(made: Path) -> None:
    assert main(["plan", str(made / "mlp.onnx"), "--tp", "2", "-o", str(made / "plan.json")]) == 0
    plan = json.loads((made / "plan.json").read_text())
    changed: dict[str, Any] = {
        "version": {**plan, "version": 99},
        "nolist": {**plan, "values": ["w1"]},
        "nomesh": {name: part for name, part in plan.items() if name != "mesh"},
        "unknown": {**plan, "values": {"w9": "R"}},
        "impossible": {**plan, "values": {"w1": "S(0) 0:4 4:8 8:12"}},
        "number": 7,
    }
    for name, contents in changed.items():
        (made / f"plan-{name}.json").write_text(json.dumps(contents))
    (made / "plan-binary.json").write_bytes(bytes(range(256)))


def _make_arrays(made: Path) -> None:
    good: dict[str, dict[str, Any]] = {
        "x": {"x": X},
        "none": {},
        "extra": {"x": X, "z": X},
        "double": {"x": X.astype(np.float64)},
        "wide": {"x": np.zeros((3, 9), np.float32)},
        "flat": {"x": np.zeros(8, np.float32)},
        "pickled": {"x": np.array([{"a": 1}], dtype=object)},
    }
    for name, arrays in good.items():
        save_arrays(made / f"{name}.npz", arrays)
    np.save(made / "single.npy", X)
    contents = (made / "x.npz").read_bytes()
    (made / "torn.npz").write_bytes(contents[:-40])
    damaged = bytearray(contents)
    damaged[len(contents) // 2] ^= 1
    (made / "damaged.npz").write_bytes(damaged)


@pytest.fixture
def here(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Here:
    """Run a command, given as text, in this process and in the folder; OUT is a fresh folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", python_path())
    return lambda line: tpcore_here(capfd, *line.replace("OUT", str(tmp_path)).split())


BAD_MODELS = [
    ("nope.onnx", "there is no file 'nope.onnx'. Check the path"),
    ("plain", "'plain' is a directory, not an ONNX file"),
    (
        "text.onnx",
        "'text.onnx' is not an ONNX file: its 16 bytes hold no ONNX graph, or only a part of one",
    ),
    ("empty.onnx", "'empty.onnx' is empty (0 bytes), not an ONNX file"),
    ("alone/mlp.onnx", "external data 'mlp.onnx.data' cannot be opened at"),
]


@pytest.mark.parametrize("line", ["shard {} --tp 2 -o OUT/b", "plan {} --tp 2", "plan --tp 1 {}"])
@pytest.mark.parametrize(("model", "text"), BAD_MODELS)
def test_models_that_are_none(here: Here, line: str, model: str, text: str) -> None:
    done = here(line.format(model))
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


@pytest.mark.parametrize("line", ["shard cut/mlp.onnx --tp 2 -o OUT/b", "inspect cut/mlp.onnx"])
def test_truncated_weights_are_refused_with_both_sizes(
    here: Here, folder: Path, line: str, tmp_path: Path
) -> None:
    whole = (folder / "mlp.onnx.data").stat().st_size
    done = here(line)
    assert done.status == 2 and "is truncated or of another model, copy it again" in done.error
    found = re.search(r"needs bytes \d+ to (\d+) of 'mlp.onnx.data', which has (\d+)", done.error)
    assert found and int(found[1]) > int(found[2]) == whole - 100
    assert not list(tmp_path.iterdir())


USAGE = [
    ("", "the following arguments are required: COMMAND. See tpcore --help."),
    ("frobnicate", "argument COMMAND: invalid choice: 'frobnicate'"),
    ("shard", "the following arguments are required: model, --tp/--tensor-parallel-size, -o"),
    ("shard mlp.onnx -o OUT/b", "the following arguments are required: --tp"),
    ("shard mlp.onnx --tp 0 -o OUT/b", "'0' is no number of ranks: it must be a whole number, 1 o"),
    ("shard mlp.onnx --tp -1 -o OUT/b", "'-1' is no number of ranks"),
    ("shard mlp.onnx --tp x -o OUT/b", "'x' is no number of ranks"),
    ("shard mlp.onnx --tp 1.5 -o OUT/b", "'1.5' is no number of ranks"),
    ("plan mlp.onnx --tensor-parallel-size 0", "'0' is no number of ranks"),
    ("shard mlp.onnx --tp 2 -o OUT/b --bogus", "unrecognized arguments: --bogus"),
    ("run mlp2 --bogus", "unrecognized arguments: --bogus"),
    ("run mlp2 --timeout 0", "'0' is no time: give seconds above 0"),
    ("run mlp2 --timeout soon", "'soon' is no time"),
    ("run mlp2 --shape batch", "'batch' is no size of a dim: write --shape batch=1,sequence=128"),
    ("run mlp2 --shape batch=-1", "'batch=-1' is no size of a dim"),
    ("run mlp2 --shape batch=1,", "'' is no size of a dim"),
    ("verify mlp2", "the following arguments are required: --against"),
]


@pytest.mark.parametrize(("line", "text"), USAGE)
def test_requests_that_make_no_sense(here: Here, line: str, text: str, tmp_path: Path) -> None:
    done = here(line)
    assert done.status == 2 and text in done.error and "--help." in done.error
    check_sentence(done.error)
    assert not list(tmp_path.iterdir())


BAD_TARGETS = [
    ("run mlp.onnx", "'mlp.onnx' is a model file, and over how many ranks to split it is not said"),
    ("run nope", "there is no model file and no bundle 'nope'. Check the path."),
    ("run nope.onnx --tp 2", "there is no model file and no bundle 'nope.onnx'. Check the path."),
    ("run plain", "'plain' is not a bundle: it has no manifest.json"),
    ("run mlp2 --tp 4", "bundle 'mlp2' is for 2 ranks, --tp asks for 4. Leave --tp out, or split"),
    ("run mlp4 --tp 2", "bundle 'mlp4' is for 4 ranks, --tp asks for 2"),
    (
        "run mlp2 --plan replicate",
        "--plan replicate was given for bundle 'mlp2', which is split already",
    ),
    ("run mlp2 --backend bogus", "backend 'bogus' is unknown"),
    ("run mlp2 --backend cuda", "backend 'cuda' is not available: "),
    ("run mlp2 --backend cuda", "Available here: simulate"),
    ("run mlp2 --outputs OUT", "outputs cannot be written to '/"),
    ("run mlp2 --outputs OUT", "it is a directory. Choose another path."),
    ("run mlp2 --outputs nope/y.npz", "written to 'nope/y.npz': 'nope' is no directory."),
    ("inspect nope", "there is no model file and no bundle 'nope'"),
    ("inspect plain", "'plain' is not a bundle: it has no manifest.json"),
    ("inspect text.onnx", "'text.onnx' is not an ONNX file"),
    ("verify nope --against mlp.onnx", "bundle 'nope' does not exist"),
    ("verify mlp.onnx --against mlp.onnx", "bundle 'mlp.onnx' is a file, not a bundle."),
    ("verify mlp2 --against nope.onnx", "there is no file 'nope.onnx'"),
    ("verify mlp2 --against mlp.onnx --backend bogus", "backend 'bogus' is unknown"),
    ("verify mlp2 --against decoder.onnx", "was made from another model than 'decoder.onnx': sha2"),
]


@pytest.mark.parametrize(("line", "text"), BAD_TARGETS)
def test_targets_that_cannot_be_used(here: Here, line: str, text: str) -> None:
    done = here(line)
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


BAD_INPUTS = [
    (
        "--inputs nope.npz",
        "arrays 'nope.npz' cannot be read: No such file or directory. Write them",
    ),
    ("--inputs plain", "arrays 'plain' cannot be read: Is a directory."),
    ("--inputs text.onnx", "arrays 'text.onnx' cannot be read: it is not an .npz file."),
    ("--inputs single.npy", "arrays 'single.npy' cannot be read: it is not an .npz file."),
    ("--inputs torn.npz", "arrays 'torn.npz' cannot be read: it is not an .npz file."),
    ("--inputs damaged.npz", "arrays 'damaged.npz' cannot be read: Bad CRC-32 for file 'x.npy'."),
    ("--inputs pickled.npz", "its part 'x.npy' is no array of numbers (Object arrays cannot be lo"),
    (
        "--inputs none.npz",
        "'none.npz' does not hold the inputs of 'mlp2': 'x' is missing. Inputs: ",
    ),
    ("--inputs extra.npz", "'z' is no input. Inputs: x."),
    ("--inputs double.npz", "'x' is float64[3, 8] where the model has float32[batch, 8]. Inputs: "),
    ("--inputs wide.npz", "'x' is float32[3, 9] where the model has float32[batch, 8]"),
    ("--inputs flat.npz", "'x' is float32[8] where the model has float32[batch, 8]"),
    ("--shape bath=3", "--shape names 'bath', which is no symbolic dim of any input. Symbolic dim"),
    ("--shape a=1,b=2", "--shape names 'a' and 'b', which"),
    ("--inputs x.npz --shape bath=3", "Symbolic dims of this model: batch."),
]


@pytest.mark.parametrize("backend", ["cpu", "simulate"])
@pytest.mark.parametrize(("options", "text"), BAD_INPUTS)
def test_inputs_that_do_not_fit(here: Here, options: str, text: str, backend: str) -> None:
    done = here(f"run mlp2 --backend {backend} {options}")
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--inputs torn.npz", "it is not an .npz file"),
        ("--inputs none.npz", "'x' is missing"),
        ("--inputs wide.npz", "'x' is float32[3, 9] where the graph has float32[batch,8]"),
        ("--shape bath=3", "--shape names 'bath'"),
    ],
)
def test_verify_refuses_inputs_that_do_not_fit(here: Here, options: str, text: str) -> None:
    done = here(f"verify mlp2 --against mlp.onnx {options}")
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


BAD_PLANS = [
    (
        "nope.json",
        "plan 'nope.json' cannot be read: No such file or directory. Give a plan file, o",
    ),
    ("plain", "plan 'plain' cannot be read: Is a directory"),
    ("text.onnx", "'text.onnx' is not a plan file (Expecting value: line 1 column 1 (char 0)). Wr"),
    ("plan-binary.json", "'plan-binary.json' is not a plan file ("),
    ("plan-number.json", "'plan-number.json' is not a plan file"),
    ("plan-nolist.json", "is not a plan file ('values' is a list, expected dict)"),
    ("plan-nomesh.json", "is not a plan file (no field 'mesh')"),
    ("plan-version.json", "has version 99, this tpcore reads 1. Plan again."),
    ("plan-unknown.json", "the plan pins value 'w9', which graph 'mlp' lacks."),
    ("plan-impossible.json", "pins value 'w1' to S(0) 0:4 4:8 8:12, which is none of its placemen"),
    ("plan-impossible.json", "Choose one of: R; S(0) 0:4 4:8; S(1) 0:8 8:16"),
]


@pytest.mark.parametrize(("plan", "text"), BAD_PLANS)
def test_plans_that_do_not_fit(here: Here, plan: str, text: str) -> None:
    done = here(f"shard mlp.onnx --tp 2 -o OUT/b --plan {plan}")
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


def test_a_plan_for_another_number_of_ranks(here: Here) -> None:
    done = here("plan mlp.onnx --tp 4 --plan plan.json")
    assert done.status == 2
    assert "'plan.json' is for mesh {'tp': 2}, the request is for tp=4. Plan again" in done.error


@pytest.mark.parametrize("model", ["mlp", "decoder"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_plan_that_was_written_can_be_given_back(here: Here, model: str, ranks: int) -> None:
    first = here(f"plan {model}.onnx --tp {ranks} -o OUT/p.json --json")
    again = here(f"plan {model}.onnx --tp {ranks} --plan OUT/p.json --json")
    assert first.status == again.status == 0 and again.err == ""
    one, two = json.loads(first.out), json.loads(again.out)
    assert one["plan"]["values"] == two["plan"]["values"]
    assert one["collectives"] == two["collectives"]
    assert one["weight_bytes_per_rank"] == two["weight_bytes_per_rank"]


def test_more_ranks_than_any_dim_allows(here: Here) -> None:
    done = here("shard mlp.onnx --tp 1000 -o OUT/b")
    assert done.status == 2
    found = re.search(
        r"cannot split over tp=1000: the largest dim of any weight is (\d+) \(of '(\w+)'\), and "
        r"1000 ranks would leave some of them without a part. Choose tp up to (\d+).$",
        done.error,
    )
    assert found and found[1] == found[3] == "16" and found[2] in ("w1", "w2")
    assert here("plan mlp.onnx --tp 16").status == 0
    assert here("plan mlp.onnx --tp 17").status == 2


def test_an_unknown_symbolic_dim(here: Here) -> None:
    done = here("plan mlp.onnx --tp 2 --shape bath=3")
    assert done.status == 2 and "'bath'" in done.error and "dims of this model: batch" in done.error


def test_what_exists_is_not_replaced(here: Here, tmp_path: Path) -> None:
    assert here("shard mlp.onnx --tp 2 -o OUT/b").status == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = here("shard mlp.onnx --tp 2 -o OUT/b")
    assert done.status == 2 and "exists already. Give --force to replace it." in done.error
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert here("shard mlp.onnx --tp 4 -o OUT/b --force").status == 0
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["world_size"] == 4


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_force_replaces_nothing_but_bundles(
    here: Here, folder: Path, kind: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        place.mkdir()
        (place / "file").write_text("mine")
    else:
        place.symlink_to(folder / "mlp2")
    done = here("shard mlp.onnx --tp 2 -o OUT/place --force")
    assert (
        done.status == 2 and "is not a bundle, so --force does not replace it either." in done.error
    )
    assert os.path.lexists(place) and sorted(p.name for p in tmp_path.iterdir()) == ["place"]


@pytest.mark.parametrize(
    "line",
    [
        "shard mlp.onnx --tp 2 -o mlp.onnx/b",
        "shard mlp.onnx --tp 2 -o OUT/b --dump mlp.onnx",
        "plan mlp.onnx --tp 2 -o nope/plan.json",
        "plan mlp.onnx --tp 2 -o plain",
    ],
)
def test_places_that_cannot_be_written(here: Here, line: str) -> None:
    done = here(line)
    assert done.status == 2 and re.search(r"cannot write|the system refused", done.error)
    assert re.search("exists|No such file|Is a directory|Not a directory", done.error)
    check_sentence(done.error)


DAMAGED = [
    "rank-00001/model.safetensors",
    "rank-00001/model.onnx",
    "manifest.json",
    "plan.json",
]


@pytest.mark.parametrize("name", DAMAGED)
def test_one_flipped_byte_is_refused(folder: Path, name: str, here: Here, tmp_path: Path) -> None:
    shutil.copytree(folder / "mlp2", tmp_path / "b")
    flip_byte(tmp_path / "b" / name, 0.8)
    results = [
        here("run OUT/b --backend simulate"),
        here("verify OUT/b --against mlp.onnx"),
        here("run OUT/b"),
        tpcore("run", tmp_path / "b", ranks=2),
    ]
    for done in results:
        assert done.status == 2
        assert "damaged" in done.error and name in done.error
        assert re.search("(crc32|sha256).*the manifest states|states .* as bundle_id", done.error)


@pytest.mark.parametrize(
    ("bundle", "ranks", "text"),
    [
        ("mlp4", 2, "for 4 ranks but 2 were started. Start 4 ranks, or"),
        ("mlp2", 1, "for 2 ranks but the launcher started 1. Start 2 ranks"),
        ("mlp2 --bogus", 2, "unrecognized arguments: --bogus"),
        ("mlp2 --inputs wide.npz", 2, "'x' is float32[3, 9] where the model has float32[batch, 8]"),
        ("mlp2 --outputs nope/y.npz", 2, "outputs cannot be written to 'nope/y.npz'"),
    ],
)
def test_under_mpirun_one_rank_speaks(folder: Path, bundle: str, ranks: int, text: str) -> None:
    done = tpcore("run", *bundle.split(), ranks=ranks, cwd=folder)
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("--version", 0),
        ("verify mlp2 --against mlp.onnx", 0),
        ("shard nope.onnx --tp 2 -o b", 2),
        ("run mlp2 --inputs wide.npz", 2),
        ("shard nope.onnx --tp 2 -o b --debug", 2),
    ],
)
def test_exit_status_of_the_process(folder: Path, line: str, status: int) -> None:
    done = tpcore(*line.split(), cwd=folder)
    assert done.status == status
    assert (done.out != "") == (status == 0)
    assert ("Traceback" in done.err) == ("--debug" in line)
    assert done.err == "" if status == 0 else done.err.count("error: ") == 1


@pytest.mark.parametrize(
    "wish",
    ["--pin w1=R", "--topology h100-nvlink", "--memory 1GB", "--workload prefill=8,decode=8"],
)
def test_a_bundle_is_not_planned_again(here: Here, wish: str) -> None:
    done = here(f"run mlp2 {wish}")
    assert done.status == 2 and "which is split already. Leave it out" in done.error


@pytest.mark.parametrize("text", ["--shape batch=1,batch=2", "--workload prefill=8,prefill=8"])
def test_what_is_named_twice(here: Here, text: str) -> None:
    done = here(f"plan mlp.onnx --tp 2 {text}")
    assert done.status == 2 and "twice" in done.error


def test_debug_changes_nothing_where_nothing_fails(here: Here) -> None:
    plain = here("run mlp2 --inputs x.npz")
    debug = here("run mlp2 --inputs x.npz --debug")
    assert (plain.status, plain.err) == (0, "")
    assert debug == plain


def test_our_own_faults_are_told_apart(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("w1")

    monkeypatch.setattr("tpcore.plan_command.split_models", broken)
    done = here("plan mlp.onnx --tp 2")
    assert done.status == 3
    assert "plan failed: KeyError: 'w1'. This is a fault of tpcore" in done.error


def test_ranks_do_not_import_from_the_working_directory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "graph.py").write_text("raise SystemExit('the wrong graph')")
    done = tpcore("run", folder / "mlp2", "--inputs", folder / "x.npz", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    show = subprocess.Popen(
        command("inspect", folder / "mlp2", "--text"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert show.stdout is not None and show.stderr is not None
    show.stdout.close()
    assert show.stderr.read() == b"" and show.wait(60) == 0
    show.stderr.close()


def test_doctor_says_what_is_missing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found = here("doctor")
    assert found.status == 0 and "  ok  simulate" in found.out
    monkeypatch.setattr("backends.exchanges.find_spec", lambda module: None)
    done = here("doctor")
    assert done.status == 3 and done.err == ""
    assert "no  simulate" in done.out
    assert "onnxruntime is not installed. Install it with pip install onnxruntime." in done.out


def test_dump_writes_the_text_after_every_step(here: Here, tmp_path: Path) -> None:
    assert here("shard mlp.onnx --tp 2 -o OUT/b --dump OUT/steps").status == 0
    names = sorted(path.name for path in (tmp_path / "steps").iterdir())
    assert names[0] == "00_read.txt" and names[-1] == "07_localize_rank1.txt" and len(names) == 8


def test_weights_survive_the_way_into_a_bundle(folder: Path, here: Here, tmp_path: Path) -> None:
    """What `run` computes is what the weights say: no rank mixes up its slices."""
    here("run mlp2 --inputs x.npz --outputs OUT/y.npz --backend simulate")
    with np.load(tmp_path / "y.npz") as made:
        got = made["y"]
    hidden = np.maximum(X @ weight(8, 16) + weight(16), 0)
    np.testing.assert_allclose(got, hidden @ weight(16, 8) + weight(8), rtol=1e-5, atol=1e-5)


def test_ctrl_c_while_modules_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "tpcore.cli", Loading("tpcore.cli"))
    assert start() == 130
