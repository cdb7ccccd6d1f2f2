"""Generation: the tokens of unsplit onnxruntime, on any number of ranks, in every form of graph."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import from_onnx_text

from graph.errors import PlanError
from tests.cached_decoders import DECODERS, decoder_path
from tests.models import GENAI, model_path
from tests.tpcore.command import (
    Done,
    check_sentence,
    command,
    environment,
    on_cores,
    python_path,
    tpcore,
    tpcore_here,
)
from tests.tpcore.generation import NEW, PROMPTS, continued, greedy, made_of, ranks_of, rows
from tests.tpcore.test_faults import Started
from tpcore.caches import Caches
from tpcore.decoder import APPENDED, BY_PLACE, WHOLE, find_decoder
from tpcore.distribute import read_held
from tpcore.partition import Options
from tpcore.planner.options import find_states
from tpcore.sample import Sampling
from tpcore.shard import shard

FORMS = {GENAI: BY_PLACE, **dict.fromkeys(DECODERS, APPENDED), "llama-opset18-dynamic": WHOLE}
"""Model -> form of its cache; the last two Llamas and the one of genai have the same weights."""
TP = pytest.mark.parametrize("tp", [1, 2, 4])
Here = Callable[..., Done]


def path_of(name: str) -> Path:
    return decoder_path(name) if name in DECODERS else model_path(name)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Run a command in this process."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    return lambda *argv: tpcore_here(capfd, *argv)


# --- the same tokens ------------------------------------------------------------------------------


@TP
@pytest.mark.parametrize("name", FORMS)
def test_greedy_tokens_are_those_of_the_unsplit_model(name: str, tp: int) -> None:
    """One row alone, then two of different lengths, which must not see each other's padding."""
    path, new = path_of(name), {BY_PLACE: NEW, APPENDED: 32, WHOLE: 12}[FORMS[name]]
    ranks = ranks_of(path, tp)
    decoder = find_decoder(ranks.target, ranks.models["main"])
    want = [greedy(path, tuple(prompt), new) for prompt in PROMPTS]
    assert decoder.form == FORMS[name]
    assert want[0] != want[1]
    assert continued(ranks, PROMPTS[0], new_tokens=new) == want[:1]
    assert continued(ranks, *PROMPTS, new_tokens=new) == want


@pytest.mark.parametrize("name", [GENAI, "llama"])
def test_gathered_logits_give_the_same_tokens(name: str) -> None:
    whole = ranks_of(path_of(name), 2, ())
    assert whole.target.programs[0].shardings.get("logits", "R") == "R"
    parted = ranks_of(path_of(name), 2)
    assert parted.target.programs[0].shardings["logits"] == "S(2) 0:256 256:512"
    assert continued(whole, *PROMPTS) == continued(parted, *PROMPTS)


