"""Plans that people steer: pins by pattern, Hugging Face's words, baselines, and explanations."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from graph.canonicalize import canonicalize
from graph.errors import PlanError
from tests.graph.small import small_model, weight
from tests.models import GENAI, LAYERS, model_inputs, model_path
from tests.tpcore.command import Done, tpcore_here
from tpcore.partition import Options, plan_model
from tpcore.plan import Plan
from tpcore.planner.plans import make_plan
from tpcore.shard import split_model
from tpcore.verify import verify_ranks

TORCH = "llama-opset18"
INT4 = "llama-genai"
TP_PLAN = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
    "lm_head": "colwise_gather_output",
    "layers.*.input_layernorm": "sequence_parallel",
}
"""As transformers writes one in the configuration of Llama."""

Here = Callable[..., Done]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process."""
    return lambda *argv: tpcore_here(capfd, *argv)


def plan_of(model: str, **more: Any) -> Plan:
    return plan_model(model_path(model), Options(2, **more))


@cache
def free_plan(model: str) -> Plan:
    """What the planner chooses by itself."""
    return plan_of(model)


def held(plan: Plan, name: str) -> str:
    return str(plan.to_json()["values"][name])


def refusal(made: Callable[[], object]) -> str:
    with pytest.raises(PlanError) as found:
        made()
    return str(found.value)


def weight_of(plan: Plan, module: str) -> str:
    """Name of the weight that a module of the torch model multiplies by."""
    for node in plan.model.graph:
        if node.op_type == "MatMul" and f"{module}'" in str(node.metadata_props):
            return next(v.name or "" for v in node.inputs if v is not None and v.const_value)
    raise KeyError(module)


# --- words ----------------------------------------------------------------------------------------


def test_words_mean_output_and_input_features() -> None:
    """The weights of torch's MatMul are [in, out]; their names say nothing, their modules do."""
    plan = plan_of(TORCH, pins={"layers.0.mlp.up_proj": "rowwise", "*down_proj": "colwise"})
    up = weight_of(plan, "layers.0.mlp.up_proj")
    assert held(plan, up).startswith("S(0)")
    assert held(plan, weight_of(plan, "layers.1.mlp.down_proj")).startswith("S(1)")
    assert held(free_plan(TORCH), weight_of(free_plan(TORCH), "layers.0.mlp.up_proj")).startswith(
        "S(1)"
    )


def test_words_for_a_table() -> None:
    """Of an embedding the vocabulary is what a lookup sums over."""
    by_rows = plan_of(TORCH, pins={"embed_tokens": "embedding_rowwise"})
    by_features = plan_of(TORCH, pins={"embed_tokens": "colwise"})
    name = "model.model.embed_tokens.weight"
    assert held(by_rows, name).startswith("S(0)") and held(by_features, name).startswith("S(1)")
    assert held(plan_of(TORCH, pins={"embed_tokens": "replicate"}), name) == "R"


def test_placements_and_activations_can_be_pinned() -> None:
    name = weight_of(free_plan(TORCH), "layers.0.mlp.up_proj")
    assert held(plan_of(TORCH, pins={name: "S(0)"}), name).startswith("S(0)")
    logits = next(iter(free_plan(TORCH).model.graph.outputs)).name or ""
    assert held(plan_of(TORCH, pins={logits: "R"}), logits) == "R"


def test_of_several_patterns_the_last_one_counts() -> None:
    pins = {"*.up_proj": "rowwise", "layers.1.mlp.up_proj": "colwise"}
    plan = plan_of(TORCH, pins=pins)
    assert held(plan, weight_of(plan, "layers.0.mlp.up_proj")).startswith("S(0)")
    assert held(plan, weight_of(plan, "layers.1.mlp.up_proj")).startswith("S(1)")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_tp_plan_of_hugging_face_is_a_plan(wrapped: bool, tmp_path: Path) -> None:
    """It is what the planner finds by itself."""
    path = tmp_path / "tp_plan.json"
    path.write_text(json.dumps({"pins": TP_PLAN} if wrapped else TP_PLAN))
    plan, free = plan_of(TORCH, plan=str(path)), free_plan(TORCH)
    assert plan.to_json()["values"] == free.to_json()["values"]
    assert len(plan.pinned) == 7 * LAYERS + 1


@pytest.mark.parametrize("model", [TORCH, GENAI])
@pytest.mark.parametrize("preset", ["megatron", "colwise", "rowwise", "replicate"])
def test_baselines_compute_the_same(model: str, preset: str) -> None:
    split = split_model(model_path(model), Options(2, plan=preset))
    found = verify_ranks(split.ranks, split.shardings, model_path(model), model_inputs(model))
    assert found.equal
    counts = split.report["collectives"]
    if preset == "megatron":
        assert counts["AllReduce"] >= 2 * LAYERS and counts.get("ReduceScatter", 0) == 0
    elif preset == "colwise":
        assert counts.get("AllReduce", 0) == 0 and counts["AllGather"] > 2 * LAYERS
    elif preset == "rowwise":
        assert counts.get("AllGather", 0) == 0
    else:
        assert counts == {}


