"""What every rank can run: one graph, or one per workload, and which of them suits given inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tpcore.inputs import InputSpec, sizes_of


@dataclass(frozen=True)
class Program:
    """One graph of every rank, as the manifest describes it."""

    name: str
    sizes: Mapping[str, int]
    """Sizes of symbolic dims that it was planned for."""
    sample: Mapping[str, int]
    """Small sizes of the same kind, to prove it with."""
    shardings: Mapping[str, str]
    """Placement text of every value that is not replicated, by name."""

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Program:
        """An entry of the manifest."""
        return cls(*(entry[name] for name in ("name", "sizes", "sample", "shardings")))

    def to_json(self) -> dict[str, Any]:
        """The entry of the manifest."""
        return asdict(self)


def choose_program(
    programs: Sequence[Program], specs: Sequence[InputSpec], inputs: Mapping[str, np.ndarray]
) -> Program:
    """The program whose planned sizes are nearest to those of the inputs, by their ratios."""
    if len(programs) == 1:
        return programs[0]
    actual = sizes_of(specs, inputs)

    def distance(program: Program) -> float:
        planned = program.sizes
        return sum(
            abs(math.log2((actual[name] + 1) / (planned[name] + 1)))
            for name in actual.keys() & planned.keys()
        )

    return min(programs, key=distance)
