"""Are the tokens those of others? `python -m bench.tokens [--tp 1 2 4] [--backend cpu]`.

Per model, backend and number of ranks, each a process: how many of 64 greedy tokens are those of
unsplit onnxruntime and of onnxruntime-genai (where it can run the model), whether rows of unequal
length in one batch come out as alone, and whether tokens drawn with one seed are the same as those
of one rank on cpu. Exit status 1 if any are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.cached_decoders import DECODERS, decoder_path
from tests.models import GENAI, model_path
from tests.tpcore.generation import NEW, PROMPTS, greedy, rows

DRAW = ("--temperature", "0.9", "--top-k", "100", "--top-p", "0.95", "--seed", "7")
CACHED = "-cached"
HEADS = ("model", "backend", "tp", "onnxruntime", "genai", "batch", "drawn")


@dataclass(frozen=True)
class Row:
    """What is compared of one model on so many ranks."""

    onnxruntime: int
    """Greedy tokens up to the first that differs, of NEW."""
    genai: int | None
    batch: bool
    """Whether rows of unequal length come out as alone."""
    drawn: bool

    @property
    def is_right(self) -> bool:
        """Whether all are equal."""
        return self.batch and self.drawn and {self.onnxruntime, self.genai} <= {NEW, None}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--backend", nargs="+", default=["cpu", "torch"])
    names = [GENAI, *(f"{name}{CACHED}" for name in DECODERS)]
    parser.add_argument("--model", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    print(f"{HEADS[0]:15}", *(f"{head:>11}" for head in HEADS[1:]))
    right = True
    for name in args.model:
        cached = name.removesuffix(CACHED)
        path = model_path(name) if cached == name else decoder_path(cached)
        drawn = generated(path, "cpu", 1, *DRAW)
        for backend in args.backend:
            for tp in args.tp:
                row = compare(path, backend, tp, drawn, name == GENAI)
                right &= row.is_right
                shown = (backend, tp, of_all(row.onnxruntime), of_all(row.genai))
                flags = (said(row.batch), said(row.drawn))
                print(f"{name:15}", *(f"{cell:>11}" for cell in (*shown, *flags)), flush=True)
    return 0 if right else 1


def of_all(count: int | None) -> str:
    """`64 of 64`."""
    return "-" if count is None else f"{count} of {NEW}"


def said(equal: bool) -> str:
    """In a word."""
    return "same" if equal else "DIFFERS"


def compare(path: Path, backend: str, tp: int, drawn: list[list[int]], by_genai: bool) -> Row:
    """Generate on so many ranks, and compare."""
    alone = [greedy(path, tuple(prompt)) for prompt in PROMPTS]
    [made] = generated(path, backend, tp, prompts=PROMPTS[:1])
    genai = by_genai and find_spec("onnxruntime_genai") is not None
    return Row(
        alike(made, alone[0]),
        alike(made, by_onnxruntime_genai(path, PROMPTS[0])) if genai else None,
        generated(path, backend, tp) == alone,
        generated(path, backend, tp, *DRAW) == drawn,
    )


def alike(made: Sequence[int], wanted: Sequence[int]) -> int:
    """Tokens up to the first that differs."""
    pairs = list(zip(made, wanted))
    return next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs))


def generated(
    path: Path, backend: str, tp: int, *more: str, prompts: Sequence[Sequence[int]] = PROMPTS
) -> list[list[int]]:
    """What `tpcore generate` prints."""
    words = [word for prompt in prompts for word in ("--prompt-ids", rows(prompt))]
    words += ["--tp", str(tp), "--backend", backend, "--max-new-tokens", str(NEW), "--json", *more]
    line = [sys.executable, "-m", "tpcore", "generate", str(path), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with status {done.returncode}: {done.stderr}")
    tokens: list[list[int]] = json.loads(done.stdout)["tokens"]
    return tokens


def by_onnxruntime_genai(path: Path, prompt: Sequence[int]) -> list[int]:
    """The likeliest tokens, by onnxruntime-genai."""
    import onnxruntime_genai as genai

    model = genai.Model(str(path.parent))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + NEW, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


if __name__ == "__main__":
    sys.exit(main())
