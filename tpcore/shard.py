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
from tpcore.inputs import describe_inputs, describe_outputs
from tpcore.insert_reshards import ShardedGraph
from tpcore.manifest import source_digest
from tpcore.partition import Options, plan_models, rank_models, shard_plan
from tpcore.plan import Plan
from tpcore.planner.options import placement_text
from tpcore.program import Program
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
    def shardings(self) -> Mapping[str, str]:
        """Placement text of every value that is not replicated, by name."""
        return self.program.shardings

    @property
    def program(self) -> Program:
        """What a manifest says of it."""
        return program_of(self.sharded)

    def manifest(self, source: Path, programs: Sequence[Program]) -> dict[str, Any]:
        """The fields of a bundle's manifest that concern the split."""
        graph, plan = self.sharded.model.graph, self.sharded.plan
        return {
            "source": {"name": source.name, "sha256": source_digest(source)},
            "mesh": dict(self.sharded.mesh.axes),
            "inputs": [asdict(spec) for spec in describe_inputs(graph, self.sharded.shapes)],
            "outputs": [asdict(spec) for spec in describe_outputs(graph, self.sharded.shapes)],
            "states": state_names(plan),
            "programs": [program.to_json() for program in programs],
            "report": dict(self.report),
        }


def program_of(sharded: ShardedGraph) -> Program:
    """What a manifest says of one program."""
    work = sharded.plan.work
    shardings = {name: placement_text(held) for name, held in sharded.shardings.items()}
    return Program(work.name, dict(work.sizes), dict(work.sample), shardings)


def state_names(plan: Plan) -> dict[str, str]:
    """Names of the inputs that carry a state -> names of the outputs that they come from."""
    return {plan.names[past]: plan.names[present] for past, present in plan.states.items()}


def split_models(path: Path, options: Options) -> list[Split]:
    """Split a model in memory, once per workload."""
    return [split_plan(plan, options) for plan in plan_models(path, options)]


def split_model(path: Path, options: Options) -> Split:
    """Split a model in memory for one workload."""
    return split_models(path, options)[0]


def split_plan(plan: Plan, options: Options) -> Split:
    """Split by a plan that was made before."""
    sharded = shard_plan(plan, options)
    ranks = rank_models(sharded)
    return Split(sharded, ranks, split_report(sharded, ranks))


def joint_report(splits: Sequence[Split]) -> dict[str, Any]:
    """The first split's figures, and of several programs what each exchanges."""
    report = dict(splits[0].report)
    if len(splits) > 1:
        report["programs"] = {
            split.program.name: {
                "collectives": split.report["collectives"],
                "comm_bytes_per_rank": split.report["comm_bytes_per_rank"],
            }
            for split in splits
        }
    return report


def joint_plan(splits: Sequence[Split]) -> dict[str, Any]:
    """The plan as plain data; of several programs one plan each."""
    plans = {split.program.name: split.sharded.plan.to_json() for split in splits}
    return plans.popitem()[1] if len(plans) == 1 else {"programs": plans}


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
    splits = split_models(Path(model), options)
    return write_splits(bundle, splits, Path(model), force=force, progress=progress)


def write_splits(
    bundle: str | os.PathLike[str],
    splits: Sequence[Split],
    model: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write the bundle of a model's splits, one per workload. Raises BundleError."""
    programs = [split.program for split in splits]
    ranks = [
        {split.program.name: split.ranks[rank] for split in splits}
        for rank in range(len(splits[0].ranks))
    ]
    path = write_bundle(
        bundle,
        ranks,
        manifest=splits[0].manifest(model, programs) | {"report": joint_report(splits)},
        plan=joint_plan(splits),
        force=force,
        progress=progress,
    )
    return open_bundle(path)
