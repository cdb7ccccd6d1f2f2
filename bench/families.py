"""Print, for many model families and numbers of ranks, whether the split model equals the whole.

    python -m bench.families                            all families at tp 2 3 4 8
    python -m bench.families --families qwen gpt-neox   those whose name begins so
    python -m bench.families --ranks 2 4 --whole 3      and the three largest weights left whole
    python -m bench.families --json rows.jsonl          all rows, with all weights left whole

Columns as in bench.table; `short` marks a transformer below its targets: split fraction 0.9, and a
largest rank of at most 1.15 times 1/tp at tp 2 and 4, 1.35 times at others. A family that could
not be exported, split or run has a line with the reason. The status is 1 if any row is not equal.
Quantised models are compared as `tpcore verify` does it, with every op as written; `as run` is how
far they are apart as they run, where an activation may be rounded to the next code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import HEADER, Row, divergence_text, simulated_row
from graph.errors import TpcoreError
from graph.reader import read_model
from tests.families import family_cases, family_inputs, family_path, make_families
from tests.family_table import FAMILIES, TABLE
from tests.models import Inputs
from tpcore.verify import AS_RUN, reference, setting_for

RANKS = (2, 3, 4, 8)
MIN_SPLIT = 0.9
MAX_LARGEST = {2: 1.15, 4: 1.15}
MAX_LARGEST_ELSE = 1.35


@dataclass(frozen=True)
class Failure:
    """A family that did not come to a row."""

    model: str
    ranks: int
    reason: str

    def __str__(self) -> str:
        tp = str(self.ranks) if self.ranks else "-"
        return f"{self.model:24}{'simulate':10}{tp:>3}  ERROR {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The failure as one JSON object."""
        return {"model": self.model, "tp": self.ranks, "equal": False, "error": self.reason}


def results(families: Sequence[str], ranks: Sequence[int]) -> Iterator[tuple[Row | Failure, str]]:
    """Every row or failure, with a note on where a wrong row first goes wrong."""
    for family in families:
        try:
            path = family_path(family)
        except RuntimeError as error:
            yield Failure(family, 0, str(error).splitlines()[0]), ""
            continue
        cases = [family_inputs(family, case) for case in family_cases(family)]
        expected = Expected.of(path, cases)
        for count in ranks:
            yield _result(family, path, count, cases, expected)


@dataclass(frozen=True)
class Expected:
    """Outputs of an unsplit model for its input sets."""

    setting: str
    """What is compared, in the words of `verify`."""
    outputs: Sequence[Inputs]
    as_run: Sequence[Inputs]
    """Outputs as the model runs, where something else is compared."""

    @classmethod
    def of(cls, path: Path, cases: Sequence[Inputs]) -> Expected:
        """Run the model on all its input sets."""
        setting = setting_for(read_model(path))
        outputs = [reference(path, inputs, setting=setting) for inputs in cases]
        as_run = [reference(path, inputs) for inputs in cases if setting != AS_RUN]
        return cls(setting, outputs, as_run)


def _result(
    family: str, path: Path, ranks: int, cases: Sequence[Inputs], expected: Expected
) -> tuple[Row | Failure, str]:
    setting = expected.setting
    tolerance = TABLE[family].tolerance if setting == AS_RUN else None
    try:
        row, split = simulated_row(
            family, path, ranks, cases, expected.outputs, tolerance,
            setting=setting, expected_as_run=expected.as_run,
        )  # fmt: skip
        return row, "" if row.equal else divergence_text(split, path, cases[0], setting)
    except Exception as error:  # whatever stops one family must not hide the others
        return Failure(family, ranks, _one_line(error)), ""


def _one_line(error: Exception) -> str:
    kind = "" if isinstance(error, TpcoreError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:400]


def short(row: Row) -> bool:
    """Whether a transformer misses its targets."""
    if not TABLE[row.model].split_target:
        return False
    allowed = MAX_LARGEST.get(row.ranks, MAX_LARGEST_ELSE)
    return row.split_fraction < MIN_SPLIT or row.largest > allowed


def whole_lines(row: Row, count: int) -> list[str]:
    """The largest weights that stayed whole, each with its reason."""
    return [
        f"      whole {entry['bytes']:>8} B  {entry['name']}: {entry['reason']}"
        for entry in row.report["unsplit"][:count]
    ]


def main() -> int:
    """Print the table; the status is 1 if any row is not equal."""
    args = _arguments()
    chosen = [f for f in FAMILIES if any(f.startswith(start) for start in args.families)]
    make_families(chosen)
    counts: Counter[str] = Counter()
    lines = []
    print(f"{HEADER}")
    for found, note in results(chosen, args.ranks):
        print(_text(found, note), flush=True)
        counts["rows"] += 1
        lines.append(json.dumps(found.to_json() | ({"note": note} if note else {})))
        if isinstance(found, Failure):
            counts["failed"] += 1
            continue
        counts["equal" if found.equal else "wrong"] += 1
        counts["short"] += short(found)
        print("\n".join(whole_lines(found, args.whole)), end="\n" if args.whole else "")
    if args.json is not None:
        args.json.write_text("\n".join(lines) + "\n")
    print(
        f"{counts['rows']} rows, {counts['equal']} equal, {counts['wrong']} wrong, "
        f"{counts['failed']} failed, {counts['short']} short of their targets"
    )
    return 0 if counts["rows"] and counts["equal"] == counts["rows"] else 1


def _text(found: Row | Failure, note: str) -> str:
    marks = f"{_as_run(found)}{'  short' if short(found) else ''}" if isinstance(found, Row) else ""
    return f"{found}{marks}" + (f"\n      {note}" if note else "")


def _as_run(row: Row) -> str:
    """The difference as models run, which for quantised ones is told and not judged."""
    if row.as_run is None:
        return ""
    usual = TABLE[row.model].tolerance or 0.0
    return f"  as run {row.as_run:.1e}" + (f" > {usual:.0e}" if row.as_run > usual else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--ranks", nargs="*", type=int, default=list(RANKS))
    parser.add_argument("--whole", type=int, default=0, help="weights left whole to show per row")
    parser.add_argument("--json", type=Path, help="file for the rows, one object a line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