@pytest.mark.parametrize("preset", ["colwise", "rowwise"])
def test_a_baseline_yields_where_weights_get_in_each_other_s_way(preset: str) -> None:
    """One weight read as it is and transposed cannot be split by columns for both readers."""
    text = """(float[3, 12] x) => (float[3, 12] y) {
        a = MatMul(x, w)
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul(a, t)
    }"""
    model, shapes = canonicalize(small_model(text, w=weight(12, 12)))
    plan = make_plan(model, shapes, 2, preset=preset)
    assert str(plan.to_json()["values"]["w"]).startswith("S(")


def test_no_baseline_is_cheaper_than_the_plan() -> None:
    """Memory priced in: a baseline may hold more."""
    best = free_plan(TORCH)
    for preset in ("megatron", "colwise", "rowwise"):
        plan = plan_of(TORCH, plan=preset)
        if plan.memory.total <= best.memory.total:
            assert plan.choices.seconds >= best.choices.seconds * (1 - 1e-9)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pins", "parts"),
    [
        ({"*q_prj": "colwise"}, ["'*q_prj' matches no", "nearest name is", "q_proj"]),
        ({"*q_proj": "colwide"}, ["'colwide'", "neither a word nor a placement", "rowwise"]),
        ({"*input_layernorm": "colwise"}, ["nothing it matches can be held so"]),
        ({"model.model.embed_tokens.weight": "S(7)"}, ["none of its placements", "S(0)"]),
    ],
)
def test_a_pin_that_cannot_be(pins: dict[str, str], parts: list[str], here: Here) -> None:
    message = refusal(lambda: plan_of(TORCH, pins=pins))
    assert all(part in message for part in parts), message
    options = [word for item in pins.items() for word in ("--pin", "=".join(item))]
    done = here("plan", model_path(TORCH), "--tp", 2, *options)
    assert (done.status, done.error) == (2, message)


def test_a_pin_without_a_word(here: Here) -> None:
    done = here("plan", model_path(TORCH), "--tp", 2, "--pin", "colwise")
    assert done.status == 2 and "write --pin '*.q_proj*=colwise'" in done.error


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}', '{"pins": ["a"]}', '"x"'])
def test_a_file_that_is_neither_plan_nor_pins(text: str, here: Here, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    done = here("plan", model_path(TORCH), "--tp", 2, "--plan", path)
    assert done.status == 2 and "is not a plan file" in done.error


# --- explanations ---------------------------------------------------------------------------------


def test_explain_tells_what_each_placement_costs(here: Here) -> None:
    name = "model.model.embed_tokens.weight"
    done = here("plan", model_path(TORCH), "--tp", 2, "--explain", name, "--json")
    found = json.loads(done.out)["placements"]
    assert found[0]["chosen"] and not any(one["chosen"] for one in found[1:])
    texts = [one["placement"] for one in found]
    assert {"R", "S(0) 0:256 256:512", "S(1) 0:64 64:128"} <= set(texts)
    assert texts[0] == held(free_plan(TORCH), name)
    for one in found:
        plan = plan_of(TORCH, pins={name: one["placement"]})
        assert plan.choices.seconds == pytest.approx(one["seconds"])
        assert plan.memory.total == pytest.approx(one["bytes_per_rank"], abs=1)


def test_explain_in_words(here: Here) -> None:
    done = here("plan", model_path(GENAI), "--tp", 2, "--explain", "logits")
    assert done.status == 0 and done.out.startswith("'logits' is held as R.")
    assert "priced at" in done.out


def test_explain_of_an_unknown_name(here: Here) -> None:
    done = here("plan", model_path(GENAI), "--tp", 2, "--explain", "logit")
    assert done.status == 2 and "nearest name is 'logits'" in done.error
    done = here("plan", model_path(GENAI), "--tp", "2,4", "--explain", "logits")
    assert done.status == 2 and "--explain is for one plan" in done.error


# --- the table ------------------------------------------------------------------------------------


def test_the_table_compares_numbers_of_ranks(here: Here, tmp_path: Path) -> None:
    html = tmp_path / "plan.html"
    done = here("plan", model_path(GENAI), "--tp", "1,2,4", "--html", html, "--json")
    rows = json.loads(done.out)["rows"]
    assert [row["ranks"] for row in rows] == [1, 2, 4]
    assert rows[0]["collectives"] == {} and rows[0]["speed_up"] == 1
    assert rows[0]["memory"]["weights"] > 1.9 * rows[1]["memory"]["weights"]
    for row in rows:
        assert row["seconds"] == pytest.approx(row["compute_seconds"] + row["exchange_seconds"])
        assert row["verdict"]
    page = html.read_text()
    assert page.count("<svg") == 2 and "tp=4" in page and "http" not in page


def test_the_table_says_what_does_not_fit(here: Here) -> None:
    done = here("plan", model_path(GENAI), "--tp", "1,4", "--memory", "1MiB")
    assert done.status == 0
    assert "  1  no plan over tp=1 fits into 1.0 MiB" in done.out
    assert "tp=4 is the fastest of those possible within 1.0 MiB per rank" in done.out


def test_the_table_of_a_joint_plan_has_both_programs(here: Here) -> None:
    workload = "prefill=64,decode=16"
    done = here("plan", model_path(GENAI), "--tp", "1,2", "--workload", workload)
    assert done.out.count("prefill") == 2 and done.out.count("decode") == 2
