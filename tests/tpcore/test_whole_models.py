"""Every model, split over 1 to 8 ranks, computes what the unsplit model computes in onnxruntime."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.graph.small import Arrays
from tests.models import GENAI, LAYERS, MODELS, model_cases, model_inputs, model_path, run_reference
from tests.tpcore.lockstep import TOLERANCE, SplitRunner, relative_difference
from tpcore.partition import Options
from tpcore.shard import split_model

RANKS = [1, 2, 3, 4, 8]
"""At 3 the eight heads are uneven, at 8 the four kv heads are replicated."""


@cache
def reference(model_id: str, case: str) -> Arrays:
    """Outputs of the unsplit model."""
    return run_reference(model_path(model_id), model_inputs(model_id, case))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("model_id", MODELS)
def test_split_equals_whole(model_id: str, ranks: int) -> None:
    runner = SplitRunner(split_model(model_path(model_id), Options(ranks)))
    for case in model_cases(model_id):
        got = runner.run(model_inputs(model_id, case))
        assert relative_difference(got, reference(model_id, case)) <= TOLERANCE


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_decoding_goes_on_from_the_ranks_own_cache(ranks: int) -> None:
    """Each rank feeds its part of `present` back as `past`, never gathered between the steps."""
    split = split_model(model_path(GENAI), Options(ranks))
    inputs = model_inputs(GENAI, "prefill")
    whole = reference(GENAI, "prefill")
    runner = SplitRunner(split)
    got = runner.run(inputs)
    for step in range(3):
        ids = np.argmax(whole["logits"][:, -1:], axis=-1).astype(np.int64)
        length = inputs["attention_mask"].shape[1] + 1
        inputs = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}
        whole = run_reference(model_path(GENAI), inputs | past_of(whole))
        got = runner.run(inputs | past_of(got))
        assert relative_difference(got, whole) <= TOLERANCE, step


def past_of(outputs: Arrays) -> Arrays:
    """The cache of the next step."""
    return {
        f"past_key_values.{layer}.{part}": outputs[f"present.{layer}.{part}"]
        for layer in range(LAYERS)
        for part in ("key", "value")
    }


LONG = {"past_sequence_length": 1024, "total_sequence_length": 1025}


@pytest.mark.parametrize(
    ("ranks", "sizes", "heads"),
    [
        (2, {}, "0:2 2:4"),
        (3, LONG, "0:2 2:3 3:4"),
        (4, {}, "0:1 1:2 2:3 3:4"),
        (8, {}, "0:1 0:1 1:2 1:2 2:3 2:3 3:4 3:4"),
    ],
)
def test_a_cache_leaves_a_step_as_the_next_one_takes_it(
    ranks: int, sizes: dict[str, int], heads: str
) -> None:
    shardings = split_model(model_path(GENAI), Options(ranks, sizes=sizes)).shardings
    for layer in range(LAYERS):
        for part in ("key", "value"):
            assert shardings[f"past_key_values.{layer}.{part}"] == f"S(1) {heads}"
            assert shardings[f"present.{layer}.{part}"] == f"S(1) {heads}"
