"""Prove that a bundle computes what the unsplit model computes.

Both run in ONNX Runtime on the same inputs, the bundle's ranks in lockstep in this process.
Outputs must agree within a tolerance relative to the largest absolute value of the output;
integers and booleans must be equal. Where they do not, every value of both graphs is compared in
program order and the first that differs is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from backends import registry
from backends.run import Lockstep, run_lockstep
from graph.canonicalize import canonicalize
from graph.errors import BundleError, PlanError
from graph.reader import read_model
from tpcore.bundle import Bundle
from tpcore.distribute import cut_inputs, read_held
from tpcore.inputs import describe_inputs, make_inputs
from tpcore.manifest import source_digest

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference allowed, as a share of the output's largest absolute value."""

OUTLIER = 1e4
"""Values this many times above the smallest ones (their 1 % quantile) do not set the scale."""

Arrays = Mapping[str, np.ndarray]


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


@dataclass(frozen=True)
class Verification:
    """Result of `verify`."""

    outputs: Sequence[Difference]
    first_divergence: Mapping[str, Any] | None
    """Name, op and difference of the first value that is wrong, or None."""

    @property
    def equal(self) -> bool:
        """Whether every output agrees."""
        return all(output.equal for output in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """The object that `verify --json` prints; a difference that is no finite number is null."""
        return {
            "equal": self.equal,
            "max_abs_diff": _finite(max((o.max_abs_diff for o in self.outputs), default=0.0)),
            "max_rel_diff": _finite(max((o.max_rel_diff for o in self.outputs), default=0.0)),
            "outputs": {o.name: _finite_fields(asdict(o)) for o in self.outputs},
            "first_divergence": self.first_divergence and _finite_fields(self.first_divergence),
        }


def _finite_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _finite(x) if isinstance(x, float) else x for name, x in fields.items()}


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


def compare(name: str, got: np.ndarray, want: np.ndarray) -> Difference:
    """Compare one output with the unsplit model's."""
    tolerance = TOLERANCES.get(want.dtype.name, 0.0)
    if got.shape != want.shape or got.dtype != want.dtype:
        return Difference(name, False, math.inf, math.inf, tolerance)
    if want.size == 0:
        return Difference(name, True, 0.0, 0.0, tolerance)
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    largest = math.inf if np.isnan(gap).any() else float(gap.max())
    relative = _relative(gap, b) if math.isfinite(largest) else math.inf
    equal = relative <= tolerance if tolerance else bool((got == want).all())
    return Difference(name, equal, largest, relative, tolerance)


def _relative(gap: np.ndarray, want: np.ndarray) -> float:
    """Largest difference as a share of the output's scale, its largest absolute value.

    Values far above the others, as masks are, do not set the scale, which would hide every other
    difference: they are compared with themselves.
    """
    magnitude = np.abs(np.where(np.isfinite(want), want, 0.0))
    if not magnitude.any():
        return float(gap.max())
    ordinary = OUTLIER * float(np.quantile(magnitude[magnitude > 0], 0.01))
    is_outlier = magnitude > ordinary
    scale = float(magnitude[~is_outlier].max())
    return float((gap / np.where(is_outlier, magnitude, scale)).max())


def verify(
    bundle: Bundle,
    model: Path,
    inputs: Arrays | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    backend: str = "simulate",
) -> Verification:
    """Run `bundle` and the unsplit `model` on the same inputs and compare all outputs.

    Raises:
        BundleError: a file of the bundle does not match its sha256, or the bundle was made from
            another model.
        BackendUnavailable: the backend cannot run here.
    """
    bundle.check_hashes()
    _check_source(bundle, model)
    ranks = [bundle.load_rank(rank) for rank in range(bundle.world_size)]
    return verify_ranks(
        ranks, bundle.manifest["shardings"], model, inputs, sizes=sizes, backend=backend
    )


