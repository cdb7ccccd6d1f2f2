"""Figures that stay: one JSON line per run in `bench/history/<date>-<machine>.jsonl`."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "history"
_PACKAGES = ("numpy", "onnxruntime", "mpi4py", "mpich", "openmpi", "torch")


def save(bench: str, figures: dict[str, Any]) -> Path:
    """Append what a bench found, with the versions and the load it ran under; returns the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{time.strftime('%Y-%m-%d')}-{machine()}.jsonl"
    line = {"bench": bench, "load": os.getloadavg()[0], "versions": versions(), **figures}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def machine() -> str:
    """Processor and number of cores, as a word: `amd-epyc-9b45-2`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "-".join(re.findall(r"[a-z0-9]+", f"{_processor()} {cores}".lower()))


def versions() -> dict[str, str]:
    """Of Python and of every package that shows in the figures."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    named = re.search(r"model name\s*:\s*(.+)", text)
    return named.group(1) if named else platform.machine()
