"""Compare what two runs computed: within a tolerance for floats, exactly for everything else.

The tolerance is a share of the largest absolute value of the tensor. A sequence or map is compared
tensor by tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference allowed, as a share of the output's largest absolute value."""

OUTLIER = 1e4
"""Values this many times above the next smaller one do not set the scale."""
FEW = 0.01
"""A share of the values that may be as small as they like."""

TEXT = "OSU"
"""Kinds of numpy types that hold strings."""


@dataclass(frozen=True)
class Difference:
    """One output compared."""

    name: str
    equal: bool
    max_abs_diff: float
    max_rel_diff: float
    """The same as a share of the largest absolute value of the unsplit output."""
    tolerance: float
    """Largest `max_rel_diff` that counts as equal."""


def compare(name: str, got: Any, want: Any, computed_in: str | None = None) -> Difference:
    """Compare one output with the unsplit model's.

    Floats that were computed in a narrower type than their own agree within that type's tolerance.
    """
    pairs = list(zip_longest(tensors_in(got), tensors_in(want)))
    found = [_compare_tensor(name, *pair, computed_in) for pair in pairs] or [
        Difference(name, True, 0.0, 0.0, 0.0)
    ]
    return max(found, key=lambda one: (not one.equal, one.max_rel_diff))


def tensors_in(value: Any) -> Iterator[np.ndarray]:
    """The tensors of an output: itself, or those of a sequence, or the keys and values of a map."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        yield from (np.array(list(value)), np.array(list(value.values())))
    elif value is not None:
        for part in value:
            yield from tensors_in(part)


def _compare_tensor(
    name: str, got: np.ndarray | None, want: np.ndarray | None, computed_in: str | None
) -> Difference:
    if got is None or want is None:
        return Difference(name, False, math.inf, math.inf, 0.0)
    tolerance = TOLERANCES.get(want.dtype.name, 0.0)
    if tolerance and computed_in is not None:
        tolerance = max(tolerance, TOLERANCES[computed_in])
    if got.shape != want.shape or (got.dtype != want.dtype and want.dtype.kind not in TEXT):
        return Difference(name, False, math.inf, math.inf, tolerance)
    if want.size == 0:
        return Difference(name, True, 0.0, 0.0, tolerance)
    if want.dtype.kind in TEXT:
        equal = bool((got == want).all())
        gap = 0.0 if equal else math.inf
        return Difference(name, equal, gap, gap, tolerance)
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(a - b))
    largest = math.inf if np.isnan(gaps).any() else float(gaps.max())
    relative = _relative(gaps, b) if math.isfinite(largest) else math.inf
    exact = (got == want) | (np.isnan(a) & np.isnan(b))  # float64 does not hold every int64
    equal = relative <= tolerance if tolerance else bool(exact.all())
    return Difference(name, equal, largest, relative, tolerance)


def _relative(gap: np.ndarray, want: np.ndarray) -> float:
    """Largest difference as a share of the output's scale, its largest absolute value.

    Values far above all others, as masks are, do not set the scale, which would hide every other
    difference: they are compared with themselves.
    """
    magnitude = np.abs(np.where(np.isfinite(want), want, 0.0))
    if not magnitude.any():
        return float(gap.max())
    scale = _scale(magnitude[magnitude > 0])
    return float((gap / np.where(magnitude > scale, magnitude, scale)).max())


def _scale(magnitude: np.ndarray) -> float:
    """The largest value, or the one before the first jump to values far above."""
    largest, few = float(magnitude.max()), int(FEW * magnitude.size)
    if largest <= OUTLIER * float(np.quantile(magnitude, FEW)):
        return largest
    ordered = np.sort(magnitude)[few:]
    jumps = np.flatnonzero(ordered[1:] > OUTLIER * ordered[:-1])
    return float(ordered[jumps[0]]) if jumps.size else largest
