"""A split model beside the whole one: all ranks in this process, segments in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.exec_ort import OrtExecutor
from backends.lockstep import Lockstep
from tests.graph.small import Arrays
from tpcore.distribute import cut_inputs, read_held
from tpcore.shard import Split

TOLERANCE = 1e-4
"""fp32: absolute, and relative to the output's scale."""


class SplitRunner:
    """The ranks of a split, prepared once."""

    def __init__(self, split: Split) -> None:
        self.shardings = split.shardings
        self.ranks = split.sharded.mesh.size
        self.lockstep = Lockstep(split.ranks, OrtExecutor(ranks_here=1))

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Global outputs for global inputs."""
        cut = [cut_inputs(inputs, self.shardings, rank) for rank in range(self.ranks)]
        parts = self.lockstep.run(cut)
        return {
            name: read_held(self.shardings.get(name, "R")).join([part[name] for part in parts])
            for name in parts[0]
        }


def relative_difference(got: Arrays, want: Arrays) -> float:
    """Largest difference of any output, over the smaller of 1 and the scale of that output."""
    assert list(got) == list(want)
    worst = 0.0
    for name, array in want.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
        assert np.isfinite(got[name]).all(), name
        scale = min(1.0, float(np.abs(array).max(initial=0)) or 1.0)
        worst = max(worst, float(np.abs(got[name] - array).max(initial=0)) / scale)
    return worst
