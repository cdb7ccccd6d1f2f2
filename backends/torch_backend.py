"""What all backends on torch share; a vendor's file says only how its devices are called.

Probes look at files and never import torch: whether the driver is loaded, and what torch was built
for. What they cannot see (a device that is hidden or broken) is refused when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .base import Availability, Backend, BackendOptions, Communicator, Executor
from .exchanges import exchange_named, first_refusal, probe_module, probe_torch
from .spawn import OwnLauncher


@dataclass(frozen=True)
class Vendor:
    """One kind of device, as torch and the system know it."""

    name: str
    """Name of the backend."""
    summary: str
    """One line for `tpcore doctor`."""
    device: str
    """Torch's name of the device."""
    library: str
    """torch.distributed's name of the library that exchanges; 'gloo' through the host."""
    drivers: tuple[str, ...] = ()
    """Files of which its driver makes at least one (patterns)."""
    driver: str = ""
    """The driver in words."""
    build: str = ""
    """The variable in torch/version.py that a build for it sets."""
    extensions: tuple[str, ...] = ()
    """Modules that bring it into torch."""
    install: str = ""
    """The command that installs what it needs of Python."""


def torch_backend(
    vendor: Vendor, options: BackendOptions, configure: Callable[[BackendOptions], Backend]
) -> Backend:
    """The backend of a vendor's devices, or of the CPU."""
    options.check_only(vendor.name, "dtype", "compile", "collectives")
    through_host = options.collectives or ("gloo" if vendor.library == "gloo" else None)
    exchange = exchange_named(through_host) if through_host else None
    probes = [lambda: probe(vendor), *([exchange.probe] if exchange else [])]
    return Backend(
        name=vendor.name,
        summary=vendor.summary,
        probe=lambda: first_refusal(*probes),
        executor=lambda: _executor(vendor, options),
        communicator=exchange.joining if exchange else lambda ranks: _between(vendor, ranks),
        launcher=exchange.launcher if exchange else OwnLauncher,
        configure=configure,
    )


def probe(vendor: Vendor, root: Path = Path("/")) -> Availability:
    """Whether a vendor's devices can be used here."""
    roots = dict.fromkeys(module.partition(".")[0] for module in vendor.extensions)
    for found in (probe_torch(), *(probe_module(module, vendor.install) for module in roots)):
        if not found.ok:
            return found
    files = [pattern for pattern in vendor.drivers if any(root.glob(pattern.lstrip("/")))]
    if vendor.drivers and not files:
        return Availability(
            False,
            f"{vendor.driver} is not loaded: there is no {' or '.join(vendor.drivers)}",
            "Run on a machine with such a device, and install its driver.",
        )
    if vendor.build and not built_for(vendor.build):
        return Availability(
            False,
            f"torch {torch_version()} is not built for it",
            f"Install a build that is, with {vendor.install}.",
        )
    return Availability(True)


def built_for(variable: str) -> bool:
    """Whether a variable of torch/version.py is set, read without importing torch."""
    return _version_of(variable) not in ("", "None")


def torch_version() -> str:
    """The version of torch, with its build."""
    return _version_of("__version__")


def _version_of(variable: str) -> str:
    spec = find_spec("torch")
    path = Path(spec.origin or "").parent / "version.py" if spec else Path()
    text = path.read_text() if path.is_file() else ""
    found = re.search(rf"^{variable}\b[^=\n]*= *(.*?) *$", text, re.MULTILINE)
    return found.group(1).strip("'\"") if found else ""


def _executor(vendor: Vendor, options: BackendOptions) -> Executor:
    from .exec_torch import TorchExecutor
    from .torch_groups import own_device

    device = "cpu" if vendor.device == "cpu" else str(own_device(vendor.device, vendor.extensions))
    return TorchExecutor(device=device, dtype=options.dtype, compile=options.compile)


def _between(vendor: Vendor, meeting: Communicator) -> Communicator:
    from .torch_groups import device_ranks

    return device_ranks(meeting, vendor.device, vendor.library, vendor.extensions)
