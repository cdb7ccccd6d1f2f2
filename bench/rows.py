"""One row of a table: a model on a number of ranks against the unsplit model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tpcore.compare import Difference, compare
from tpcore.partition import Options
from tpcore.shard import Split, split_model
from tpcore.verify import AS_RUN, first_divergence, run_ranks

Arrays = Mapping[str, np.ndarray]

HEADER = (
    f"{'model':24}{'backend':10}{'tp':>3}  {'equal':6}{'max diff':>10}{'of scale':>10}"
    f"{'split':>8}{'largest':>9}  collectives"
)


@dataclass(frozen=True)
class Row:
    """One model on one number of ranks."""

    model: str
    backend: str
    ranks: int
    differences: Sequence[Difference]
    report: Mapping[str, Any]
    tolerance: float | None = None
    """Largest difference allowed, as a share of the output's scale, where not `verify`'s own."""
    as_run: float | None = None
    """Largest difference as models run, of the output's scale, where something else is compared."""

    @property
    def equal(self) -> bool:
        """Whether all outputs of all input sets agree."""
        if self.tolerance is None:
            return all(found.equal for found in self.differences)
        return all(found.max_rel_diff <= self.tolerance for found in self.differences)

    @property
    def max_abs_diff(self) -> float:
        """Largest difference of any output."""
        return max((found.max_abs_diff for found in self.differences), default=0.0)

    @property
    def max_rel_diff(self) -> float:
        """The same as a share of the output's scale."""
        return max((found.max_rel_diff for found in self.differences), default=0.0)

    @property
    def split_fraction(self) -> float:
        """Share of the weight bytes that is split."""
        return float(self.report["split_fraction"])

    @property
    def largest(self) -> float:
        """Largest rank's bytes over 1/tp of the whole."""
        total = self.report["weight_bytes_total"]
        return float(max(self.report["weight_bytes_per_rank"]) * self.ranks / total if total else 0)

    @property
    def collectives(self) -> str:
        """`2 AllGather, 5 AllReduce`."""
        return ", ".join(f"{n} {op}" for op, n in sorted(self.report["collectives"].items()))

    def __str__(self) -> str:
        return (
            f"{self.model:24}{self.backend:10}{self.ranks:>3}  {'yes' if self.equal else 'NO':6}"
            f"{self.max_abs_diff:>10.1e}{self.max_rel_diff:>10.1e}"
            f"{self.split_fraction:>8.3f}{self.largest:>9.3f}  {self.collectives or 'none'}"
        )

    def to_json(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return {
            "model": self.model,
            "backend": self.backend,
            "tp": self.ranks,
            "equal": self.equal,
            "max_abs_diff": _finite(self.max_abs_diff),
            "max_rel_diff": _finite(self.max_rel_diff),
            "max_rel_diff_as_run": None if self.as_run is None else _finite(self.as_run),
            "split_fraction": self.split_fraction,
            "largest": self.largest,
            "collectives": dict(self.report["collectives"]),
            "unsplit": list(self.report["unsplit"]),
        }


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


def compare_all(results: Sequence[Arrays], expected: Sequence[Arrays]) -> list[Difference]:
    """Differences of all outputs of all input sets."""
    return [
        compare(name, got[name], want[name])
        for got, want in zip(results, expected, strict=True)
        for name in want
    ]


def simulated_row(
    model: str,
    path: Path,
    ranks: int,
    cases: Sequence[Arrays],
    expected: Sequence[Arrays],
    tolerance: float | None = None,
    *,
    setting: str = AS_RUN,
    expected_as_run: Sequence[Arrays] = (),
) -> tuple[Row, Split]:
    """Split a model in memory, run all ranks in this process, compare.

    `expected` are the outputs in the `setting` of `verify`, those as models run come beside.
    """
    split = split_model(path, Options(ranks))

    def differences(setting: str, wanted: Sequence[Arrays]) -> list[Difference]:
        got = [run_ranks(split.ranks, split.shardings, x, "simulate", setting) for x in cases]
        return compare_all(got, wanted)

    row = Row(model, "simulate", ranks, differences(setting, expected), split.report, tolerance)
    if setting != AS_RUN:
        beside = differences(AS_RUN, expected_as_run)
        row = replace(row, as_run=max((d.max_rel_diff for d in beside), default=0.0))
    return row, split


def divergence_text(split: Split, path: Path, inputs: Arrays, setting: str = AS_RUN) -> str:
    """The first value that differs from the unsplit model's, as half a sentence."""
    found = first_divergence(split.ranks, split.shardings, path, inputs, "simulate", setting)
    if found is None:
        return "no value before the outputs differs"
    return (
        f"first wrong value '{found['value']}' of {found['op']} '{found['node']}', "
        f"by {found['max_abs_diff']:.2g}"
    )
