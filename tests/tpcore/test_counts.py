"""How many collectives a split has, and how the bytes of its weights divide over the ranks."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

from graph.dialect import is_collective
from graph.shapes import MAX_CONTENTS
from graph.weights import ShardTensor
from tests.models import LAYERS, MODELS, model_path
from tpcore.partition import Options
from tpcore.shard import Split, split_model

DECODERS = [m for m in MODELS if m.startswith(("llama", "gpt2"))]
LLAMAS = [m for m in MODELS if m.startswith("llama")]
SLACK = 0.03
"""Share of the weights that a rank may hold beyond its even part: norms, biases, uneven heads."""


@cache
def split(model_id: str, ranks: int) -> Split:
    """A model split once for all tests of this file."""
    return split_model(model_path(model_id), Options(ranks))


def collectives(made: Split, rank: int = 0) -> list[tuple[str, str]]:
    """(op, operand) of a rank's collectives, in order."""
    nodes = [node for node in made.ranks[rank].graph if is_collective(node)]
    return [(node.op_type, str(node.inputs[0].name)) for node in nodes if node.inputs[0]]


@pytest.mark.parametrize("model_id", DECODERS)
def test_two_all_reduces_per_layer_and_two_more_collectives(model_id: str) -> None:
    """Megatron's optimum at tp=2: one AllReduce behind attention, one behind the MLP."""
    found = Counter(op for op, _ in collectives(split(model_id, 2)))
    all_reduces = found.pop("AllReduce")
    assert all_reduces >= 2 * LAYERS
    assert all_reduces - 2 * LAYERS + sum(found.values()) <= 2, collectives(split(model_id, 2))


@pytest.mark.parametrize("model_id", MODELS)
def test_no_collective_on_one_rank(model_id: str) -> None:
    assert collectives(split(model_id, 1)) == []


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("model_id", MODELS)
def test_all_ranks_have_the_same_collectives(model_id: str, ranks: int) -> None:
    made = split(model_id, ranks)
    first = collectives(made)
    assert all(collectives(made, rank) == first for rank in range(1, ranks))
    assert made.report["collectives"] == Counter(op for op, _ in first)


def held_bytes(made: Split, rank: int) -> int:
    """Bytes of the distinct parts that a rank holds."""
    parts = _parts(made, rank)
    return sum({part.key: part.nbytes for part in parts}.values())


def whole_bytes(made: Split) -> int:
    """Bytes of the distinct tensors that some rank holds a part of."""
    parts = [part for rank in range(len(made.ranks)) for part in _parts(made, rank)]
    return sum({id(part.source): part.source.nbytes for part in parts}.values())


def _parts(made: Split, rank: int) -> list[ShardTensor]:
    """A rank's parts of all constants but the small integers of shape arithmetic."""
    values = made.ranks[rank].graph.initializers.values()
    parts = [tensor for v in values if isinstance(tensor := v.const_value, ShardTensor)]
    return [p for p in parts if p.source.size > MAX_CONTENTS or not p.dtype.is_integer()]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("model_id", LLAMAS)
def test_the_largest_rank_holds_its_part_and_little_more(model_id: str, ranks: int) -> None:
    made = split(model_id, ranks)
    largest = max(held_bytes(made, rank) for rank in range(ranks))
    assert largest <= (1 / ranks + SLACK) * whole_bytes(made)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("model_id", MODELS)
def test_nearly_all_weights_are_split(model_id: str, ranks: int) -> None:
    report: dict[str, Any] = dict(split(model_id, ranks).report)
    assert report["split_fraction"] >= 0.95, report["unsplit"]


@pytest.mark.parametrize("model_id", ["llama-opset18", "gpt2-opset23", "llama-genai"])
def test_the_report_counts_the_bytes_that_the_ranks_hold(model_id: str) -> None:
    made = split(model_id, 4)
    held = [held_bytes(made, rank) for rank in range(4)]
    assert made.report["weight_bytes_per_rank"] == held
    assert whole_bytes(made) <= made.report["weight_bytes_total"]
    assert sum(held) >= whole_bytes(made), "every entry lies on some rank"


def test_no_rank_holds_an_empty_part() -> None:
    made = split("llama-opset18", 8)
    for rank in range(8):
        assert all(part.size for part in _parts(made, rank))
