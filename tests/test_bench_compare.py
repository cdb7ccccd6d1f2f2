"""Figures that were kept: read back, compared, drawn; and how much of a model is split."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bench import compare
from bench.llama_weights import save_checkpoint
from bench.peers.llama_cpp import interleaved
from bench.quality import measured
from tests.big_model import LlamaShape, make

HERE = "some-processor-2"


def keep(
    folder: Path, day: str, commit: str, ours: float, other: float, machine: str = HERE
) -> None:
    rows = {
        "tpcore": {"title": "tpcore, 2 ranks", "median_ms": ours, "times_ours": 1.0},
        "ort": {"title": "onnxruntime <2>", "median_ms": other, "times_ours": other / ours},
    }
    line = {"bench": "peers", "case": "decode", "commit": commit, "rows": rows}
    with (folder / f"{day}-{machine}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    keep(tmp_path, "2026-01-01", "aaaa111", 40.0, 50.0)
    keep(tmp_path, "2026-01-02", "bbbb222", 20.0, 50.0)
    keep(tmp_path, "2025-01-01", "aaaa111", 900.0, 900.0, machine="another-8")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", "--history", str(folder), *argv])
    return compare.main()


def test_the_last_figures_as_bars(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, kept) == 0
    title, ours, other = capsys.readouterr().out.rstrip().splitlines()
    assert title == f"decode, ms (2026-01-02, bbbb222, {HERE})"
    assert ours.split()[-3:] == ["20.0", "×", "1.00"] and ours.count("█") == 16
    assert other.split()[-3:] == ["50.0", "×", "2.50"] and other.count("▒") == 40


def test_two_states(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, kept, "--from", "aaaa", "--to", "2026-01-02") == 0
    _, ours, other, _ = capsys.readouterr().out.splitlines()
    assert ours.split() == ["decode", "tpcore", "40.0", "20.0", "0.50"]
    assert other.split() == ["decode", "ort", "50.0", "50.0", "1.00"]


@pytest.mark.parametrize("argv", [("--cases", "prefill"), ("--machine", "x"), ("--from", "cccc")])
def test_nothing_to_compare(kept: Path, monkeypatch: pytest.MonkeyPatch, argv: Any) -> None:
    assert run(monkeypatch, kept, *argv) == 2


def test_pictures(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, page = tmp_path / "bars.svg", tmp_path / "bars.html"
    assert run(monkeypatch, kept, "--svg", str(picture), "--html", str(page)) == 0
    bars = ElementTree.parse(picture).getroot().findall("{*}rect")[1:]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(2.5, rel=0.01)
    assert picture.read_text() in page.read_text()


def model(collectives: int, **sizes: int) -> ir.Model:
    weights = [
        ir.Value(name=name, const_value=ir.tensor(np.ones(size, np.float32), name=name))
        for name, size in sizes.items()
    ]
    nodes = [ir.node("DistCollective", [weights[0]]) for _ in range(collectives)]
    graph = ir.Graph([], [], nodes=nodes, initializers=weights, opset_imports={"": 18})
    return ir.Model(graph, ir_version=10)


def test_the_share_that_is_split(tmp_path: Path) -> None:
    ir.save(model(0, wide=300, whole=100), tmp_path / "model.onnx")
    ranks = [model(3, wide=100, whole=100), model(3, wide=200, whole=100)]
    found = measured(tmp_path / "model.onnx", ranks)
    assert (found.split, found.largest, found.collectives) == (0.75, 0.75, 3)
    untouched = measured(tmp_path / "model.onnx", [model(0, wide=300, whole=100)] * 2)
    assert (untouched.split, untouched.largest) == (0.0, 1.0)


def test_the_checkpoint_has_the_weights_of_the_graph(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    shape = LlamaShape(2, hidden=32, intermediate=48, heads=4, kv_heads=2, vocabulary=64)
    path = make(tmp_path / "model.onnx", **vars(shape))
    save_checkpoint(path, shape, tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    weights = ir.load(path).graph.initializers

    def stored(name: str) -> np.ndarray:
        value = weights[name].const_value
        assert value is not None
        return value.numpy()

    assert len(tensors) == 2 * 9 + 3
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(down, stored("layers.1.down_proj").T) and down.shape == (32, 48)
    assert np.array_equal(tensors["model.embed_tokens.weight"], stored("embed_tokens"))
    assert np.array_equal(tensors["lm_head.weight"], stored("lm_head").T)


def test_rows_for_llama_cpp_rotate_to_the_same_scores() -> None:
    """Queries by keys after a rotation of halves, and of neighbours with the rows moved."""
    random = np.random.default_rng(0)
    heads, size = 3, 8
    weights = random.standard_normal((2, heads * size, 5))
    tokens = random.standard_normal((4, 5))
    angles = np.arange(4)[:, None, None] * 10000.0 ** (-np.arange(size // 2) / (size // 2))

    def scores(moved: bool, neighbours: bool) -> np.ndarray:
        rotated = []
        for weight in weights:
            rows = interleaved(weight, heads) if moved else weight
            x = (tokens @ rows.T).reshape(4, heads, size)
            a, b = (x[..., 0::2], x[..., 1::2]) if neighbours else np.split(x, 2, -1)
            rotated.append((a + 1j * b) * np.exp(1j * angles))
        return np.einsum("qhd,khd->hqk", rotated[0], rotated[1].conj()).real

    wanted = scores(moved=False, neighbours=False)
    assert np.allclose(scores(moved=True, neighbours=True), wanted, atol=1e-12)
    assert not np.allclose(scores(moved=False, neighbours=True), wanted, atol=1e-2)
