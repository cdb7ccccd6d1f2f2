"""`tpcore doctor`: what can run on this machine, and why not."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata
from typing import Any

from backends import registry
from backends.launcher import find_launcher
from backends.placement import usable_cores
from graph.errors import BackendUnavailable
from tpcore.manifest import tool_version

PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "mpi4py", "mpich", "numpy", "torch")


def examine() -> dict[str, Any]:
    """Versions, cores, the MPI launcher, and the state of every backend."""
    backends = {}
    for name, backend in registry.all_backends().items():
        found = backend.probe()
        backends[name] = {
            "available": found.ok,
            "summary": backend.summary,
            "reason": found.reason,
            "hint": found.hint,
        }
    return {
        "tpcore": tool_version(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": f"{platform.system()} {platform.machine()}, {usable_cores()} cores",
        "packages": {name: _version(name) for name in PACKAGES},
        "mpi_launcher": _launcher(),
        "backends": backends,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _launcher() -> str | None:
    try:
        found = find_launcher()
    except BackendUnavailable:
        return None
    return f"{found.path} ({found.family})"


def doctor_command(args: argparse.Namespace) -> int:
    """Print the examination; the status is 0 if any backend can run."""
    found = examine()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"tpcore {found['tpcore']} on Python {found['python']}, {found['machine']}")
        versions = (f"{name} {version or '–'}" for name, version in found["packages"].items())
        print(f"packages      {', '.join(versions)}")
        print(f"MPI launcher  {found['mpi_launcher'] or 'none'}")
        print("backends")
        for name, state in found["backends"].items():
            mark = "ok " if state["available"] else "no "
            why = "" if state["available"] else f": {state['reason']}. {state['hint']}"
            print(f"  {mark} {name:10} {state['summary']}{why}")
    return 0 if any(state["available"] for state in found["backends"].values()) else 3
