"""The functions of the package itself, as a script or a notebook uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tpcore
from graph.errors import BundleError, PlanError
from tests.models import GENAI, model_inputs, model_path
from tests.tpcore.command import save
from tests.tpcore.small_models import INPUTS, mlp


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(mlp(), tmp_path / "mlp.onnx")


def refusal(made: Callable[[], object], kind: type[Exception] = PlanError) -> str:
    with pytest.raises(kind) as found:
        made()
    return str(found.value)


def test_names_stay_functions_whatever_is_imported() -> None:
    import tpcore.shard
    import tpcore.verify

    assert callable(tpcore.shard) and callable(tpcore.shard)
    assert callable(tpcore.verify) and callable(tpcore.plan)
    with pytest.raises(AttributeError, match="no attribute 'sherd'"):
        _ = tpcore.sherd


def test_plan_shard_and_verify(model: Path, tmp_path: Path) -> None:
    plan = tpcore.plan(str(model), tp=2, memory="16MiB")
    assert plan.report["collectives"] == {"AllReduce": 1}
    assert plan.placements["w1"] == "S(1) 0:8 8:16"
    bundle = tpcore.shard(str(model), str(tmp_path / "b"), plan=plan)
    assert bundle.world_size == 2 and bundle.plan() == plan.to_json()
    assert tpcore.verify(bundle, str(model)).equal
    assert tpcore.verify(str(tmp_path / "b"), model, INPUTS["mlp"]).equal


def test_a_saved_plan_is_followed(model: Path, tmp_path: Path) -> None:
    pinned = tpcore.plan(model, tp=2, pins={"w1": "S(0)"})
    pinned.save(tmp_path / "plan.json")
    again = tpcore.plan(model, tp=2, plan=tmp_path / "plan.json")
    assert again.placements == pinned.placements and again.placements["w1"].startswith("S(0)")


def test_shard_by_keywords_and_by_options(model: Path, tmp_path: Path) -> None:
    first = tpcore.shard(model, tmp_path / "a", tp=2)
    second = tpcore.shard(model, tmp_path / "b", tpcore.Options(tp=2))
    assert first.id == second.id
    tpcore.shard(model, tmp_path / "a", tp=4, force=True)
    assert tpcore.open_bundle(tmp_path / "a").world_size == 4


def test_a_joint_plan(tmp_path: Path) -> None:
    path = model_path(GENAI)
    plan = tpcore.plan(path, tp=2, workload={"prefill": 32, "decode": 8})
    assert set(plan.report["programs"]) == {"prefill", "decode"}
    bundle = tpcore.shard(path, tmp_path / "b", plan=plan)
    assert tpcore.verify(bundle, path, model_inputs(GENAI, "decode")).equal


def test_mistakes(model: Path, tmp_path: Path) -> None:
    assert "fits into" in refusal(lambda: tpcore.plan(model, tp=2, memory=10))
    assert "'lots' is no amount" in refusal(lambda: tpcore.plan(model, tp=2, memory="lots"))
    assert "one of: a plan, Options, or keywords" in refusal(
        lambda: tpcore.shard(model, tmp_path / "b")
    )
    plan = tpcore.plan(model, tp=2)
    other = save(mlp(), tmp_path / "other.onnx")
    assert "the plan is for model" in refusal(
        lambda: tpcore.shard(other, tmp_path / "b", plan=plan)
    )
    tpcore.shard(model, tmp_path / "b", plan=plan)
    text = refusal(lambda: tpcore.shard(model, tmp_path / "b", plan=plan), BundleError)
    assert "exists already" in text
