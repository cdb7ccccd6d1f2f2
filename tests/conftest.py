"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest

# Before any import of numpy or onnxruntime: tests compare bits, and ranks share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A job in the background is told to ignore Ctrl-C, and what it starts would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALONE = """
test_mpi_launch test_torch_launch test_plugin test_conformance test_calibrate test_cli test_demo
test_ends test_faults test_generate test_memory test_run test_session test_torch_run test_trace
test_bench_run test_table
""".split()
"""Files whose tests start ranks, or measure: what else ran would be in their way."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` runs one after the other."""
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker("alone")
