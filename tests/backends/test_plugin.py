"""A backend of another package is installed, found, tried and run, with nothing changed here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backends import registry
from tests.tpcore.command import ROOT, environment, python_path, save, save_arrays
from tests.tpcore.small_models import mlp
from tpcore.inputs import make_inputs
from tpcore.partition import Options
from tpcore.shard import shard
from tpcore.target import open_target

EXAMPLE = ROOT / "tests" / "plugin_example"
LARGEST_EXAMPLE_LINES = 75
TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that find the example, which pip has installed offline."""
    if "cpu" not in registry.available():
        pytest.skip(registry.all_backends()["cpu"].probe().reason)
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for path in EXAMPLE.glob("*.*"):
        (source / path.name).write_text(path.read_text())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    line = [*pip, "--no-index", "--disable-pip-version-check", "--target", str(target), str(source)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment(PYTHONPATH=os.pathsep.join([str(target), python_path()]))


def run(installed: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", *map(str, words)],
        env=installed, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
    )  # fmt: skip


def test_the_doctor_knows_it(installed: dict[str, str]) -> None:
    found = json.loads(run(installed, "tpcore", "doctor", "--json").stdout)["backends"]
    assert found["echo-numpy"]["available"]
    assert list(found)[: len(registry.BUILTIN)] == list(registry.BUILTIN)


def test_it_passes_the_conformance_suite(installed: dict[str, str]) -> None:
    done = run(installed, "backends.conformance", "echo-numpy", "--ranks", "1,2,4")
    assert done.returncode == 0, done.stderr
    passed = re.findall(r"echo-numpy on (\d) ranks: (\d+) cases passed", done.stdout)
    assert passed == [("1", "512"), ("2", "553"), ("4", "584")]


def test_a_bundle_runs_on_it(installed: dict[str, str], tmp_path: Path) -> None:
    bundle = shard(save(mlp(), tmp_path / "mlp.onnx"), tmp_path / "bundle", Options(2)).path
    inputs = make_inputs(open_target(bundle, None).inputs, {})
    given = save_arrays(tmp_path / "x.npz", inputs)
    outputs = {}
    for name in ("cpu", "echo-numpy"):
        path = tmp_path / f"{name}.npz"
        line = ("tpcore", "run", bundle, "--backend", name, "--inputs", given, "--outputs", path)
        done = run(installed, *line)
        assert done.returncode == 0, done.stderr
        with np.load(path) as archive:
            outputs[name] = {key: archive[key] for key in archive.files}
    assert outputs["cpu"].keys() == outputs["echo-numpy"].keys()
    for key, array in outputs["cpu"].items():
        np.testing.assert_allclose(outputs["echo-numpy"][key], array, rtol=1e-5, atol=1e-5)


def test_the_example_is_small() -> None:
    counts = {path.name: len(path.read_text().splitlines()) for path in EXAMPLE.glob("*.*")}
    print(f"lines of the example: {counts}, {sum(counts.values())} in all")
    assert sum(counts.values()) <= LARGEST_EXAMPLE_LINES
