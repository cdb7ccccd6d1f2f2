"""What `tpcore doctor` says of devices, from tools that a vendor would have installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends import devices
from tests.tpcore.command import tpcore_here

MATRIX = "\tGPU0\tGPU1\nGPU0\t X \tNV18\nGPU1\tNV18\t X"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but what a test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add_tool(folder: Path, name: str, text: str, status: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {status}\n")
    path.chmod(0o755)


def test_without_devices(tools: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert devices.by_vendors_tools() == {}
    done = tpcore_here(capfd, "doctor")
    assert "devices       none beside the CPU" in done.out


def test_the_matrix_of_links_is_shown(tools: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add_tool(tools, "nvidia-smi", MATRIX.replace("\n", "\\n").replace("\t", "\\t"))
    done = tpcore_here(capfd, "doctor")
    assert "devices       by nvidia-smi topo -m\n  \tGPU0\tGPU1\n  GPU0\t X \tNV18" in done.out
    found = json.loads(tpcore_here(capfd, "doctor", "--json").out)
    assert found["devices"]["nvidia-smi topo -m"].strip() == MATRIX.strip()
    assert found["torch_devices"] == {}


def test_a_tool_that_fails_says_so(tools: Path) -> None:
    add_tool(tools, "rocm-smi", "", status=3)
    assert devices.by_vendors_tools()["rocm-smi --showtopo"].startswith("cannot be asked: status 3")


def test_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    found = devices.by_torch()
    assert found["versions"]["torch"] and isinstance(found["devices"], list)
    monkeypatch.setattr(devices, "_ASK_TORCH", "raise SystemExit(1)")
    assert devices.by_torch() == {}


def test_devices_of_torch_are_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = {"kind": "cuda", "index": 0, "name": "a card", "memory_bytes": 80 << 30}
    known = {"devices": [seen], "versions": {"torch": "2", "NCCL": "2.28"}}
    monkeypatch.setattr("tpcore.doctor._may_have_devices", lambda _: True)
    monkeypatch.setattr(devices, "by_torch", lambda: known)
    out = tpcore_here(capfd, "doctor").out
    assert "  torch sees  cuda:0 a card, 80.0 GiB\nlibraries     torch 2, NCCL 2.28\n" in out
