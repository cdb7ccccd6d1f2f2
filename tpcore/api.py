"""The Python interface: what the commands do, as functions with keywords."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graph.errors import PlanError
from tpcore import arguments
from tpcore.annotations import ANNOTATED
from tpcore.bundle import Bundle, open_bundle
from tpcore.partition import Options
from tpcore.planner.topology_files import DEFAULT_TOPOLOGY
from tpcore.shard import Split, joint_plan, joint_report, split_models, write_splits
from tpcore.shard import shard as write_bundle_of
from tpcore.verify import Verification
from tpcore.verify import verify as verify_bundle

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class PlannedModel:
    """A plan for a model; `tpcore.shard` carries it out."""

    model: Path
    options: Options

    @cached_property
    def _splits(self) -> list[Split]:
        return split_models(self.model, self.options)

    @property
    def report(self) -> dict[str, Any]:
        """The figures of `tpcore plan --json`: memory, collectives, bytes, predicted time."""
        return joint_report(self._splits)

    @property
    def placements(self) -> dict[str, str]:
        """How every value is held, by name: `R`, `P(sum)`, `S(1) 0:8 8:16`."""
        return dict(self._splits[0].sharded.plan.to_json()["values"])

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, as `tpcore plan -o` writes it."""
        return joint_plan(self._splits)

    def save(self, path: PathLike) -> None:
        """Write the plan to a file that `plan="that file"` and `--plan` read."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    def shard(self, bundle: PathLike, *, force: bool = False) -> Bundle:
        """Write the bundle. Raises BundleError if it exists and `force` is not given."""
        return write_splits(bundle, self._splits, self.model, force=force)


def plan(
    model: PathLike,
    *,
    tp: int,
    plan: PathLike = ANNOTATED,
    memory: int | str | None = None,
    topology: PathLike = DEFAULT_TOPOLOGY,
    shape: Mapping[str, int] | None = None,
    workload: Mapping[str, int] | None = None,
    pins: Mapping[str, str] | None = None,
    keep_split: Sequence[str] = (),
) -> PlannedModel:
    """Plan how `model` is split over `tp` ranks, without reading its weights.

    `memory` is what a rank may hold, in bytes or as `"16GiB"`; the other keywords are the options
    of `tpcore plan` of the same names.

    Raises:
        GraphError: `model` is not a usable ONNX model.
        PlanError: the split asked for is not possible.
    """
    try:
        budget = arguments.bytes_count(memory) if isinstance(memory, str) else memory
    except ArgumentTypeError as error:
        raise PlanError(f"{error}.") from error
    options = Options(
        tp,
        os.fspath(plan),
        dict(shape or {}),
        memory=budget,
        tokens=dict(workload or {}),
        topology=os.fspath(topology),
        pins=dict(pins or {}),
        split_outputs=tuple(keep_split),
    )
    made = PlannedModel(Path(model), options)
    _ = made.report  # what is wrong with the request is said here, not later
    return made


_planned = plan  # `shard` has a keyword of that name


def shard(
    model: PathLike,
    bundle: PathLike,
    options: Options | None = None,
    *,
    plan: PlannedModel | None = None,
    force: bool = False,
    **wishes: Any,
) -> Bundle:
    """Split `model` and write `bundle`: by a plan made before, by `Options`, or by the keywords of
    `tpcore.plan`, of which `tp` is needed.

    Raises:
        GraphError: `model` is not a usable ONNX model.
        PlanError: the split asked for is not possible, or the plan is for another model.
        BundleError: `bundle` exists and `force` is not given.
    """
    if sum((options is not None, plan is not None, bool(wishes))) != 1:
        raise PlanError("give tpcore.shard one of: a plan, Options, or keywords such as tp=4.")
    if options is not None:
        return write_bundle_of(model, bundle, options, force=force)
    planned = plan or _planned(model, **wishes)
    if planned.model.resolve() != Path(model).resolve():
        raise PlanError(f"the plan is for model '{planned.model}', not for '{model}'. Plan again.")
    return planned.shard(bundle, force=force)


def verify(
    bundle: Bundle | PathLike,
    model: PathLike,
    inputs: Mapping[str, np.ndarray] | None = None,
    *,
    shape: Mapping[str, int] | None = None,
    backend: str = "simulate",
) -> Verification:
    """Run a bundle and the unsplit model on the same inputs and compare all outputs.

    Raises:
        BundleError: a file of the bundle is damaged, or it was made from another model.
        BackendUnavailable: the backend cannot run here.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    return verify_bundle(opened, Path(model), inputs, sizes=shape, backend=backend)
