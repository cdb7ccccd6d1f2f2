"""onnxruntime-genai's model builder, as its users call it, and the tokenizer that it wants."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_SECONDS = 1200


def build_genai(
    checkpoint: Path, target: Path, precision: str = "fp32", options: Sequence[str] = ()
) -> None:
    """Write model.onnx and genai_config.json into `target`, new or empty, when both are complete.

    `checkpoint` is what transformers saves; `options` are the builder's extra ones, as `key=value`.
    Raises RuntimeError with the builder's output.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch, "made")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
        command += ["-i", str(checkpoint), "-o", str(made), "-c", scratch, "-p", precision]
        command += ["--extra_options", *options] if options else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise RuntimeError(f"the builder failed with {last}\n{done.stdout}\n{done.stderr}")
        made.rename(target)


def save_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of `size` numbered words, as the builder copies it."""
    import tokenizers

    special = ["<unk>", "<s>", "</s>"]
    words = special + [f"w{index}" for index in range(len(special), size)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
