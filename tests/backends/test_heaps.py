"""The heap that onnxruntime allocates from; sums in it are tried in tests/mpi."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backends import native


@pytest.mark.skipif(native.path() is None, reason="there was no C compiler")
@pytest.mark.parametrize("seed", range(3))
def test_pieces_keep_apart_and_free_ones_come_together(seed: int) -> None:
    argv = [sys.executable, "-m", "tests.backends.heap_stress", str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr
