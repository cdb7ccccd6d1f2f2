"""A plan: how every value is held and why; a JSON file one can read, change and pass back.

`tpcore.planner.plans` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph.errors import PlanError
from graph.mesh import Mesh
from graph.shapes import Shapes
from tpcore.annotations import NOT_ANNOTATED, Annotated
from tpcore.planner.memory import NOTHING_HELD, MemoryUse
from tpcore.planner.options import Choices, placement_text
from tpcore.sharding import Sharding
from tpcore.strategies import StrategySpace
from tpcore.workload import ANY_WORK, Work

PLAN_VERSION = 1
PLAN_FIELDS = {"version", "mesh", "values"}
"""What tells a plan from a file of pins."""
AUTO = "auto"
"""The plan that costs least."""


@dataclass(frozen=True)
class Plan:
    """The choices for one graph, and what they were made from."""

    mesh: Mesh
    model: ir.Model
    """The canonical model the plan is for."""
    shapes: Shapes
    space: StrategySpace
    choices: Choices
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Value name -> placement text that was prescribed."""
    names: Mapping[ir.Value, str] = field(default_factory=dict)
    """Names that values have in the canonical model, before reshards take some of them over."""
    states: Mapping[ir.Value, ir.Value] = field(default_factory=dict)
    """Graph input -> output pairs that carry a state."""
    memory: MemoryUse = NOTHING_HELD
    """What the fullest rank holds."""
    work: Work = ANY_WORK
    """The kind of run it is for."""
    annotated: Annotated = NOT_ANNOTATED
    """What the model's own device annotations asked of it."""

    def held(self, value: ir.Value) -> Sharding:
        """How `value` is held."""
        return self.space.sharding(value, self.choices.hub[value])

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of symbolic dims that costs were computed for."""
        return self.work.sizes

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data: mesh, value -> placement, node -> strategy."""
        return {
            "version": PLAN_VERSION,
            "mesh": dict(self.mesh.axes),
            "sizes": dict(self.sizes),
            "seconds": self.choices.seconds,
            "proven_cheapest": self.choices.is_cheapest,
            "memory": self.memory.to_json(),
            "values": {name: placement_text(self.held(v)) for v, name in self.names.items()},
            "nodes": {node.name: s.name for node, s in self.choices.strategy.items()},
        }


def read_pins(path: Path, ranks: int) -> tuple[dict[str, str], dict[str, str]]:
    """What a file prescribes: placements by value name, and words by pattern.

    A plan has the first, a file of pins, as `tpcore.planner.steer` shows one, the second.

    Raises:
        PlanError: no such file, neither plan nor pins, or a plan for another number of ranks.
    """
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict):
            raise TypeError(f"it is a {type(data).__name__}, expected dict")
        if not PLAN_FIELDS & data.keys():
            return {}, _words(data.get("pins", data))
        version, mesh, values = data["version"], data["mesh"], _texts(data["values"])
    except OSError as error:
        raise PlanError(
            f"plan '{path}' cannot be read: {error.strerror}. "
            f"Give a plan file, or one of the names that tpcore plan --help lists."
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
    return values, {}


def _words(pins: Any) -> dict[str, str]:
    if not isinstance(pins, dict) or not all(isinstance(word, str) for word in pins.values()):
        raise TypeError("pins are words by pattern")
    if not pins:
        raise TypeError("it holds no pins")
    return dict(pins)


def _texts(values: Any) -> dict[str, str]:
    if not isinstance(values, dict):
        raise TypeError(f"'values' is a {type(values).__name__}, expected dict")
    return {str(name): str(text) for name, text in values.items()}
