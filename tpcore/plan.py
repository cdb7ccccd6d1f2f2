"""A plan: how every value is held and why; a JSON file one can read, change and pass back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph.dims import Expr
from graph.errors import PlanError
from graph.mesh import Mesh
from graph.shapes import Shapes
from graph.weights import is_index
from tpcore.factors import solve_factors
from tpcore.planner.cost import SHARED_MEMORY_CPU, CostModel, Topology, default_price
from tpcore.planner.problem import Choices, choose, find_states, placement_text
from tpcore.sharding import Sharding
from tpcore.strategies import StrategySpace

PLAN_VERSION = 1
PRESETS = ("auto", "replicate")


@dataclass(frozen=True)
class Plan:
    """The choices for one graph, and what they were made from."""

    mesh: Mesh
    model: ir.Model
    """The canonical model the plan is for."""
    shapes: Shapes
    space: StrategySpace
    choices: Choices
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of symbolic dims that costs were computed for."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Value name -> placement text that was prescribed."""
    names: Mapping[ir.Value, str] = field(default_factory=dict)
    """Names that values have in the canonical model, before reshards take some of them over."""

    def held(self, value: ir.Value) -> Sharding:
        """How `value` is held."""
        return self.space.sharding(value, self.choices.hub[value])

    @property
    def states(self) -> dict[ir.Value, ir.Value]:
        """Graph input -> output pairs that carry a state."""
        return find_states(self.model.graph)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data: mesh, value -> placement, node -> strategy."""
        return {
            "version": PLAN_VERSION,
            "mesh": dict(self.mesh.axes),
            "sizes": dict(self.sizes),
            "seconds": self.choices.seconds,
            "values": {name: placement_text(self.held(v)) for v, name in self.names.items()},
            "nodes": {node.name: s.name for node, s in self.choices.strategy.items()},
        }


def make_plan(
    model: ir.Model,
    shapes: Shapes,
    ranks: int,
    *,
    preset: str = "auto",
    topology: Topology = SHARED_MEMORY_CPU,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """Plan the split of a canonical model over `ranks` ranks.

    `preset` is `auto`, `replicate` or the path of a plan file.

    Raises:
        PlanError: `ranks` is more than any dim allows, or the plan file does not fit.
    """
    _check_sizes(shapes, sizes or {})
    space = StrategySpace(model.graph, solve_factors(model.graph, shapes), ranks)
    _check_ranks(space, model, ranks)
    pins: dict[str, str] = {}
    if preset == "replicate":
        pins = {value.name or "": "R" for value in model.graph.initializers.values()}
    elif preset != "auto":
        pins = read_pins(Path(preset), ranks)
    price = default_price(model.graph, topology)
    cost = CostModel(topology, shapes, ranks, {**shapes.equal, **(sizes or {})}, price)
    choices = choose(space, cost, pins)
    names = {value: value.name or "" for value in choices.hub}
    return Plan(Mesh.of(tp=ranks), model, shapes, space, choices, dict(sizes or {}), pins, names)


def _check_sizes(shapes: Shapes, sizes: Mapping[str, int]) -> None:
    known = {
        name
        for dims in shapes.dims.values()
        for size in dims
        if isinstance(size, Expr)
        for name in size.symbols
    }
    for name in sizes:
        if name not in known:
            raise PlanError(
                f"--shape names '{name}', which is no dim of the model. "
                f"Symbolic dims of this model: {', '.join(sorted(known)) or 'none'}."
            )


def _check_ranks(space: StrategySpace, model: ir.Model, ranks: int) -> None:
    if ranks == 1 or space.chains:
        return
    weights = [v for v in model.graph.initializers.values() if v.const_value is not None]
    sizes = {
        (int(size), v.name)
        for v in weights
        if len(v.const_value.shape) >= 2 and not is_index(v.const_value)  # type: ignore[union-attr, arg-type]
        for size in v.const_value.shape.numpy()  # type: ignore[union-attr]
    }
    if not sizes:
        return  # nothing to split: every rank computes the whole graph, and the report says so
    largest, name = max(sizes)
    if largest >= ranks:
        return  # what stands in the way is something else: the report gives each weight's reason
    raise PlanError(
        f"cannot split over tp={ranks}: the largest dim of any weight is {largest} (of '{name}'), "
        f"and {ranks} ranks would leave some of them without a part. Choose tp up to {largest}."
    )


def read_pins(path: Path, ranks: int) -> dict[str, str]:
    """Placements per value name from a plan file.

    Raises:
        PlanError: no such file, not a plan, or a plan for another number of ranks.
    """
    try:
        data = json.loads(path.read_text())
        version, mesh, values = data["version"], data["mesh"], data["values"]
        if not isinstance(values, dict):
            raise TypeError(f"'values' is a {type(values).__name__}, expected dict")
    except OSError as error:
        raise PlanError(
            f"plan '{path}' cannot be read: {error.strerror}. "
            f"Give a plan file or one of: {', '.join(PRESETS)}."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else error
        raise PlanError(
            f"'{path}' is not a plan file ({what}). Write one with 'tpcore plan MODEL --tp N -o'."
        ) from error
    if version != PLAN_VERSION:
        raise PlanError(
            f"plan '{path}' has version {version}, this tpcore reads {PLAN_VERSION}. Plan again."
        )
    if mesh != {"tp": ranks}:
        raise PlanError(
            f"plan '{path}' is for mesh {mesh}, the request is for tp={ranks}. "
            "Plan again for this number of ranks."
        )
    return {str(name): str(text) for name, text in values.items()}
