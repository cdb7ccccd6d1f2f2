"""What the benchmark knows of a competitor before it starts one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache

from bench.cases import Case

PYTHON = "TPCORE_BENCH_PYTHON_"
"""Environment variable that names a peer's own interpreter, before its module in capitals."""


@dataclass(frozen=True)
class Peer:
    """One row of a table: a library with its settings."""

    name: str
    title: str
    module: str
    """Of `bench.peers`; run with `prepare` once per case and with `turn` once per round."""
    packages: tuple[str, ...]
    """Distributions without which it cannot run; their versions are kept with the figures."""
    forms: tuple[str, ...]
    """Of `Case.form`."""
    why_not: str
    """Said of a case of another form."""
    launcher: str = ""
    """`mpi` or `torchrun` if something else starts its processes."""
    processes: int = 1
    threads: int = 1
    """Of each process."""
    environment: dict[str, str] = field(default_factory=dict)
    is_prepared: bool = False
    """Whether it has a `prepare`."""
    arguments: tuple[str, ...] = ()
    """Given to both as `Work.arguments`."""
    only_prompts: str = ""
    """Why it has no row for decode steps, where it has none."""
    own_weights: tuple[str, ...] = ()
    """Forms of which it rounds the weights in its own way, so that logits differ by right."""

    @property
    def python(self) -> str:
        """The interpreter that has its packages."""
        return os.environ.get(PYTHON + self.module.upper()) or sys.executable

    def versions(self) -> dict[str, str]:
        """Of its packages, those that are there."""
        return {name: text for name, text in _versions(self.python, self.packages).items() if text}

    def absent(self) -> str:
        """Why it cannot run here, or nothing."""
        found = _versions(self.python, self.packages)
        missing = [name for name in self.packages if not found.get(name)]
        return f"not installed: pip install {' '.join(missing)}" if missing else ""

    def refuses(self, case: Case) -> str:
        """Why it has no row for a case, or nothing."""
        if case.form not in self.forms:
            return self.why_not
        return self.only_prompts if case.is_decode else ""

    def prepare_command(self, folder: str) -> list[str]:
        """What makes the files it needs of a case."""
        module = f"bench.peers.{self.module}"
        return [self.python, "-m", module, "prepare", folder, "", "1", *self.arguments]

    def turn_command(self, folder: str, out: str) -> list[str]:
        """What loads the model, times its runs and leaves a file per process in `out`."""
        words = ["-m", f"bench.peers.{self.module}", "turn", folder, out, str(self.threads)]
        words += self.arguments
        if self.launcher == "torchrun":
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            return [self.python, *torchrun, str(self.processes), *words]
        if self.launcher == "mpi":
            from backends.launcher import find_launcher

            return find_launcher().command([self.python, *words], self.processes)
        return [self.python, *words]


@cache
def _versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    code = (
        "import json, sys; from importlib.metadata import version, PackageNotFoundError as No\n"
        "def get(name):\n try: return version(name)\n except No: return ''\n"
        "print(json.dumps({name: get(name) for name in sys.argv[1:]}))"
    )
    try:
        done = subprocess.run(
            [python, "-c", code, *packages], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, str] = json.loads(done.stdout)
    return found
