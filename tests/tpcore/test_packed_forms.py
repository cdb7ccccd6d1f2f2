"""One decoder in every form that frameworks write it in: equal, and split with equal exchange."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from tests.packed_forms import FORMS, KV_HEADS, SEPARATE, inputs, make
from tpcore.partition import Options
from tpcore.shard import split_model
from tpcore.verify import reference, verify_ranks


@cache
def collectives(form: str, kind: str, ranks: int) -> int:
    """How many collectives a form's split has, after it was found to compute the same."""
    with TemporaryDirectory() as folder:
        path = make(form, KV_HEADS[kind], Path(folder, "model.onnx"))
        split = split_model(path, Options(ranks))
        result = verify_ranks(split.ranks, split.shardings, path, inputs())
    assert result.equal, result.to_json()
    return sum(split.report["collectives"].values())


@pytest.mark.parametrize(("kind", "ranks"), [("mha", 2), ("gqa", 3)])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_as_many_collectives_as_the_separate_one(
    form: str, kind: str, ranks: int
) -> None:
    assert collectives(form, kind, ranks) == collectives(SEPARATE, kind, ranks)


def test_all_forms_compute_the_same() -> None:
    """So that equal counts are counts of one model."""
    with TemporaryDirectory() as folder:
        for kind, kv_heads in KV_HEADS.items():
            found = [
                reference(make(form, kv_heads, Path(folder, f"{kind}{i}.onnx")), inputs())["logits"]
                for i, form in enumerate(FORMS)
            ]
            assert all(np.allclose(logits, found[0], atol=1e-5) for logits in found)
