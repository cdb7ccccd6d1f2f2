"""Splitting a model takes a few tensors of memory, not the model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import big_model
from tests.tpcore.command import TIMEOUT_SECONDS, command, environment

MIB = 1 << 20
NEEDED_DISK_BYTES = 3 << 30
LIMIT_MIB = 400
"""Above what a command needs that only imports everything and does nothing."""

PEAK = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""A small process between: one started by a big one counts the big one's memory as its own."""


def peak_mib(line: list[str]) -> float:
    """Largest resident memory of a command."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *line],
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kib = int(done.stdout)
    return kib / 1024 if sys.platform == "linux" else kib / MIB


def test_sharding_800_mb_takes_less_than_400(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.disk_usage(tmp_path).free < NEEDED_DISK_BYTES:
        pytest.skip(f"needs {NEEDED_DISK_BYTES / (1 << 30):.0f} GiB of disk in {tmp_path}")
    model = big_model.make(tmp_path / "model.onnx")
    try:
        size = model.with_name("model.onnx.data").stat().st_size
        empty = peak_mib([sys.executable, "-c", "import tpcore.commands"])
        used = peak_mib(command("shard", model, "--tp", 2, "-o", tmp_path / "b"))
    finally:
        shutil.rmtree(tmp_path)
    with capsys.disabled():
        print(
            f"\n[memory] shard of {size / 1e6:.0f} MB of weights over 2 ranks: {used:.0f} MiB at "
            f"its peak, {used - empty:.0f} above an empty run (allowed {LIMIT_MIB})"
        )
    assert size > 800e6
    assert used - empty < LIMIT_MIB
