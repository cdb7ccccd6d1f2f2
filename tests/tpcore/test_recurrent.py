"""Recurrent networks as torch exports them: their weights are arithmetic on other weights."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graph.dialect import is_collective
from tests.families import family_cases, family_inputs, family_path
from tests.models import run_reference
from tests.tpcore.lockstep import TOLERANCE, SplitRunner, relative_difference
from tests.tpcore.test_negative_controls import the_wrong
from tests.tpcore.validator_cases import floats
from tpcore.ops import OPS
from tpcore.partition import Options
from tpcore.rules.spec import OpSpec
from tpcore.shard import split_model
from tpcore.trial import Case
from tpcore.validator import validate

FAMILIES = ("lstm-tagger", "gru-tagger", "wav2vec2")


def gathered_weights(graph: ir.Graph) -> list[str]:
    """Collectives that work on what is made of weights alone."""
    constant, found = set(graph.initializers.values()), []
    for node in graph:
        if node.inputs and all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
            found += [str(node.name)] if is_collective(node) else []
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_gathered_at_run_time(family: str, ranks: int) -> None:
    split = split_model(family_path(family), Options(ranks))
    assert gathered_weights(split.sharded.model.graph) == []
    runner = SplitRunner(split)
    for case in family_cases(family):
        inputs = family_inputs(family, case)
        whole = run_reference(family_path(family), inputs)
        assert relative_difference(runner.run(inputs), whole) <= TOLERANCE


@pytest.mark.parametrize("family", ["lstm-tagger", "gru-tagger"])
def test_two_ranks_have_a_direction_each(family: str) -> None:
    split = split_model(family_path(family), Options(2))
    assert split.report["split_fraction"] > 0.99
    directions = [
        {n.attributes["direction"].as_string() for n in model.graph if n.op_type in ("LSTM", "GRU")}
        for model in split.ranks
    ]
    assert directions == [{"forward"}, {"reverse"}]


def test_a_direction_that_is_not_made_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, ("", "GRU"), OpSpec(OPS["", "GRU"].rule))
    weights = (floats(2, 18, 3), floats(2, 18, 6))
    attributes = {"hidden_size": 6, "direction": "bidirectional"}
    case = Case("GRU", (floats(5, 4, 3), *weights), attributes, outputs=2)
    assert "cannot be interpreted" in the_wrong(validate(case, 2))
