"""Prove that a bundle computes what the unsplit model computes.

Both run in ONNX Runtime on the same inputs, the bundle's ranks in lockstep in this process.
Outputs must agree within a tolerance relative to the largest absolute value of the output, that of
the narrowest float type they were computed in; integers and booleans must be equal. Quantised
models are compared with every op computed as written: an executor fuses and rounds a whole graph in
other places than its segments, which is no fault of the split. How far they are apart as they run
is told beside. Where outputs differ, every value of both graphs is compared in program order and
the first that differs is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from backends import registry
from backends.base import Executor
from backends.lockstep import Lockstep, run_lockstep
from graph.canonicalize import canonicalize
from graph.errors import BundleError, ExecutionError, PlanError
from graph.reader import read_model
from tpcore.bundle import Bundle
from tpcore.compare import Difference, compare, tensors_in
from tpcore.distribute import cut_inputs, read_held
from tpcore.inputs import describe_inputs, input_spec, make_inputs
from tpcore.manifest import source_digest
from tpcore.precision import narrowest_floats
from tpcore.program import choose_program
from tpcore.rules.quant import QUANT_OPS

AS_RUN, AS_WRITTEN = "as run", "every op as written"
"""What was compared: models as they run, or without fused quantised ops and `accuracy_level`."""
ROUNDING_OPS = {*QUANT_OPS, ("com.microsoft", "QMoE")}
"""Ops on codes, and those that may round their activations to codes."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verification:
    """Result of `verify`."""

    outputs: Sequence[Difference]
    first_divergence: Mapping[str, Any] | None
    """Name, op and difference of the first value that is wrong, or None."""
    setting: str = AS_RUN
    """What was compared: AS_RUN or AS_WRITTEN."""
    as_run: float | None = None
    """Largest difference of any output as models run, as a share of its largest value; None where
    that is what was compared."""

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
            "setting": self.setting,
            "max_rel_diff_as_run": None if self.as_run is None else _finite(self.as_run),
        }


def _finite_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _finite(x) if isinstance(x, float) else x for name, x in fields.items()}


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


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
    specs = [input_spec(entry) for entry in bundle.manifest["inputs"]]
    programs = bundle.programs
    if inputs is not None:
        programs = [choose_program(programs, specs, inputs)]
    found = {
        program.name: verify_ranks(
            [bundle.load_rank(rank, program.name) for rank in range(bundle.world_size)],
            program.shardings,
            model,
            inputs,
            sizes={**program.sample, **(sizes or {})},
            backend=backend,
        )
        for program in programs
    }
    return _joined(found)


def _joined(found: Mapping[str, Verification]) -> Verification:
    """One result for all programs; outputs of several are named `prefill: logits`."""
    if len(found) == 1:
        return next(iter(found.values()))
    outputs = [
        replace(output, name=f"{program}: {output.name}")
        for program, one in found.items()
        for output in one.outputs
    ]
    first = next((one.first_divergence for one in found.values() if one.first_divergence), None)
    settings = next(iter(found.values())).setting
    as_run = [one.as_run for one in found.values() if one.as_run is not None]
    return Verification(outputs, first, settings, max(as_run, default=None))


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
    setting, computed_in = setting_for(ranks[0]), narrowest_floats(ranks[0].graph)

    def differences(setting: str) -> list[Difference]:
        want = reference(model, inputs, backend, setting)
        _check_proves_something(want)
        got = run_ranks(ranks, shardings, inputs, backend, setting)
        return [compare(name, got[name], want[name], computed_in.get(name)) for name in want]

    outputs, as_run, divergence = differences(setting), None, None
    if setting != AS_RUN:
        as_run = max((found.max_rel_diff for found in differences(AS_RUN)), default=0.0)
    if not all(output.equal for output in outputs):
        divergence = first_divergence(ranks, shardings, model, inputs, backend, setting)
    return Verification(outputs, divergence, setting, as_run)


def setting_for(model: ir.Model) -> str:
    """What is compared of a model: AS_WRITTEN where it has quantised ops."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    rounds = any((node.domain, node.op_type) in ROUNDING_OPS for node in nodes)
    return AS_WRITTEN if rounds else AS_RUN


def _executor(backend: str, setting: str) -> Executor:
    found = registry.get(backend)
    exact = found.exact_executor if setting == AS_WRITTEN else None
    return (exact or found.executor)()


def _check_proves_something(outputs: Arrays) -> None:
    """Raise PlanError if the unsplit model computes nothing that could be compared."""
    for name, array in ((key, array) for key in outputs for array in tensors_in(outputs[key])):
        if array.size and array.dtype.kind not in "biuOUS" and np.isnan(array.astype(float)).all():
            raise PlanError(
                f"output '{name}' of the unsplit model is NaN everywhere for these inputs, which "
                "proves nothing. Give other inputs with --inputs x.npz."
            )


def reference(
    model: Path, inputs: Arrays, backend: str = "simulate", setting: str = AS_RUN
) -> dict[str, np.ndarray]:
    """Outputs of the unsplit model."""
    unsplit = read_model(model)
    RemoveInitializersFromInputsPass()(unsplit)
    executor = _executor(backend, setting)
    alone = registry.get(backend).reference_executor
    if setting == AS_RUN and alone is not None:
        executor = alone()
    try:
        return Lockstep([unsplit], executor, threads=1).run([inputs])[0]
    except ExecutionError as error:
        cause = str(error).removeprefix("rank 0: ").rstrip(".")
        raise ExecutionError(
            f"the unsplit model itself does not run on these inputs: {cause}. Give others with "
            "--inputs x.npz, or other sizes with --shape."
        ) from error


def run_ranks(
    ranks: Sequence[ir.Model],
    shardings: Mapping[str, str],
    inputs: Arrays,
    backend: str = "simulate",
    setting: str = AS_RUN,
) -> dict[str, np.ndarray]:
    """Global outputs of all ranks run in lockstep in this process."""
    parts = [cut_inputs(inputs, shardings, rank) for rank in range(len(ranks))]
    results = Lockstep(ranks, _executor(backend, setting), threads=1).run(parts)
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
    setting: str = AS_RUN,
) -> dict[str, Any] | None:
    """The first value, in program order, that differs from the unsplit canonical model's."""
    canonical, _ = canonicalize(read_model(model))
    computed_in = narrowest_floats(canonical.graph)
    executor = _executor(backend, setting)
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
                if whole is None:
                    continue
                found = compare(name, whole, want[name], computed_in.get(name))
                if not found.equal:
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