def _check_source(bundle: Bundle, model: Path) -> None:
    made_from, given = bundle.manifest["source"]["sha256"], source_digest(model)
    if made_from != given:
        raise BundleError(
            f"bundle '{bundle.path}' was made from another model than '{model}': sha256 "
            f"{made_from[:16]}… against {given[:16]}…. Verify against the model it was made from."
        )


def verify_ranks(
    ranks: Sequence[ir.Model],
    shardings: Mapping[str, str],
    model: Path,
    inputs: Arrays | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    backend: str = "simulate",
) -> Verification:
    """`verify` for rank graphs that are in memory."""
    if inputs is None:
        canonical, shapes = canonicalize(read_model(model))
        inputs = make_inputs(describe_inputs(canonical.graph, shapes), sizes or {})
    want = reference(model, inputs, backend)
    _check_proves_something(want)
    got = run_ranks(ranks, shardings, inputs, backend)
    outputs = [compare(name, got[name], want[name]) for name in want]
    divergence = None
    if not all(output.equal for output in outputs):
        divergence = first_divergence(ranks, shardings, model, inputs, backend)
    return Verification(outputs, divergence)


def _check_proves_something(outputs: Arrays) -> None:
    """Raise PlanError if the unsplit model computes nothing that could be compared."""
    for name, array in outputs.items():
        if array.size and array.dtype.kind not in "biuOUS" and np.isnan(array.astype(float)).all():
            raise PlanError(
                f"output '{name}' of the unsplit model is NaN everywhere for these inputs, which "
                "proves nothing. Give other inputs with --inputs x.npz."
            )


def reference(model: Path, inputs: Arrays, backend: str = "simulate") -> dict[str, np.ndarray]:
    """Outputs of the unsplit model."""
    executor = registry.get(backend).executor()
    unsplit = read_model(model)
    RemoveInitializersFromInputsPass()(unsplit)
    return Lockstep([unsplit], executor, threads=1).run([inputs])[0]


def run_ranks(
    ranks: Sequence[ir.Model],
    shardings: Mapping[str, str],
    inputs: Arrays,
    backend: str = "simulate",
) -> dict[str, np.ndarray]:
    """Global outputs of all ranks run in lockstep in this process."""
    executor = registry.get(backend).executor()
    parts = [cut_inputs(inputs, shardings, rank) for rank in range(len(ranks))]
    results = Lockstep(ranks, executor, threads=1).run(parts)
    return {
        name: read_held(shardings.get(name, "R")).join([result[name] for result in results])
        for name in results[0]
    }


def first_divergence(
    ranks: Sequence[ir.Model],
    shardings: Mapping[str, str],
    model: Path,
    inputs: Arrays,
    backend: str = "simulate",
) -> dict[str, Any] | None:
    """The first value, in program order, that differs from the unsplit canonical model's."""
    canonical, _ = canonicalize(read_model(model))
    executor = registry.get(backend).executor()
    want: dict[str, np.ndarray] = {}
    run_lockstep([canonical], [inputs], executor, hook=lambda _, name, x: _keep(want, name, x))
    got: dict[str, list[np.ndarray]] = {}
    run_lockstep(
        ranks,
        [cut_inputs(inputs, shardings, rank) for rank in range(len(ranks))],
        executor,
        hook=lambda _, name, x: got.setdefault(name, []).append(x.copy()),
    )
    for node in canonical.graph:
        for value in node.outputs:
            name = value.name or ""
            if name in want and len(got.get(name, [])) == len(ranks):
                whole = _join(shardings.get(name, "R"), got[name])
                found = compare(name, whole, want[name]) if whole is not None else None
                if found is not None and not found.equal:
                    return {"value": name, "op": node.op_type, "node": node.name, **asdict(found)}
    return None


def _keep(values: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    values[name] = array.copy()


def _join(text: str, parts: list[np.ndarray]) -> np.ndarray | None:
    """The whole value, or None where the manifest's text has no constant index ranges."""
    try:
        return read_held(text).join(parts)
    except ValueError:
        return None
