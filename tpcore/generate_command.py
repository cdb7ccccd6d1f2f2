"""`tpcore generate`: tokens or text as they come, and a line on what they took."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends import job, registry
from backends.base import BackendOptions
from backends.placement import detect_environment
from backends.trace import Tracer
from graph.errors import PlanError
from graph.reader import read_model
from tpcore.decoder import LOGITS_DIMS, program_names
from tpcore.generate import Generated, Wanted, generate, memory_of
from tpcore.output import print_json
from tpcore.partition import Options
from tpcore.plan_command import open_asked, options_of
from tpcore.planner.options import find_states
from tpcore.ranks import AllRanks, Ranks, join_job
from tpcore.run import check_writable, needs_launch, refuse_trace, start_ranks, write_trace
from tpcore.sample import Sampling
from tpcore.target import Target
from tpcore.text_tokens import Stream, TextTokens
from tpcore.units import human_bytes, human_seconds


def generate_command(args: argparse.Namespace) -> int:
    """`tpcore generate`."""
    backend = registry.get(args.backend, BackendOptions(args.dtype, args.compile, args.collectives))
    placement = detect_environment()
    first = placement.rank == 0
    text = TextTokens(args.target, args.tokenizer) if args.prompt else None
    wanted = _wanted(args, text)

    def opened() -> Target:
        if first and args.trace is not None:
            check_writable(args.trace)
        return open_asked(args, _options(args))

    tracer = Tracer() if args.trace is not None else None
    if backend.communicator is not None and placement.size > 1:
        ranks: Ranks = join_job(opened, backend, program_names, args.timeout, tracer)
    elif first:
        target = opened()
        if needs_launch(backend, target):
            return start_ranks(args.argv, backend, target.world_size, args.timeout)
        if tracer is not None:
            refuse_trace(target, backend)
        ranks = AllRanks(target, backend, program_names(target))
    else:
        return 0
    shown = _Shown(args, text)
    made = generate(ranks, wanted, shown if first else lambda tokens: None)
    if tracer is not None:
        _trace(args.trace, tracer, made)
    if first:
        shown.rows(made)
    memory = memory_of(ranks)
    if first:
        shown.figures(made, sum(map(len, wanted.prompts)), memory)
    return 0


def _trace(path: Path, tracer: Tracer, made: Generated) -> None:
    """Write when every rank of this process's job was in which step of which run."""
    for number, run in enumerate(made.runs):
        tracer.note_run(f"decode {number}" if number else "prefill", *run)
    write_trace(path, tracer, job.join())


def _options(args: argparse.Namespace) -> Options | None:
    """How to split a model file; the logits may stay split, as tokens are chosen from parts."""
    if args.tp is None:
        return None
    options = options_of(args, args.tp)
    if args.keep_split or not args.target.is_file():
        return options
    graph = read_model(args.target).graph
    caches = find_states(graph).values()
    logits = [v.name or "" for v in graph.outputs if v not in caches and _has_vocabulary(v)]
    return replace(options, split_outputs=logits)


def _has_vocabulary(value: Any) -> bool:
    return value.shape is not None and len(value.shape) == LOGITS_DIMS


def _sampling(args: argparse.Namespace) -> Sampling:
    limits = {"top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    given = {name: value for name, value in limits.items() if value is not None}
    if args.temperature == 0 and given:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise PlanError(
            f"--temperature 0 takes the likeliest token, so {names} would have no effect. "
            "Give a temperature above 0, or leave it out."
        )
    default = 1.0 if given else 0.0
    return Sampling(default if args.temperature is None else args.temperature, **given)


def _wanted(args: argparse.Namespace, text: TextTokens | None) -> Wanted:
    if not args.prompt_ids and not args.prompt:
        raise PlanError("there is nothing to continue. Give --prompt-ids 1,2,3 or --prompt TEXT.")
    prompts = [*args.prompt_ids, *(text.encode(prompt) for prompt in args.prompt if text)]
    stops = frozenset() if text is None else text.stops
    if args.stop_ids is not None:
        stops = frozenset(args.stop_ids)
    return Wanted(prompts, args.max_new_tokens, _sampling(args), stops)


class _Shown:
    """Shows tokens as they come where there is one row, and all rows in the end."""

    def __init__(self, args: argparse.Namespace, text: TextTokens | None) -> None:
        self._json: bool = args.json
        self._text = text
        self._streams = not args.json and len(args.prompt_ids) + len(args.prompt) == 1
        self._row = Stream(text) if text is not None else None
        self._begun = False

    def __call__(self, tokens: Sequence[int | None]) -> None:
        """Show the new tokens of one step."""
        if not self._streams or tokens[0] is None:
            return
        if self._row is not None:
            piece = self._row.more(tokens[0])
        else:
            piece = f",{tokens[0]}" if self._begun else str(tokens[0])
        self._begun = True
        print(piece, end="", flush=True)

    def rows(self, made: Generated) -> None:
        """Show what is not shown yet."""
        if self._streams:
            print(self._row.rest() if self._row is not None else "", flush=True)
        elif not self._json:
            texts = self._texts(made) or [",".join(map(str, row)) for row in made.tokens]
            print(*texts, sep="\n", flush=True)

    def figures(self, made: Generated, prompt_tokens: int, memory: Sequence[int]) -> None:
        """Show what it took: on stderr, or with all else as JSON."""
        rate = prompt_tokens / made.prefill_seconds
        if not self._json:
            print(_timing(made, rate, memory), file=sys.stderr)
            return
        texts = self._texts(made)
        print_json(
            {
                "tokens": made.tokens,
                **({"texts": texts} if texts is not None else {}),
                "prefill_seconds": made.prefill_seconds,
                "prefill_tokens_per_second": rate,
                "decode_seconds_per_token": made.seconds_per_token,
                "decode_seconds": sum(made.step_seconds),
                "exchange_fraction": made.exchange_fraction,
                "pss_bytes_per_rank": list(memory),
            }
        )

    def _texts(self, made: Generated) -> list[str] | None:
        return [self._text.decode(row) for row in made.tokens] if self._text else None


def _timing(made: Generated, rate: float, memory: Sequence[int]) -> str:
    sizes = ", ".join(human_bytes(size) for size in memory)
    steps = f"{len(made.step_seconds)} in {human_seconds(sum(made.step_seconds))}"
    return (
        f"prefill {rate:.0f} tokens/s, decode {human_seconds(made.seconds_per_token)} per token "
        f"({steps}), {made.exchange_fraction:.0%} in exchanges, memory per rank {sizes}"
    )
