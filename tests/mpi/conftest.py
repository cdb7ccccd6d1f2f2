"""Started as `mpirun -n N python -m pytest tests/mpi`, or by any other launcher that tpcore knows;
without ranks nothing is collected here.

A test that fails on one rank ends the job: the other ranks would wait for it for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

from backends.placement import detect_environment

PLACEMENT = detect_environment()
if PLACEMENT.size == 1:
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let rank 0 alone report."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if PLACEMENT.rank > 0 and reporter is not None:
        config.pluginmanager.unregister(reporter)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """End all ranks with the failing rank's text."""
    report = yield
    if report.failed and PLACEMENT.size > 1:
        from backends.job import meet

        print(
            f"\n[rank {PLACEMENT.rank}] {item.nodeid} failed:\n{report.longreprtext}",
            file=sys.__stderr__,
            flush=True,
        )
        meet(PLACEMENT).abort(1)
    return report
