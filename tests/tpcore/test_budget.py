"""Plans within a budget of memory, and plans that serve a prefill and its decode steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from graph.canonicalize import canonicalize
from graph.errors import PlanError
from graph.reader import read_model
from graph.weights import ShardTensor
from tests.graph.small import Array, Arrays, small_model
from tests.models import GENAI, model_inputs, model_path, run_reference
from tests.tpcore.command import Done, load_arrays, save_arrays, tpcore, tpcore_here
from tests.tpcore.toys import planned
from tpcore.bundle import open_bundle
from tpcore.partition import Options, plan_models
from tpcore.plan import Plan
from tpcore.planner.memory import MemoryUse, fit
from tpcore.planner.plans import Request, problem_of
from tpcore.shard import shard, split_models
from tpcore.target import open_target
from tpcore.verify import verify
from tpcore.workload import Work

TOKENS = {"prefill": 64, "decode": 16}
SIZES = {"past_sequence_length": 100}
TOLERANCE = 1e-4


def refusal(made: Callable[[], object]) -> str:
    with pytest.raises(PlanError) as found:
        made()
    return str(found.value)


def plan_of(ranks: int, **more: object) -> Plan:
    return plan_models(model_path(GENAI), Options(ranks, **more))[0]  # type: ignore[arg-type]


def held_whole() -> int:
    weights = plan_of(1).model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in weights if value.const_value is not None)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_counts_weights_caches_and_activations() -> None:
    """Four caches of f32[1, 4, past, 16], and at least the logits f32[1, sequence, 512]."""
    small, large = (plan_of(1, sizes={"past_sequence_length": n}).memory for n in (10, 20))
    assert small.weights == pytest.approx(held_whole(), rel=0.01)
    assert small.states == 4 * 4 * 10 * 16 * 4 and large.states == 2 * small.states
    assert plan_of(1, sizes={"sequence_length": 5}).memory.activations >= 5 * 512 * 4


def test_more_ranks_hold_less_each() -> None:
    totals = [plan_of(ranks, sizes=SIZES).memory.total for ranks in (1, 2, 4)]
    assert totals[0] > 1.8 * totals[1] > 3 * totals[2]


def test_less_memory_costs_time() -> None:
    """Memory has no price here: only the budgets force more and more to be split."""
    model, shapes = canonicalize(read_model(model_path(GENAI)))
    problem = problem_of(model, shapes, [Work(sizes=SIZES)], Request(2))
    free, least = fit(problem, 0.0, None), fit(problem, 1.0, None)
    assert least.memory.total < 0.9 * free.memory.total
    gap = free.memory.total - least.memory.total
    budgets = [int(least.memory.total + share * gap) for share in (0.9, 0.5, 0.1)]
    found = [fit(problem, 0.0, budget) for budget in budgets]
    assert all(f.memory.total <= budget for f, budget in zip(found, budgets, strict=True))
    seconds = [f.choices[0].seconds for f in (free, *found, least)]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_a_budget_that_suffices_changes_nothing() -> None:
    free = plan_of(2, sizes=SIZES)
    assert plan_of(2, sizes=SIZES, memory=int(free.memory.total)).to_json() == free.to_json()


def test_too_little_memory_says_how_much_and_how_many_ranks_would_do() -> None:
    budget = int(0.3 * plan_of(1, sizes=SIZES).memory.total)
    message = refusal(lambda: plan_of(2, sizes=SIZES, memory=budget))
    assert "too much" in message
    found = re.search(r"smallest number of ranks that fits is (\d+)", message)
    assert found is not None
    enough = int(found.group(1))
    assert plan_of(enough, sizes=SIZES, memory=budget).memory.total <= budget
    refusal(lambda: plan_of(enough - 1, sizes=SIZES, memory=budget))


def test_memory_that_no_number_of_ranks_makes_enough() -> None:
    message = refusal(lambda: plan_of(2, memory=1))
    assert "No larger number of ranks fits either" in message


def test_the_command_refuses_with_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    done = tpcore_here(capfd, "plan", model_path(GENAI), "--tp", 2, "--memory", "1MiB")
    assert done.status == 2 and "fits into 1.0 MiB per rank" in done.error
    assert tpcore_here(capfd, "plan", model_path(GENAI), "--tp", 2, "--memory", "1GiB").status == 0


def test_dequantised_weights_are_not_all_there_at_once() -> None:
    """A quantiser writes all DequantizeLinear nodes first; they are run beside their readers."""
    names = [f"w{i}" for i in range(6)]
    text = ["(float[1, 32] x) => (float[1, 32] v6) {"]
    text += [f"d{i} = DequantizeLinear(w{i}, s{i}, z{i})" for i in range(6)]
    text += [f"v{i + 1} = MatMul({f'v{i}' if i else 'x'}, d{i})" for i in range(6)]
    weights: dict[str, Array] = {name: np.ones((32, 32), np.int8) for name in names}
    weights |= {f"s{i}": np.array(0.1, np.float32) for i in range(6)}
    weights |= {f"z{i}": np.array(0, np.int8) for i in range(6)}
    plan = planned(small_model("\n".join([*text, "}"]), **weights), 1)
    assert 4 * 32 * 32 < plan.memory.activations < 2 * 4 * 32 * 32


def test_sum_of_memory() -> None:
    assert MemoryUse(1, 2, 3.4).to_json() == {
        "weights": 1, "states": 2, "activations": 3, "total": 6,
    }  # fmt: skip


# --- prefill and decode ---------------------------------------------------------------------------


@cache
def plans(ranks: int) -> list[Plan]:
    return plan_models(model_path(GENAI), Options(ranks, tokens=TOKENS))


def test_sizes_of_prefill_and_decode() -> None:
    prefill, decode = (plan.work for plan in plans(2))
    assert (prefill.name, prefill.runs) == ("prefill", 1)
    assert prefill.sizes == {
        "sequence_length": 64, "past_sequence_length": 0, "total_sequence_length": 64,
    }  # fmt: skip
    assert (decode.name, decode.runs) == ("decode", 16)
    assert decode.sizes == {
        "sequence_length": 1, "past_sequence_length": 72, "total_sequence_length": 73,
    }  # fmt: skip


def test_memory_is_that_of_the_last_step() -> None:
    """Four caches of f32[1, 4, 64 + 16 - 1, 16] on one rank, though time is for the middle one."""
    joint = plan_models(model_path(GENAI), Options(1, tokens=TOKENS))
    assert joint[0].memory.states == 4 * 4 * 79 * 16 * 4
    assert joint[1].work.sizes["past_sequence_length"] == 72


@pytest.mark.parametrize("ranks", [2, 4])
def test_both_programs_hold_weights_and_caches_alike(ranks: int) -> None:
    held = [
        {
            name: plan.to_json()["values"][name]
            for name in (*plan.model.graph.initializers, *(past.name for past in plan.states))
        }
        for plan in plans(ranks)
    ]
    assert held[0] == held[1] and any(text.startswith("S") for text in held[0].values())
    assert plans(ranks)[0].choices.seconds > plans(ranks)[1].choices.seconds


def test_a_model_without_a_cache_has_no_decode_step() -> None:
    path = model_path("llama-opset18-dynamic")
    message = refusal(lambda: plan_models(path, Options(2, tokens=TOKENS)))
    assert "KV cache" in message


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    return shard(model_path(GENAI), folder / "b", Options(2, tokens=TOKENS)).path


def test_a_bundle_holds_both_programs_over_one_weight_file(bundle: Path) -> None:
    files = sorted(path.name for path in (bundle / "rank-00001").iterdir())
    assert files == ["decode.onnx", "model.safetensors", "prefill.onnx"]
    splits = split_models(model_path(GENAI), Options(2, tokens=TOKENS))
    parts = [
        {
            tensor.key
            for value in split.ranks[1].graph.initializers.values()
            if isinstance(tensor := value.const_value, ShardTensor)
        }
        for split in splits
    ]
    stored = (bundle / "rank-00001" / "model.safetensors").stat().st_size
    alone = splits[0].report["weight_bytes_per_rank"][1]
    assert len(parts[0] & parts[1]) > 0.8 * len(parts[0])
    assert stored < 1.1 * alone + 16384


def test_verify_proves_both_programs(bundle: Path) -> None:
    found = verify(open_bundle(bundle), model_path(GENAI))
    assert found.equal
    assert {output.name.split(":")[0] for output in found.outputs} == {"prefill", "decode"}


@pytest.mark.parametrize("case", ["prefill", "decode"])
def test_the_program_that_suits_the_inputs_is_run_on_ranks(
    case: str, bundle: Path, tmp_path: Path
) -> None:
    inputs: Arrays = model_inputs(GENAI, case)
    out = tmp_path / "y.npz"
    given = save_arrays(tmp_path / "x.npz", inputs)
    done: Done = tpcore("run", bundle, "--inputs", given, "--outputs", out, ranks=2)
    assert done.status == 0, done.err
    for name, want in run_reference(model_path(GENAI), inputs).items():
        got = load_arrays(out)[name]
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def test_inputs_choose_the_nearest_program(bundle: Path) -> None:
    target = open_target(bundle, None)
    for case in ("prefill", "decode"):
        assert target.program_for(model_inputs(GENAI, case)).name == case


def test_words_of_the_workload(capfd: pytest.CaptureFixture[str]) -> None:
    for text in ("prefill=4", "prefill=4,decode=0", "decode=3,prefil=4", "prefill=x,decode=1"):
        done = tpcore_here(capfd, "plan", "m.onnx", "--tp", 2, "--workload", text)
        assert done.status == 2 and "write --workload prefill=2048,decode=256" in done.error
