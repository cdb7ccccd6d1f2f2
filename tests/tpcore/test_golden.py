"""The text after every step of the journey, of two models one can read: golden/<model>/<plan>.

`UPDATE_GOLDEN=1 pytest tests/tpcore/test_golden.py` writes them again; read the diff and keep it.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.graph.small import run_whole
from tests.tpcore.lockstep import TOLERANCE, SplitRunner, relative_difference
from tests.tpcore.small_models import INPUTS, SMALL
from tpcore.partition import Options
from tpcore.shard import split_model

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
HOW = "If the change is meant: UPDATE_GOLDEN=1 pytest tests/tpcore/test_golden.py"
CASES = [
    ("mlp", "tp2"),
    ("mlp", "tp3"),  # uneven parts of sixteen features
    ("decoder", "tp2"),
]
STEPS = ["read", "canonicalize", "plan", "insert_reshards", "legalize", "simplify"]


def saved(model: str, folder: Path) -> Path:
    """The file of a small model."""
    path = folder / f"{model}.onnx"
    ir.save(SMALL[model](), path)
    return path


def ranks_of(plan: str) -> int:
    return int(plan.removeprefix("tp"))


@pytest.mark.parametrize(("model", "plan"), CASES)
def test_every_step_reads_as_before(model: str, plan: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    split_model(saved(model, tmp_path), Options(ranks_of(plan), dump=dump))
    got = {path.name: path.read_text() for path in dump.iterdir()}
    golden = GOLDEN / model / plan
    if UPDATE:
        _write(golden, got)
    want = {path.name: path.read_text() for path in golden.glob("*.txt")}
    assert sorted(got) == sorted(want), f"other steps than in {golden}. {HOW}"
    changes = [line for name in sorted(want) for line in _diff(name, want[name], got[name])]
    assert not changes, "\n".join([*changes, HOW])


def _write(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.txt"):
        path.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)


def _diff(name: str, want: str, got: str) -> list[str]:
    lines = difflib.unified_diff(
        want.splitlines(), got.splitlines(), f"golden/{name}", f"now/{name}", lineterm=""
    )
    return list(lines)


@pytest.mark.parametrize(("model", "plan"), CASES)
def test_one_text_per_step_and_rank(model: str, plan: str) -> None:
    names = [*STEPS, *(f"localize_rank{rank}" for rank in range(ranks_of(plan)))]
    found = sorted(path.name for path in (GOLDEN / model / plan).iterdir())
    assert found == [f"{number:02d}_{name}.txt" for number, name in enumerate(names)]


def test_no_golden_is_left_over() -> None:
    found = {(path.parent.name, path.name) for path in GOLDEN.glob("*/*")}
    assert found == set(CASES)


@pytest.mark.parametrize(("model", "plan"), CASES)
def test_what_the_texts_show_is_right(model: str, plan: str, tmp_path: Path) -> None:
    split = split_model(saved(model, tmp_path), Options(ranks_of(plan)))
    got = SplitRunner(split).run(INPUTS[model])
    assert relative_difference(got, run_whole(SMALL[model](), INPUTS[model])) <= TOLERANCE
