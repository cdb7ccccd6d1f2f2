"""`tpcore doctor`: what can run on this machine, and why not."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from backends import devices, native, registry
from backends.launcher import find_launcher
from backends.placement import usable_cores
from graph.errors import BackendUnavailable
from tpcore.manifest import tool_version
from tpcore.units import human_bytes

DEVICE_BACKENDS = ("cuda", "rocm", "xpu", "npu", "hpu")
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
        "compiled_part": dict(zip(("path", "reason"), native.examine())),
        "backends": backends,
        "devices": devices.by_vendors_tools(),
        "torch_devices": devices.by_torch() if _may_have_devices(backends) else {},
    }


def _may_have_devices(backends: Mapping[str, Any]) -> bool:
    """Whether it is worth to load torch, which takes seconds, and to ask it."""
    return any(backends[name]["available"] for name in DEVICE_BACKENDS)


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
        compiled = found["compiled_part"]
        print(
            f"compiled part {compiled['path'] or 'none, so steps are slower: '}{compiled['reason']}"
        )
        print("backends")
        for name, state in found["backends"].items():
            mark = "ok " if state["available"] else "no "
            why = "" if state["available"] else f": {state['reason']}. {state['hint']}"
            print(f"  {mark} {name:10} {state['summary']}{why}")
        _print_devices(found)
    return 0 if any(state["available"] for state in found["backends"].values()) else 3


def _print_devices(found: Mapping[str, Any]) -> None:
    """Devices with their memory, how they are linked, and what torch sees of them."""
    said = [(tool, text) for tool, text in found["devices"].items() if text]
    known = found["torch_devices"]
    if not said and not known:
        print("devices       none beside the CPU")
    for tool, text in said:
        print(f"devices       by {tool}")
        print("\n".join(f"  {line}" for line in text.splitlines()))
    for device in known.get("devices", ()):
        memory = human_bytes(device["memory_bytes"])
        print(f"  torch sees  {device['kind']}:{device['index']} {device['name']}, {memory}")
    versions = (f"{name} {version}" for name, version in known.get("versions", {}).items())
    if known:
        print(f"libraries     {', '.join(versions)}")
