"""What tests of generation share: unsplit onnxruntime to compare with, ranks in this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from backends import registry
from tpcore.decoder import program_names
from tpcore.generate import Generated, Wanted, generate
from tpcore.partition import Options
from tpcore.ranks import AllRanks
from tpcore.target import open_target

PROMPTS = ([5, 17, 99, 3, 200, 41], [7, 8, 9])
"""Of different lengths, so that a row must be padded."""
NEW = 64


def rows(prompt: Sequence[int]) -> str:
    """A prompt as --prompt-ids wants it."""
    return ",".join(map(str, prompt))


@cache
def greedy(path: Path, prompt: tuple[int, ...], new: int = NEW, head_size: int = 16) -> list[int]:
    """The likeliest tokens, by unsplit onnxruntime, for one row alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    inputs = {i.name: i.shape for i in session.get_inputs()}
    caches = {
        name: np.zeros((1, shape[1], 0, head_size), np.float32)
        for name, shape in inputs.items()
        if name.startswith("past")
    }
    tokens, made = np.array([prompt]), []
    seen = 0
    for _ in range(new):
        total = seen + tokens.shape[1]
        given = {"input_ids": tokens, "attention_mask": np.ones((1, total), np.int64)}
        given["position_ids"] = np.arange(seen, total)[None]
        given = {name: array for name, array in given.items() if name in inputs}
        results = dict(zip(outputs, session.run(outputs, given | caches)))
        made.append(int(results["logits"][0, -1].argmax()))
        fresh = np.array([[made[-1]]])
        if caches:
            caches = {n: results[n.replace("past_key_values", "present")] for n in caches}
            tokens, seen = fresh, total
        else:
            tokens = np.concatenate([tokens, fresh], 1)
    return made


@cache
def ranks_of(path: Path, ranks: int, split: tuple[str, ...] = ("logits",)) -> AllRanks:
    """All ranks of a model split in memory, or of a bundle."""
    options = None if path.is_dir() else Options(ranks, split_outputs=split)
    target = open_target(path, options)
    return AllRanks(target, registry.get("simulate"), program_names(target))


def continued(ranks: AllRanks, *prompts: Sequence[int], **how: object) -> list[list[int]]:
    """The new tokens of every row."""
    return made_of(ranks, *prompts, **how).tokens


def made_of(ranks: AllRanks, *prompts: Sequence[int], **how: object) -> Generated:
    """What generation returns."""
    return generate(ranks, Wanted(prompts, **{"new_tokens": NEW, **how}))  # type: ignore[arg-type]
