"""Split a model and write the bundle; or make the rank graphs in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph.safetensors_file import Progress
from tpcore.bundle import Bundle, open_bundle, refuse_existing, write_bundle
from tpcore.inputs import describe_inputs
from tpcore.insert_reshards import ShardedGraph
from tpcore.manifest import source_digest
from tpcore.partition import Options, plan_model, rank_models, shard_plan
from tpcore.plan import Plan
from tpcore.planner.problem import placement_text
from tpcore.report import split_report


@dataclass(frozen=True)
class Split:
    """A model split in memory: what a bundle holds, before it is written."""

    sharded: ShardedGraph
    ranks: Sequence[ir.Model]
    """One graph per rank; weights are read when they are asked for."""
    report: Mapping[str, Any]
    """The figures of `shard --json`."""

    @property
    def shardings(self) -> dict[str, str]:
        """Placement text of every value that is not replicated, by name."""
        return {name: placement_text(held) for name, held in self.sharded.shardings.items()}

    def manifest(self, source: Path) -> dict[str, Any]:
        """The fields of a bundle's manifest that concern the split."""
        graph, plan = self.sharded.model.graph, self.sharded.plan
        return {
            "source": {"name": source.name, "sha256": source_digest(source)},
            "mesh": dict(self.sharded.mesh.axes),
            "inputs": [asdict(spec) for spec in describe_inputs(graph, self.sharded.shapes)],
            "outputs": [value.name for value in graph.outputs],
            "states": {past.name: present.name for past, present in plan.states.items()},
            "shardings": self.shardings,
            "report": dict(self.report),
        }


def split_model(path: Path, options: Options) -> Split:
    """Split a model in memory."""
    return split_plan(plan_model(path, options), options)


def split_plan(plan: Plan, options: Options) -> Split:
    """Split by a plan that was made before."""
    sharded = shard_plan(plan, options)
    ranks = rank_models(sharded)
    return Split(sharded, ranks, split_report(sharded, ranks))


def shard(
    model: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    options: Options,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Split `model` and write `bundle`, a directory that must not exist yet unless `force`.

    Raises:
        GraphError: `model` is not a usable ONNX model.
        PlanError: the split asked for is not possible.
        BundleError: `bundle` exists.
    """
    refuse_existing(Path(bundle), force)
    split = split_model(Path(model), options)
    path = write_bundle(
        bundle,
        split.ranks,
        manifest=split.manifest(Path(model)),
        plan=split.sharded.plan.to_json(),
        force=force,
        progress=progress,
    )
    return open_bundle(path)
