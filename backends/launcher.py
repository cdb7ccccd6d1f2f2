"""Find the MPI launcher that belongs to the MPI library that mpi4py will load.

A launcher of another MPI gives n ranks that each believe to be alone, and status 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from graph.errors import BackendUnavailable

_NAMES = ("mpiexec", "mpirun")
_PROBE_SECONDS = 20


@dataclass(frozen=True)
class Launcher:
    """An MPI launcher and how it must be called here."""

    path: str
    family: str
    """'mpich' (Intel's too) or 'openmpi'."""

    def command(self, argv: Sequence[str], ranks: int) -> list[str]:
        """The command that starts `argv` on `ranks` ranks, more than there are cores if need be."""
        flags = ["--oversubscribe", "--bind-to", "none"] if self.family == "openmpi" else []
        return [self.path, *flags, "-n", str(ranks), *argv]

    def environment(self) -> dict[str, str]:
        """Variables without which the launcher refuses to work for root."""
        if self.family != "openmpi" or os.geteuid() != 0:
            return {}
        return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@cache
def find_launcher() -> Launcher:
    """The launcher beside this Python, or else the one on the PATH that fits mpi4py's library.

    Raises:
        BackendUnavailable: there is none, or those there are belong to another MPI.
    """
    for path in _beside_python():
        return Launcher(path, _family(path))
    on_path = [which for name in _NAMES if (which := shutil.which(name))]
    found = [Launcher(path, _family(path)) for path in on_path]
    if not found:
        raise BackendUnavailable(
            "no MPI launcher (mpiexec) lies beside this Python or on the PATH. "
            "Install one with pip install 'tpcore[mpi]'."
        )
    library = _library_family()
    for launcher in found:
        if launcher.family == library:
            return launcher
    raise BackendUnavailable(
        f"mpi4py loads the MPI library '{library}' but the launcher on the PATH is {found[0].path} "
        f"('{found[0].family}'). Put the launcher of '{library}' first on the PATH, or install one "
        "with pip install 'tpcore[mpi]'."
    )


def _beside_python() -> Iterator[str]:
    for folder in dict.fromkeys((Path(sys.executable).parent, Path(sys.prefix, "bin"))):
        for name in _NAMES:
            if os.access(folder / name, os.X_OK):
                yield str(folder / name)


def _family(path: str) -> str:
    """The family of a launcher, by what it says of itself."""
    text = _output([path, "--version"]).lower()
    return "openmpi" if any(word in text for word in ("open mpi", "openrte", "prte")) else "mpich"


def _library_family() -> str:
    """The family of the library that mpi4py loads, asked in another process."""
    code = (
        "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
        "print(MPI.Get_library_version())"
    )
    text = _output([sys.executable, "-c", code])
    return "openmpi" if "open mpi" in text.lower() else "mpich" if text else "none"


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
