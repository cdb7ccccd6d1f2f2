"""Cases of the conformance suite that each backend passes: `python -m bench.conformance [NAME...]`.

Without names all backends that can run here. Status 1 if one of them fails.
"""

from __future__ import annotations

import difflib
import sys
import time
from pathlib import Path

from backends import cuda, registry, rocm
from backends.conformance import RANKS, check_backend
from graph.errors import ExecutionError

EXAMPLE = Path(__file__).resolve().parents[1] / "tests" / "plugin_example"


def main() -> int:
    """Print the table."""
    names = sys.argv[1:] or registry.available()
    print(f"{'backend':12}" + "".join(f"{f'{ranks} ranks':>9}" for ranks in RANKS) + "      all  s")
    failed = 0
    for name in names:
        began = time.perf_counter()
        passed = [_passed(name, ranks) for ranks in RANKS]
        failed += passed.count(0)
        cells = "".join(f"{count or 'FAILS':>9}" for count in passed)
        print(f"{name:12}{cells}{sum(passed):>9}  {time.perf_counter() - began:.0f}", flush=True)
    for name, backend in registry.all_backends().items():
        found = backend.probe()
        if name not in names and not found.ok:
            print(f"{name:12}not here: {found.reason}")
    print(f"lines that cuda.py and rocm.py differ in: {_diff_lines()}")
    print(f"lines of the example of a plug-in: {_example_lines()}")
    return int(failed > 0)


def _passed(name: str, ranks: int) -> int:
    try:
        return check_backend(name, ranks)
    except ExecutionError as error:
        print(error, file=sys.stderr)
        return 0


def _diff_lines() -> int:
    ours, theirs = (Path(str(m.__file__)).read_text().splitlines() for m in (cuda, rocm))
    return sum(line[0] in "+-" for line in difflib.ndiff(ours, theirs))


def _example_lines() -> int:
    return sum(len(path.read_text().splitlines()) for path in EXAMPLE.glob("*.*"))


if __name__ == "__main__":
    sys.exit(main())
