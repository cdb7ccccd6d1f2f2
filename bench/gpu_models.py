"""All test models on one number of ranks of a device, as bench.gpu runs them.

    python -m bench.gpu_models BACKEND RANKS EXCHANGE MODEL...

Starts its ranks itself. Every model is split once and run in float32, float16 and bfloat16 on all
its inputs; rank 0 compares with onnxruntime on the whole model and prints a JSON object per row.
EXCHANGE is `device` or one that `--collectives` takes.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from backends import job, registry
from backends.base import BackendOptions, Communicator
from backends.launch import launch
from backends.placement import detect_environment, threads_per_rank
from backends.rank_main import rank_main
from backends.run import RankProgram
from bench.rows import compare_all
from tests.models import model_cases, model_inputs, model_path
from tpcore.compare import TOLERANCES
from tpcore.distribute import cut_inputs, read_held
from tpcore.partition import Options
from tpcore.shard import Split, split_model
from tpcore.verify import reference

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEVICE = "device"
TIMEOUT_SECONDS = 60.0
Arrays = Mapping[str, np.ndarray]


def main() -> int:
    """Start the ranks, or be one of them."""
    name, ranks, exchange, *models = sys.argv[1:]
    through = None if exchange == DEVICE else exchange
    backend = registry.get(name, BackendOptions(collectives=through))
    if int(ranks) > 1 and detect_environment().size == 1:
        line = [sys.executable, "-m", "bench.gpu_models", *sys.argv[1:]]
        return launch(line, int(ranks), TIMEOUT_SECONDS, launcher=backend.find_launcher())
    communicator = job.join(TIMEOUT_SECONDS, backend.communicator).communicator
    for model in models:
        for row in rows_of(model, name, through, communicator):
            if communicator.rank == 0:
                print(json.dumps(row), flush=True)
    return 0


def rows_of(
    model: str, backend: str, through: str | None, communicator: Communicator
) -> Iterator[dict[str, Any]]:
    """One row per type."""
    path, cases = model_path(model), [model_inputs(model, case) for case in model_cases(model)]
    expected = [reference(path, inputs) for inputs in cases] if communicator.rank == 0 else []
    split = split_model(path, Options(communicator.size))
    for dtype, meant in DTYPES.items():
        executor = registry.get(backend, BackendOptions(dtype, collectives=through)).executor()
        program = RankProgram(
            split.ranks[communicator.rank], executor, communicator, threads=threads_per_rank()
        )
        got = run_all(program, split, cases, communicator)
        found = compare_all(got[: len(expected)], expected)
        largest = max((one.max_rel_diff for one in found), default=0.0)
        yield {
            "model": model, "dtype": dtype, "ranks": communicator.size,
            "difference": largest, "allowed": TOLERANCES[meant],
        }  # fmt: skip


def run_all(
    program: RankProgram, split: Split, cases: Sequence[Arrays], communicator: Communicator
) -> list[Arrays]:
    """The whole outputs of every case, on every rank."""
    found: list[Arrays] = []
    for inputs in cases:
        made = program.run(cut_inputs(inputs, split.shardings, communicator.rank))
        parts = {name: _all_parts(array, communicator) for name, array in made.items()}
        found.append(
            {name: read_held(split.shardings.get(name, "R")).join(parts[name]) for name in parts}
        )
    return found


def _all_parts(array: np.ndarray, communicator: Communicator) -> list[np.ndarray]:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return [np.load(io.BytesIO(part)) for part in communicator.exchange(stream.getvalue())]


if __name__ == "__main__":
    sys.exit(rank_main(main))
