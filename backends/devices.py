"""What devices this machine has, their memory and how they are linked, for `tpcore doctor`.

The vendors' own tools are asked, and torch in a process of its own: it takes seconds to load.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_TOOL_SECONDS = 20
_TORCH_SECONDS = 120
TOOLS = (
    "nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader",
    "nvidia-smi topo -m",
    "rocm-smi --showproductname --showmeminfo vram",
    "rocm-smi --showtopo",
    "xpu-smi discovery",
    "xpu-smi topology -m",
    "npu-smi info",
    "npu-smi info -t topo",
    "hl-smi -Q index,name,memory.total,driver_version -f csv,noheader",
    "hl-smi topo -c -N",
)
"""Devices with memory and driver, then the matrix of links (NVLink, xGMI, PCIe), of each vendor."""

_ASK_TORCH = """
import json, torch
kinds = [kind for kind in ("cuda", "xpu", "npu", "hpu")
         if getattr(torch, kind, None) is not None and getattr(torch, kind).is_available()]
devices = []
for kind in kinds:
    for index in range(getattr(torch, kind).device_count()):
        seen = getattr(torch, kind).get_device_properties(index)
        devices.append({"kind": kind, "index": index, "name": seen.name,
                        "memory_bytes": seen.total_memory})
versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "HIP": torch.version.hip}
if "cuda" in kinds:
    library = "RCCL" if torch.version.hip else "NCCL"
    versions[library] = ".".join(map(str, torch.cuda.nccl.version()))
print(json.dumps({"devices": devices,
                  "versions": {name: text for name, text in versions.items() if text}}))
"""


def by_vendors_tools() -> dict[str, str]:
    """What each tool that is installed says, by its command line."""
    found = {}
    for line in TOOLS:
        tool, *arguments = line.split()
        path = shutil.which(tool)
        if path is not None:
            found[line] = _output([path, *arguments], _TOOL_SECONDS).strip("\n")
    return found


def by_torch() -> dict[str, Any]:
    """Devices that torch can use, and the versions of the libraries it was built with."""
    text = _output([sys.executable, "-c", _ASK_TORCH], _TORCH_SECONDS)
    try:
        found: dict[str, Any] = json.loads(text.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return found


def _output(command: Sequence[str], limit_seconds: float) -> str:
    """What a command prints; what went wrong with it, in one line, if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be asked: {error}"
    if done.returncode:
        return f"cannot be asked: status {done.returncode} {done.stderr.strip().splitlines()[-1:]}"
    return done.stdout
