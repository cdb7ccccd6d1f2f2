"""Run `tpcore` as a user does: in this process, in one of its own, or on MPI ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from backends.launcher import find_launcher
from graph.errors import BackendUnavailable
from tests.graph.small import Arrays
from tpcore.cli import main

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one message; stderr holds nothing else, and stdout nothing at all."""
        assert self.out == "", self.out
        assert self.err.startswith("error: ") and self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1 and "Traceback" not in self.err, self.err
        return self.err.removeprefix("error: ").rstrip("\n")


def check_sentence(text: str) -> None:
    """A message begins small or with a name, ends with a full stop, and has what is needed."""
    assert text == text.strip() and text.endswith("."), text
    assert ".." not in text.replace("…", "").replace("../", ""), text
    assert not text[0].isupper(), text


def tpcore_here(capfd: pytest.CaptureFixture[str], *argv: object) -> Done:
    """Run a command in this process."""
    capfd.readouterr()
    status = main([str(arg) for arg in argv])
    out, err = capfd.readouterr()
    return Done(status, out, err)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that finds this tpcore, installed or not."""
    return {**os.environ, "PYTHONPATH": python_path(), **more}


def python_path() -> str:
    """Where modules are looked for, this tpcore first, no part of it relative."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(ROOT), *(os.path.abspath(path) for path in given if path)])


def command(*argv: object, ranks: int = 0) -> list[str]:
    """The command line of tpcore; with `ranks` as MPI's launcher starts it."""
    line = [sys.executable, "-P", "-m", "tpcore", *map(str, argv)]
    if not ranks:
        return line
    try:
        return find_launcher().command(line, ranks)
    except BackendUnavailable as unavailable:
        pytest.skip(str(unavailable))


def tpcore(*argv: object, ranks: int = 0, cwd: Path | None = None) -> Done:
    """Run a command in a process of its own; with `ranks` under MPI's launcher."""
    launcher = find_launcher().environment() if ranks else {}
    done = subprocess.run(
        command(*argv, ranks=ranks),
        cwd=cwd, env=environment(**launcher), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let this process and those it starts use so many cores, or all where there are fewer."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def save(model: ir.Model, path: Path) -> Path:
    """Write a model; all but its smallest weights lie beside it in `path`.data."""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=33)
    return path


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write inputs as a user would."""
    np.savez(path, **dict(arrays))  # type: ignore[arg-type]
    return path


def load_arrays(path: Path) -> Arrays:
    """Read outputs as a user would."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def assert_same_bits(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Same names in the same order, same types and shapes, same bits."""
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def flip_byte(path: Path, at: float = 0.5) -> None:
    """Change one byte of a file, at this share of its length."""
    contents = bytearray(path.read_bytes())
    contents[int(at * len(contents))] ^= 1
    path.write_bytes(contents)
