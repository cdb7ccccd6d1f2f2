"""What a rank runs: its graph, and how inputs and outputs are split; from a bundle or a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph.errors import PlanError
from tpcore.bundle import Bundle, open_bundle
from tpcore.inputs import InputSpec, describe_inputs
from tpcore.localize import localize
from tpcore.manifest import FORMAT_VERSION, source_digest
from tpcore.partition import Options, partition
from tpcore.planner.problem import placement_text


@dataclass(frozen=True)
class Target:
    """A split model, ready to be run by `world_size` ranks."""

    name: str
    """Path that the user gave."""
    id: str
    """Equal on two ranks only if they run the same thing."""
    world_size: int
    inputs: list[InputSpec]
    shardings: Mapping[str, str]
    """Placement texts of the values that are not replicated."""
    load_rank: Callable[[int], ir.Model]
    """Reads the graph of one rank; weights are mapped or read when asked for."""
    format: str = str(FORMAT_VERSION)


def open_target(path: Path, options: Options | None) -> Target:
    """Open a bundle, or split a model file in memory when `options` say over how many ranks.

    Raises:
        PlanError: a model file without a number of ranks, or a bundle made for another number.
        BundleError, GraphError: the files are not usable.
    """
    if path.is_file():
        if options is None:
            raise PlanError(
                f"'{path}' is a model file, and over how many ranks to split it is not said. "
                "Give --tp N, or a bundle written by tpcore shard."
            )
        return _from_model(path, options)
    bundle = open_bundle(path)
    if options is not None and options.tp != bundle.world_size:
        raise PlanError(
            f"bundle '{path}' is for {bundle.world_size} ranks, --tp asks for {options.tp}. "
            f"Leave --tp out, or split the model again with --tp {options.tp}."
        )
    return _from_bundle(bundle)


def _from_bundle(bundle: Bundle) -> Target:
    return Target(
        name=str(bundle.path),
        id=bundle.id,
        world_size=bundle.world_size,
        inputs=[input_spec(entry) for entry in bundle.manifest["inputs"]],
        shardings=bundle.manifest["shardings"],
        load_rank=bundle.load_rank,
    )


def input_spec(entry: Mapping[str, Any]) -> InputSpec:
    """One entry of the manifest's `inputs`."""
    shape = entry["shape"]
    return InputSpec(
        entry["name"], entry["dtype"], None if shape is None else tuple(shape), entry["rows"]
    )


def _from_model(path: Path, options: Options) -> Target:
    sharded = partition(path, options)
    plan = json.dumps(sharded.plan.to_json(), sort_keys=True)
    identity = hashlib.sha256((source_digest(path) + plan).encode()).hexdigest()
    return Target(
        name=str(path),
        id=identity,
        world_size=options.tp,
        inputs=describe_inputs(sharded.model.graph, sharded.shapes),
        shardings={name: placement_text(held) for name, held in sharded.shardings.items()},
        load_rank=lambda rank: localize(sharded, rank),
    )
