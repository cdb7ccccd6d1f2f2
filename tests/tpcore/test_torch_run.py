"""`tpcore run` on torch: started by itself, by torchrun, by mpirun; over gloo, over MPI."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from backends import registry
from backends.base import BackendOptions
from tests.graph.small import Arrays
from tests.tpcore.command import (
    TIMEOUT_SECONDS,
    Done,
    assert_same_bits,
    command,
    environment,
    load_arrays,
    save,
    tpcore,
    tpcore_here,
)
from tests.tpcore.small_models import mlp
from tpcore.partition import Options
from tpcore.shard import shard

pytest.importorskip("torch")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    return shard(save(mlp(), folder / "mlp.onnx"), folder / "bundle", Options(2)).path


@pytest.fixture(scope="module")
def expected(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What all ranks in one process compute with torch."""
    out = tmp_path_factory.mktemp("expected") / "y.npz"
    assert tpcore("run", bundle, "--backend", "torch", "--outputs", out).status == 0
    return load_arrays(out)


def torchrun(*argv: object) -> Done:
    done = subprocess.run(
        [*TORCHRUN, "--no-python", *command(*argv)],
        env=environment(OMP_NUM_THREADS="1"), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("torchrun", ()),
        ("mpirun", ()),
        ("own", ("--collectives", "mpi")),
        ("mpirun", ("--collectives", "mpi")),
    ],
)
def test_every_launcher_gives_the_same_bits(
    how: str, options: Sequence[str], bundle: Path, expected: Arrays, tmp_path: Path
) -> None:
    out = tmp_path / "y.npz"
    line = ("run", bundle, "--backend", "torch", "--outputs", out, *options)
    if how == "torchrun":
        done = torchrun(*line)
    else:
        done = tpcore(*line, ranks=2 if how == "mpirun" else 0)
    assert done.status == 0, done.err
    assert_same_bits(load_arrays(out), expected)


def test_onnxruntime_exchanges_over_gloo(bundle: Path, expected: Arrays, tmp_path: Path) -> None:
    outs = [tmp_path / "mpi.npz", tmp_path / "gloo.npz"]
    for out, how in zip(outs, ("mpi", "gloo")):
        assert tpcore("run", bundle, "--outputs", out, "--collectives", how).status == 0
    assert_same_bits(load_arrays(outs[1]), load_arrays(outs[0]))
    for name, array in expected.items():
        np.testing.assert_allclose(load_arrays(outs[0])[name], array, rtol=1e-5, atol=1e-5)


def test_torch_computes_in_the_type_asked_for(
    bundle: Path, expected: Arrays, tmp_path: Path
) -> None:
    out = tmp_path / "y.npz"
    done = tpcore("run", bundle, "--backend", "torch", "--dtype", "bf16", "--outputs", out)
    assert done.status == 0, done.err
    for name, array in load_arrays(out).items():
        assert array.dtype == expected[name].dtype
        difference = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert 1e-5 < difference < 3e-2


def test_torchrun_cannot_start_ranks_for_mpi(bundle: Path) -> None:
    done = torchrun("run", bundle)
    assert done.status != 0 and done.out == ""
    text = "error: the ranks are to exchange with MPI, but no MPI launcher started them."
    assert done.err.count(text) == 1 and "--collectives gloo" in done.err


def test_options_reach_the_backend() -> None:
    for name in ("torch", "cpu"):
        options = BackendOptions(collectives="mpi")
        assert registry.get(name, options).communicator is registry.get("cpu").communicator


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--backend simulate --collectives gloo", "'simulate' does not take --collectives: it"),
        ("--backend cpu --dtype bf16 --compile", "'cpu' does not take --dtype and --compile: it"),
        ("--backend torch --dtype int8", "invalid choice: 'int8'"),
        ("--backend torch --collectives smoke", "invalid choice: 'smoke'"),
    ],
)
def test_options_that_mean_nothing(
    line: str, text: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = tpcore_here(capfd, "run", bundle, *line.split())
    assert done.status == 2 and text in done.error
