"""Caches that grow in place in torch: the same answer, in the memory that was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.comm_local import SingleCommunicator
from backends.exec_torch import TorchExecutor
from backends.run import RankProgram
from graph.reader import read_model
from tests.big_model import SMALL, make, make_inputs
from tests.graph.small import run_whole

TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("batch", "sequence", "cache", "compile"),
    [(1, 1, 5, False), (1, 1, 5, True), (1, 3, 5, False), (2, 1, 5, False), (1, 4, 0, False)],
)
def test_a_cache_is_written_in_place(
    tmp_path: Path, batch: int, sequence: int, cache: int, compile: bool
) -> None:
    sizes = {
        **SMALL,
        "in_place": True,
        "batch": batch,
        "sequence": sequence,
        "cache": cache,
        "fused": True,
    }
    path = make(tmp_path / "model.onnx", **sizes)
    inputs = make_inputs(**sizes)
    whole = run_whole(read_model(path), inputs)
    executor = TorchExecutor(compile=compile)
    program = RankProgram(read_model(path), executor, SingleCommunicator(), threads=1)
    held = {name: executor.to_cache(array.copy()) for name, array in inputs.items()}
    presents = {name: held[_past(name)] for name in whole if name != "logits"}
    assert program.write_into(presents)
    made = program.run_held(held)
    for name, tensor in presents.items():
        assert made[name].data_ptr() == tensor.data_ptr()
    for name, found in program.read(made).items():
        assert np.abs(found - whole[name]).max() <= TOLERANCE * np.abs(whole[name]).max()


def test_caches_have_the_type_that_is_computed_in() -> None:
    executor = TorchExecutor(dtype="bf16")
    assert str(executor.to_cache(np.zeros((1, 2, 3, 4), np.float32)).dtype) == "torch.bfloat16"
    assert str(executor.to_cache(np.zeros(3, np.int64)).dtype) == "torch.int64"


def _past(present: str) -> str:
    return present.replace("present", "past_key_values")
