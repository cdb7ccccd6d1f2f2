"""What a rank runs: its graph, and how inputs and outputs are split; from a bundle or a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graph.errors import BundleError, PlanError
from tpcore.bundle import Bundle, open_bundle
from tpcore.inputs import InputSpec, describe_inputs, describe_outputs, input_spec
from tpcore.localize import localize
from tpcore.manifest import FORMAT_VERSION, source_digest
from tpcore.partition import Options, plan_models, shard_plan
from tpcore.program import Program, choose_program
from tpcore.shard import program_of, state_names


@dataclass(frozen=True)
class Target:
    """A split model, ready to be run by `world_size` ranks."""

    name: str
    """Path that the user gave."""
    id: str
    """Equal on two ranks only if they run the same thing."""
    world_size: int
    inputs: list[InputSpec]
    outputs: list[InputSpec]
    states: Mapping[str, str]
    """Inputs that carry a state from one run to the next -> the outputs that they come from."""
    programs: Sequence[Program]
    load_rank: Callable[[int, str], ir.Model]
    """Reads the graph of one rank for a program; weights are mapped or read when asked for."""
    format: str = str(FORMAT_VERSION)

    def program_for(self, inputs: Mapping[str, np.ndarray]) -> Program:
        """The program that suits these inputs."""
        return choose_program(self.programs, self.inputs, inputs)


def check_exists(path: Path) -> None:
    """Raise BundleError where there is neither a model file nor a bundle."""
    if not path.exists():
        raise BundleError(f"there is no model file and no bundle '{path}'. Check the path.")


def open_target(path: Path, options: Options | None) -> Target:
    """Open a bundle, or split a model file in memory when `options` say over how many ranks.

    Raises:
        PlanError: a model file without a number of ranks, or a bundle made for another number.
        BundleError, GraphError: the files are not usable.
    """
    check_exists(path)
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
        outputs=[input_spec(entry) for entry in bundle.manifest["outputs"]],
        states=bundle.manifest["states"],
        programs=bundle.programs,
        load_rank=bundle.load_rank,
    )


def _from_model(path: Path, options: Options) -> Target:
    splits = [shard_plan(plan, options) for plan in plan_models(path, options)]
    by_name = {sharded.plan.work.name: sharded for sharded in splits}
    plans = json.dumps([s.plan.to_json() for s in splits], sort_keys=True)
    identity = hashlib.sha256((source_digest(path) + plans).encode()).hexdigest()
    return Target(
        name=str(path),
        id=identity,
        world_size=options.tp,
        inputs=describe_inputs(splits[0].model.graph, splits[0].shapes),
        outputs=describe_outputs(splits[0].model.graph, splits[0].shapes),
        states=state_names(splits[0].plan),
        programs=[program_of(sharded) for sharded in splits],
        load_rank=lambda rank, program: localize(by_name[program], rank),
    )
