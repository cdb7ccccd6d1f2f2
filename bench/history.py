"""Figures that stay: one JSON line per run in `bench/history/<date>-<machine>.jsonl`."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "history"
_PACKAGES = ("numpy", "onnxruntime", "mpi4py", "mpich", "openmpi", "torch")


def save(bench: str, figures: dict[str, Any], device: str = "") -> Path:
    """Append what a bench found, with the versions and the load it ran under; returns the file.

    The file is named by the day and the machine, or by the device if that is what was measured.
    """
    FOLDER.mkdir(exist_ok=True)
    name = word(device) or machine()
    path = FOLDER / f"{time.strftime('%Y-%m-%d')}-{name}.jsonl"
    line = {
        "bench": bench,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": commit(),
        "load": os.getloadavg()[0],
        "versions": versions(),
        **figures,
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def lines(folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """Everything kept, the oldest first; each line with its `machine` and `day`."""
    for path in sorted(folder.glob("*.jsonl")):
        day, name = path.stem[:10], path.stem[11:]
        for text in path.read_text().splitlines():
            yield {"day": day, "machine": name, **json.loads(text)}


def commit() -> str:
    """What git calls this state of the sources, with a + where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=FOLDER.parent, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def machine() -> str:
    """Processor and number of cores, as a word: `amd-epyc-9b45-2`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return word(f"{_processor()} {cores}")


def word(text: str) -> str:
    """A text as part of a file's name."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


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