def test_the_tokens_are_those_of_onnxruntime_genai() -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    path = model_path(GENAI)
    model = genai.Model(str(path.parent))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(PROMPTS[0]) + NEW, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([PROMPTS[0]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(token) for token in generator.get_sequence(0)][len(PROMPTS[0]) :]
    assert len(theirs) == NEW
    for tp in (1, 2, 4):
        assert continued(ranks_of(path, tp), PROMPTS[0]) == [theirs]


SAMPLINGS = {
    "warm": Sampling(0.7, seed=1),
    "top-k": Sampling(1.2, top_k=40, seed=2),
    "top-p": Sampling(1.0, top_p=0.9, seed=3),
    "both": Sampling(1.5, top_k=100, top_p=0.8, seed=4),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_one_seed_gives_the_same_tokens_everywhere(sampling: Sampling) -> None:
    path = model_path(GENAI)
    first = continued(ranks_of(path, 1), *PROMPTS, sampling=sampling)
    for tp, split in ((2, ("logits",)), (4, ("logits",)), (2, ())):
        assert continued(ranks_of(path, tp, split), *PROMPTS, sampling=sampling) == first
    other = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed=9)
    assert continued(ranks_of(path, 1), *PROMPTS, sampling=other) != first


@TP
def test_both_programs_of_a_joint_bundle_are_used(tp: int, tmp_path: Path) -> None:
    path = model_path(GENAI)
    options = Options(tp, tokens={"prefill": 64, "decode": 64}, split_outputs=["logits"])
    ranks = ranks_of(shard(path, tmp_path / "b", options).path, tp)
    assert list(ranks.models) == ["prefill", "decode"]
    assert continued(ranks, PROMPTS[0]) == [greedy(path, tuple(PROMPTS[0]))]
    assert all(program.seconds > 0 for program in ranks._programs.values())


def test_every_way_to_start_ranks_gives_the_same_tokens(here: Here, tmp_path: Path) -> None:
    path = model_path(GENAI)
    bundle = shard(path, tmp_path / "b", Options(2, split_outputs=["logits"])).path
    prompts = [word for prompt in PROMPTS for word in ("--prompt-ids", rows(prompt))]
    draw = ["--temperature", 0.9, "--top-p", 0.95, "--seed", 7, "--json"]
    with on_cores(2):
        found = {
            "simulate": here("generate", bundle, "--backend", "simulate", *prompts, *draw),
            "cpu": here("generate", bundle, *prompts, *draw),
            "mpirun": tpcore("generate", bundle, *prompts, *draw, ranks=2),
            "memory": here("generate", path, "--tp", 2, *prompts, *draw),
            "torch": here("generate", bundle, "--backend", "torch", *prompts, *draw),
            "torch alone": here("generate", path, "--tp", 1, "--backend", "torch", *prompts, *draw),
        }
    figures = {way: json.loads(done.out) for way, done in found.items()}
    assert all((done.status, done.err) == (0, "") for done in found.values())
    tokens = [figure["tokens"] for figure in figures.values()]
    assert all(other == tokens[0] for other in tokens) and len(tokens[0][0]) == NEW
    for way, ranks in (("simulate", 1), ("cpu", 2), ("memory", 2), ("torch", 2)):
        sizes = figures[way]["pss_bytes_per_rank"]
        assert len(sizes) == ranks and min(sizes) > 1 << 20
        assert 0 < figures[way]["exchange_fraction"] < 1
        assert min(figures[way][f] for f in ("prefill_seconds", "decode_seconds_per_token")) > 0


# --- caches ---------------------------------------------------------------------------------------


def test_a_fused_cache_is_written_in_place_and_stays_split() -> None:
    ranks = ranks_of(model_path(GENAI), 2)
    decoder = find_decoder(ranks.target, ranks.models["main"])
    caches = Caches(ranks, decoder, batch=1, room=20)
    assert caches.in_place
    for held in caches.held:
        for tensor in held.values():
            assert ranks._executor.to_array(tensor).shape == (1, 2, 20, 16)
    buffers = [dict(held) for held in caches.held]
    caches.keep([{}, {}])
    assert caches.held == buffers


WINDOW = 6


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """genai's Llama that sees the last positions only: with caches of all of them or of a window,
    and as it was, but with caches of a constant length."""
    folder = tmp_path_factory.mktemp("windowed")

    def written(name: str, length: int | str, **attributes: int) -> Path:
        model = ir.load(model_path(GENAI))
        for node in model.graph:
            if node.op_type == "GroupQueryAttention":
                node.attributes.update({k: ir.AttrInt64(k, v) for k, v in attributes.items()})
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.name and value.name.startswith(("past", "present")) and length:
                shape = value.shape or ir.Shape([])
                value.shape = ir.Shape([*shape[:2], length, *shape[3:]])
        path = folder / f"{name}.onnx"
        ir.save(model, path, external_data=f"{path.name}.data")
        return path

    slides = {"local_window_size": WINDOW, "sliding_window_cache": 1}
    return {
        "all": written("all", "", local_window_size=WINDOW),
        "open": written("open", "capacity", **slides),
        "constant": written("constant", WINDOW, **slides),
        "longer": written("longer", WINDOW + 3, **slides),
        "fixed": written("fixed", 64),
    }


@TP
def test_a_cache_may_be_a_window(tp: int, windowed: dict[str, Path]) -> None:
    """The same tokens whether a cache holds all that is seen or all that there was."""
    want = [greedy(windowed["all"], tuple(prompt)) for prompt in PROMPTS]
    assert want != [greedy(model_path(GENAI), tuple(prompt)) for prompt in PROMPTS]
    assert continued(ranks_of(windowed["all"], tp), *PROMPTS) == want
    for name in ("open", "constant", "longer"):
        ranks = ranks_of(windowed[name], tp)
        assert [continued(ranks, prompt)[0] for prompt in PROMPTS] == want
        assert continued(ranks, PROMPTS[1], PROMPTS[1]) == [want[1]] * 2
        decoder = find_decoder(ranks.target, ranks.models["main"])
        assert set(decoder.rooms.values()) == {WINDOW + 3 * (name == "longer")}
        with pytest.raises(
            PlanError, match=r"prompts have \[3, 6\] tokens and the model has no cac"
        ):
            continued(ranks, *PROMPTS)


@TP
def test_a_cache_may_have_a_constant_length(tp: int, windowed: dict[str, Path]) -> None:
    ranks = ranks_of(windowed["fixed"], tp)
    new = 64 - len(PROMPTS[0]) + 1
    want = [greedy(model_path(GENAI), tuple(prompt))[:new] for prompt in PROMPTS]
    assert continued(ranks, *PROMPTS, new_tokens=new) == want
    with pytest.raises(PlanError, match="6 and 60 more tokens are beyond its 64 positions"):
        continued(ranks, *PROMPTS, new_tokens=new + 1)


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_kept_by_concat_is_a_state_and_split(name: str) -> None:
    """Its part goes back into the rank as it came out: nothing of it is gathered."""
    ranks = ranks_of(decoder_path(name), 2)
    target = ranks.target
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert set(target.states.items()) == {
        (f"past_key_values.{part}", f"present.{part}") for part in parts
    }
    shardings = target.programs[0].shardings
    for past, present in target.states.items():
        assert shardings[past] == shardings[present] and read_held(shardings[past]).dims


@pytest.mark.parametrize(
    ("past", "present", "found"),
    [
        ("float[b, 2, p, 4] past", "float[b, 2, t, 4] y", True),
        ("float[b, 2, 5, 4] past", "float[b, 2, t, 4] y", False),
        ("float[p, 4] past", "float[t, 4] y", False),
        ("float[b, 2, 5, 4] past", "float[b, 2, 6, 4] present", False),
    ],
    ids=["open length", "constant length", "a list of rows", "constant lengths that differ"],
)
def test_what_a_concat_makes_longer_is_a_state_if_it_can_come_back(
    past: str, present: str, found: bool
) -> None:
    more = "float[b, 2, 1, 4] x" if "2" in past else "float[s, 4] x"
    axis = 2 if "2" in past else 0
    name = present.split()[-1]
    model = from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 18]>
        graph ({past}, {more}) => ({present}) {{ {name} = Concat <axis={axis}> (past, x) }}"""
    )
    states = {a.name: b.name for a, b in find_states(model.graph).items()}
    assert states == ({"past": name} if found else {})


def test_caches_that_no_op_joins_are_found_by_name_and_shape() -> None:
    model = from_onnx_text(
        """<ir_version: 10, opset_import: ["": 18]>
        graph (float[b, h, 4] past_0_conv, float[b, 3] past_ids, float[b] x)
          => (float[b, h, 4] present_0_conv, float[b, 2] present_ids) {
            present_0_conv = Relu (past_0_conv)
            present_ids = Relu (past_ids)
        }"""
    )
    states = {a.name: b.name for a, b in find_states(model.graph).items()}
    assert states == {"past_0_conv": "present_0_conv"}


# --- text, stops, output --------------------------------------------------------------------------


def test_tokens_come_as_text_or_numbers(here: Here, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = model_path(GENAI)
    want = greedy(path, (5, 17, 99))[:6]
    count = ["--max-new-tokens", 6, "--backend", "simulate"]
    done = here("generate", path, "--tp", 2, "--prompt-ids", "5,17,99", *count)
    assert (done.status, done.out) == (0, rows(want) + "\n")
    assert done.err.startswith("prefill ") and done.err.count("\n") == 1
    done = here("generate", path, "--tp", 2, "--prompt", "w5 w17 w99", *count)
    assert (done.status, done.out) == (0, " ".join(f"w{token}" for token in want) + "\n")
    bundle = shard(path, tmp_path / "b", Options(2)).path
    shutil.copy(path.with_name("tokenizer.json"), tmp_path)
    two = ["--prompt", "w5 w17 w99", "--prompt", "w7"]
    done = here("generate", bundle, *two, *count, "--json")
    assert json.loads(done.out)["texts"][0] == " ".join(f"w{token}" for token in want)
    assert len(json.loads(done.out)["tokens"]) == 2


def test_a_row_ends_at_a_stop_token_and_others_go_on(here: Here) -> None:
    path = model_path(GENAI)
    ranks, whole = ranks_of(path, 2), [greedy(path, tuple(prompt)) for prompt in PROMPTS]
    stop = next(token for token in whole[0][5:] if token not in whole[1])
    cut = whole[0][: whole[0].index(stop)]
    assert continued(ranks, *PROMPTS, stops=frozenset([stop])) == [cut, whole[1]]
    made = made_of(ranks, PROMPTS[0], stops=frozenset([stop]))
    assert made.tokens == [cut] and len(made.step_seconds) == len(cut)
    done = here(
        "generate", path, "--tp", 2, "--backend", "simulate",
        "--prompt-ids", rows(PROMPTS[0]), "--stop-ids", stop,
    )  # fmt: skip
    assert done.out == rows(cut) + "\n"


# --- what cannot be -------------------------------------------------------------------------------

REFUSED = [
    ([], "there is nothing to continue. Give --prompt-ids 1,2,3 or --prompt TEXT."),
    (["--prompt-ids", "1,x"], "argument --prompt-ids: '1,x' is no list of token ids: write 1,2,3."),
    (
        ["--prompt-ids", "1,600", "--max-new-tokens", "400"],
        "the prompts cannot be continued: token 600 is none of the model's 512; "
        "2 and 400 more tokens are beyond its 128 positions. Give",
    ),
    (["--prompt-ids", "1", "--temperature", "0", "--top-k", "5"], "so --top-k would have no"),
    (["--prompt-ids", "1", "--top-p", "1.5"], "argument --top-p: '1.5' is no probability"),
    (["--prompt", "a", "--tokenizer", "none.json"], "tokenizer 'none.json' cannot be read:"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED)
@pytest.mark.parametrize("backend", ["simulate", "cpu"])
def test_refusals(argv: list[str], message: str, backend: str, here: Here) -> None:
    done = here("generate", model_path(GENAI), "--tp", 2, "--backend", backend, *argv)
    assert done.status == 2 and message in done.error
    check_sentence(done.error)


def test_text_needs_a_tokenizer(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_path("llama-opset18-dynamic")
    done = here("generate", model, "--tp", 2, "--prompt", "w5")
    assert done.status == 2 and "no tokenizer.json lies in '" in done.error
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    done = here("generate", model, "--tp", 2, "--prompt", "w5")
    assert done.status == 2 and "needs the package tokenizers, which is not inst" in done.error


def test_a_killed_rank_ends_the_generation(tmp_path: Path) -> None:
    line = ["generate", model_path(GENAI), "--tp", 2, "--prompt-ids", 1, "--max-new-tokens", 120]
    with on_cores(1):
        process = subprocess.Popen(
            command(*line), env=environment(TMPDIR=str(tmp_path)), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    run = Started(process, tmp_path, 2)
    run.signal_in_the_middle(1, signal.SIGKILL)
    status, _, err, _ = run.finish()
    assert status == 3 and re.search(r"error: rank 1 \(pid .*\) was killed by SIGKILL", err)


def test_what_is_no_decoder_is_refused(here: Here) -> None:
    done = here(
        "generate", model_path("vit-opset18"), "--tp", 2, "--backend", "simulate",
        "--prompt-ids", "1",
    )  # fmt: skip
    assert done.status == 2 and "it has no idea what to feed 'pixel_values'" in done.error
    assert "it has no input of token ids" in done.error
    check_sentence(done.error)


OTHERS = {
    "joins a graph without and one with a cache by an If on its input 'use_cache_branch', and": """
        (int64[b, s] input_ids, bool[1] use_cache_branch) => (float[b, s, 4] logits)
        <float[4, 4] w = {0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0}> {
            logits = If (use_cache_branch) <
                then_branch = one () => (float[b, s, 4] x) { x = Gather (w, input_ids) },
                else_branch = two () => (float[b, s, 4] y) { y = Gather (w, input_ids) }
            >
        }""",
    "half of an encoder-decoder model and reads 'encoder_hidden_states' of the other half, whe": """
        (int64[b, s] input_ids, float[b, t, 4] encoder_hidden_states) => (float[b, s, 4] logits)
        <float[4, 4] w = {0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0}, int64[1] axis = {1}> {
            x = Gather (w, input_ids)
            mean = ReduceMean <keepdims=1> (encoder_hidden_states, axis)
            logits = Add (x, mean)
        }""",
}


@pytest.mark.parametrize("text", OTHERS)
def test_decoders_of_other_kinds_are_refused_by_name(text: str, here: Here, tmp_path: Path) -> None:
    model = from_onnx_text(f"""<ir_version: 10, opset_import: ["": 18]> graph {OTHERS[text]}""")
    ir.save(model, tmp_path / "m.onnx")
    one = ["--tp", 2, "--backend", "simulate", "--prompt-ids", "1"]
    done = here("generate", tmp_path / "m.onnx", *one)
    assert done.status == 2 and text in done.error
    check_sentence(done.error)


def test_an_unknown_output_cannot_be_kept_split(here: Here, tmp_path: Path) -> None:
    done = here(
        "shard", model_path(GENAI), "--tp", 2, "-o", tmp_path / "b", "--keep-split", "logit"
    )
    assert done.status == 2 and "--keep-split names 'logit'" in done.error
    check_sentence(done.error)
