"""The devices' backends: one table each, honest about what is missing, and nothing twice."""

from __future__ import annotations

import difflib
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from backends import cuda, hpu, npu, rocm, xpu
from backends.base import BackendOptions
from backends.spawn import OwnLauncher
from backends.torch_backend import Vendor, built_for, probe

ROOT = Path(__file__).resolve().parents[2]
DEVICES = (cuda, rocm, xpu, npu, hpu)
LARGEST_DIFF_LINES = 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with torch of some build, whose files lie in this folder."""
    monkeypatch.setattr("backends.torch_backend.find_spec", spec_in(tmp_path))
    monkeypatch.setattr("backends.exchanges.find_spec", spec_in(tmp_path))
    return tmp_path


def spec_in(root: Path):  # type: ignore[no-untyped-def]
    def find(module: str) -> ModuleSpec | None:
        path = root / module / "__init__.py"
        return ModuleSpec(module, None, origin=str(path)) if path.exists() else None

    return find


def install(root: Path, module: str, version: str = "") -> None:
    (root / module).mkdir()
    (root / module / "__init__.py").write_text("raise ImportError('probes must not import')")
    (root / module / "version.py").write_text(version)


def add_driver(root: Path, vendor: Vendor) -> None:
    path = root / vendor.drivers[0].lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


CUDA_BUILD = (
    "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
)


def test_cuda_says_what_is_missing_one_after_the_other(machine: Path) -> None:
    vendor = cuda.VENDOR
    assert probe(vendor, machine).reason == "torch is not installed"
    install(machine, "torch", "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert probe(vendor, machine).reason.startswith("the driver of NVIDIA is not loaded: there is")
    add_driver(machine, vendor)
    found = probe(vendor, machine)
    assert found.reason == "torch 2.13.0+cpu is not built for it"
    assert found.hint.startswith("Install a build that is, with pip install torch --index-url")
    (machine / "torch" / "version.py").write_text(CUDA_BUILD)
    assert probe(vendor, machine).ok


def test_a_build_for_nvidia_is_none_for_amd(machine: Path) -> None:
    install(machine, "torch", CUDA_BUILD)
    add_driver(machine, rocm.VENDOR)
    assert built_for("cuda") and not built_for("hip")
    assert probe(rocm.VENDOR, machine).reason == "torch 2.13.0+cu130 is not built for it"


@pytest.mark.parametrize("device", [npu, hpu])
def test_devices_that_an_extension_brings(device, machine: Path) -> None:  # type: ignore[no-untyped-def]
    vendor: Vendor = device.VENDOR
    install(machine, "torch", CUDA_BUILD)
    extension = vendor.extensions[0].partition(".")[0]
    assert probe(vendor, machine).reason == f"{extension} is not installed"
    install(machine, extension)
    assert "is not loaded: there is no /" in probe(vendor, machine).reason
    add_driver(machine, vendor)
    assert probe(vendor, machine).ok


def test_every_device_has_its_own_names() -> None:
    vendors = [device.VENDOR for device in DEVICES]
    assert [vendor.name for vendor in vendors] == ["cuda", "rocm", "xpu", "npu", "hpu"]
    assert [vendor.library for vendor in vendors] == ["nccl", "nccl", "xccl", "hccl", "hccl"]
    for vendor in vendors:
        assert vendor.drivers and vendor.driver and vendor.install
        assert vendor.build or vendor.extensions


def test_the_files_of_nvidia_and_amd_differ_in_names_only() -> None:
    ours, theirs = (Path(str(m.__file__)).read_text().splitlines() for m in (cuda, rocm))
    diff = [line for line in difflib.ndiff(ours, theirs) if line[0] in "+-"]
    assert len(diff) <= LARGEST_DIFF_LINES, "\n".join(diff)
    print(f"lines in the diff of cuda.py and rocm.py: {len(diff)}")


def test_collectives_through_the_host_need_no_library_of_the_device() -> None:
    own, host = (cuda.backend(BackendOptions(collectives=how)) for how in (None, "mpi"))
    assert own.communicator is not host.communicator
    assert own.launcher is OwnLauncher
    assert host.launcher is not own.launcher
