"""The big test model with a cache: one step of decoding is split like any other run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends import registry
from backends.lockstep import run_lockstep
from graph.reader import read_model
from tests.big_model import SMALL, make, make_inputs
from tests.graph.small import run_whole
from tpcore.distribute import cut_inputs, read_held
from tpcore.partition import Options
from tpcore.shard import split_model

SIZES = {**SMALL, "sequence": 1, "cache": 5}
TOLERANCE = 1e-5


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_decode_step_on_ranks_is_that_of_the_whole(tmp_path: Path, ranks: int) -> None:
    path = make(tmp_path / "model.onnx", **SIZES)
    inputs = make_inputs(**SIZES)
    whole = run_whole(read_model(path), inputs)
    split = split_model(path, Options(ranks))
    parts = [cut_inputs(inputs, split.shardings, rank) for rank in range(ranks)]
    found = run_lockstep(list(split.ranks), parts, registry.get("simulate").executor())
    assert set(whole) == set(found[0]) and whole["present.1.key"].shape[2] == 6
    for name, expected in whole.items():
        held = read_held(split.shardings.get(name, "R"))
        joined = held.join([outputs[name] for outputs in found])
        assert np.abs(joined - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert split.report["collectives"] == {"AllReduce": 4, "AllGather": 2}
    assert not read_held(split.shardings["present.1.key"]).is_replicated
