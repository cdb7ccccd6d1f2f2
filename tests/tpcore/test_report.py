"""The figures of a split: one JSON object for programs, a few lines for people."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graph.small import small_model
from tests.tpcore.command import Done, python_path, save, save_arrays, tpcore, tpcore_here
from tests.tpcore.small_models import INPUTS, decoder, mlp
from tpcore.partition import Options
from tpcore.report import report_text
from tpcore.shard import shard, split_model
from tpcore.units import human_bytes

Here = Callable[..., Done]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a bundle and inputs."""
    made = tmp_path_factory.mktemp("report")
    for name, model in {"mlp": mlp(), "decoder": decoder()}.items():
        save(model, made / f"{name}.onnx")
    shard(made / "mlp.onnx", made / "mlp2", Options(2))
    save_arrays(made / "x.npz", INPUTS["mlp"])
    return made


@pytest.fixture
def here(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Here:
    """Run a command, given as text, in this process and in the folder; OUT is a fresh folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", python_path())
    return lambda line: tpcore_here(capfd, *line.replace("OUT", str(tmp_path)).split())


def json_of(done: Done) -> dict[str, Any]:
    """The one object on stdout; nothing on stderr."""
    assert done.err == ""
    return dict(json.loads(done.out, parse_constant=lambda name: pytest.fail(name)))


REPORT = {
    "world_size": int,
    "collectives": dict,
    "comm_bytes_per_rank": int,
    "weight_bytes_total": int,
    "weight_bytes_per_rank": list,
    "split_fraction": float,
    "unsplit": list,
    "memory_per_rank": dict,
    "predicted": dict,
}


def check_report(report: dict[str, Any], ranks: int) -> None:
    """The fields of DESIGN §10, and what must hold between them."""
    for name, kind in REPORT.items():
        assert type(report[name]) is kind, name
    assert report["world_size"] == len(report["weight_bytes_per_rank"]) == ranks
    assert all(type(n) is int and n > 0 for n in report["collectives"].values())
    assert 0 <= report["split_fraction"] <= 1
    whole = sum(entry["bytes"] for entry in report["unsplit"])
    total = report["weight_bytes_total"]
    assert round((1 - report["split_fraction"]) * total) == whole
    for entry in report["unsplit"]:
        assert set(entry) == {"name", "bytes", "share", "reason", "help"}
        assert entry["reason"] and entry["help"] and 0 <= entry["share"] <= 1


def test_json_of_shard_and_of_inspect_agree(here: Here) -> None:
    made = json_of(here("shard decoder.onnx --tp 2 -o OUT/b --json"))
    seen = json_of(here("inspect OUT/b --json"))
    check_report(made, 2)
    assert Path(made.pop("bundle")).name == "b" and re.fullmatch(
        "[0-9a-f]{64}", made.pop("bundle_id")
    )
    assert made == seen


def test_json_of_inspect_of_a_model(here: Here) -> None:
    seen = json_of(here("inspect mlp.onnx --json"))
    check_report(seen, 1)
    assert seen["collectives"] == {} and seen["ops_without_rule"] == []
    assert seen["weight_bytes_total"] == 4 * (8 * 16 + 16 + 16 * 8 + 8)


def test_json_of_plan(here: Here, tmp_path: Path) -> None:
    seen = json_of(here("plan mlp.onnx --tp 2 --json -o OUT/plan.json"))
    check_report(seen, 2)
    assert seen["plan"] == json.loads((tmp_path / "plan.json").read_text())
    assert seen["plan"]["values"]["w1"] == "S(1) 0:8 8:16"


def test_json_counts_the_bytes_of_the_shapes_given(here: Here) -> None:
    one = json_of(here("plan mlp.onnx --tp 2 --json"))
    ten = json_of(here("plan mlp.onnx --tp 2 --json --shape batch=10"))
    assert one["comm_bytes_per_rank"] == 2 * (2 - 1) / 2 * 8 * 4
    assert ten["comm_bytes_per_rank"] == 10 * one["comm_bytes_per_rank"]


def test_json_of_verify(here: Here) -> None:
    seen = json_of(here("verify mlp2 --against mlp.onnx --inputs x.npz --json"))
    assert list(seen)[:5] == [
        "equal", "max_abs_diff", "max_rel_diff", "outputs", "first_divergence",
    ]  # fmt: skip
    assert seen["equal"] is True and seen["first_divergence"] is None
    assert 0 <= seen["max_abs_diff"] <= 1e-5 and list(seen["outputs"]) == ["y"]
    assert seen["outputs"]["y"]["max_abs_diff"] == seen["max_abs_diff"]


@pytest.mark.parametrize("ranks", [0, 2])
def test_json_of_run(folder: Path, ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "y.npz"
    done = tpcore("run", folder / "mlp2", "--json", "--outputs", out, ranks=ranks)
    seen = json_of(done)
    assert seen == {"outputs": {"y": {"dtype": "float32", "shape": [1, 8]}}, "file": str(out)}


def test_json_of_doctor(here: Here) -> None:
    seen = json_of(here("doctor --json"))
    assert seen["executable"] == sys.executable and seen["packages"]["onnx"] == onnx.__version__
    for state in seen["backends"].values():
        assert set(state) == {"available", "summary", "reason", "hint"}
    assert seen["backends"]["simulate"]["available"] is True


def test_output_for_people(here: Here) -> None:
    made = here("shard mlp.onnx --tp 2 -o OUT/b")
    assert made.status == 0 and made.err == ""
    assert re.search(r"^per rank +\d.*\(largest \d+\.\d%, 1/2 = 50.0%\)$", made.out, re.M)
    assert re.search(r"^collectives +1 AllReduce$", made.out, re.M)
    checked = here("verify OUT/b --against mlp.onnx")
    assert re.match(r"equal  y: largest difference \S+, \S+ of the largest value", checked.out)
    shown = here("inspect OUT/b --text")
    assert shown.out.count("AllReduce(") == 2 and "# rank 1\ngraph mlp" in shown.out


def test_ops_without_a_rule_are_shown(here: Here, tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph("g (float[4, 4] x) => (float[4, 4] y) { y = EyeLike (x) }")
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]), tmp_path / "eye.onnx"
    )
    assert json_of(here("inspect OUT/eye.onnx --json"))["ops_without_rule"] == ["EyeLike"]
    shown = here("inspect OUT/eye.onnx")
    assert shown.out.endswith("no rule for    EyeLike (these run on every rank)\n")


def test_a_report_says_why_weights_are_whole(folder: Path) -> None:
    report = split_model(folder / "decoder.onnx", Options(2, plan="replicate")).report
    assert report["split_fraction"] == 0 and report["collectives"] == {}
    assert report["weight_bytes_per_rank"] == [report["weight_bytes_total"]] * 2
    assert {entry["reason"] for entry in report["unsplit"]} == {"the plan given keeps it whole"}
    sizes = [entry["bytes"] for entry in report["unsplit"]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_report_of_weights_without_entries(tmp_path: Path) -> None:
    text = "(float16[3, 4] x) => (float[3, 4] y) { y = CastLike(x, like) }"
    path = save(small_model(text, like=np.zeros((0, 2), np.float32)), tmp_path / "model.onnx")
    (entry,) = split_model(path, Options(2)).report["unsplit"]
    assert entry["bytes"] == 0 and entry["share"] == 0


def test_with_one_rank_nothing_is_split(folder: Path) -> None:
    report = split_model(folder / "mlp.onnx", Options(1)).report
    assert {entry["reason"] for entry in report["unsplit"]} == {"there is one rank"}


def test_the_text_groups_equal_reasons_and_shortens_lists() -> None:
    reason = "op Foo of node 'n{}' has no sharding rule"
    report = {
        "world_size": 16,
        "collectives": {},
        "comm_bytes_per_rank": 0,
        "weight_bytes_total": 0,
        "weight_bytes_per_rank": [*range(15), 4096],
        "split_fraction": 0.0,
        "unsplit": [
            {"name": f"w{i}", "bytes": 1024, "share": 0.1, "reason": reason.format(i), "help": "x"}
            for i in range(5)
        ],
        "memory_per_rank": {"weights": 4096, "states": 0, "activations": 1, "total": 4097},
        "predicted": {"seconds": 2e-3, "exchange_seconds": 1e-3, "proven_cheapest": False},
    }
    text = report_text(report)
    assert "per rank       0 B to 4.0 KiB" in text and "collectives    none" in text
    assert "whole          5 weights, 5.0 KiB on every rank, 50.0% of all" in text
    assert text.count("to split it, x") == 1
    assert "memory         4.0 KiB on the fullest rank: weights 4.0 KiB, activations 1 B" in text
    assert "predicted      2 ms per run, 50% of it exchange; a cheaper plan is not" in text
    assert text.count("has no sharding rule") == 1 and "w0, w1, … (5)" in text
    assert "whole          nothing" in report_text({**report, "unsplit": []})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 19, "1.5 MiB"),
        (5 << 30, "5.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_human_bytes(size: int, text: str) -> None:
    assert human_bytes(size) == text


BODY_AND_BIAS = """<ir_version: 10, opset_import: ["": 18]>
g (float[2, 8] x, bool[] c) => (float[2, 6] y, float[2, 3] z) <float[8, 6] w, float[8, 3] narrow> {
    a = If (c) <
        then_branch = t () => (float[2, 6] p) { p = MatMul (x, w) },
        else_branch = e () => (float[2, 6] q) { q = MatMul (x, w) }
    >
    y = Identity (a)
    r = EyeLike (narrow)
    s = Add (narrow, r)
    k = Softmax <axis = 1> (s)
    z = MatMul (x, k)
}"""


def test_every_reason_tells_what_would_help(here: Here, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(BODY_AND_BIAS)
    for name, shape in {"w": (8, 6), "narrow": (8, 3)}.items():
        array = np.ones(shape, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    report = json_of(here("plan OUT/m.onnx --tp 4 --json"))
    whole = {entry["name"]: entry for entry in report["unsplit"]}
    assert "the body of an If" in whole["w"]["reason"] and "unrolled" in whole["w"]["help"]
    assert "EyeLike" in whole["narrow"]["reason"] and "standard ops" in whole["narrow"]["help"]
    assert sum(entry["share"] for entry in whole.values()) == pytest.approx(1)
