"""Small models of many families, as their exporters write them: made on first use, then cached.

    for family in FAMILIES:
        for case in family_cases(family):
            run(family_path(family), family_inputs(family, case))

`python -m tests.families [NAME ...]` makes them, runs each in onnxruntime and prints a table.
The cache is `.cache/families`, or the folder `families` in the one named by TPCORE_TEST_CACHE.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.family_table import (
    FAMILIES,
    FRAMES,
    LAYERS,
    MELS,
    PAST,
    SIGNAL,
    TABLE,
    VOCABULARY,
    Family,
)
from tests.models import ROOT, Inputs, _locked, _without_mpi, run_reference

EXPORT_TIMEOUT_SECONDS = 1800
SOURCES = """families.py family_table.py family_models.py family_nets.py family_forms.py
export_families.py models.py export_models.py genai_builder.py""".split()
DEFAULT_SIZES, OTHER_SIZES = (2, 12, 5), (3, 7, 4)
"""Batch, sequence and decoder sequence of the cases "default" and "other"."""


def family_cases(family: str) -> list[str]:
    """Names of the input sets of a family, the default one first."""
    if TABLE[family].is_genai:
        return ["prefill", "decode"]
    return ["default", "other"] if TABLE[family].dynamic else ["default"]


def family_inputs(family: str, case: str | None = None) -> Inputs:
    """Realistic inputs, the same in every run.

    "default" has the shapes the model was exported with, "other" has other ones (dynamic models).
    """
    about = TABLE[family]
    case = case or family_cases(family)[0]
    random = np.random.default_rng(zlib.crc32(f"{family}/{case}".encode()))
    if about.is_genai:
        return _cached_inputs(about, random, case)
    sizes = OTHER_SIZES if case == "other" else DEFAULT_SIZES
    return {name: _input(name, about, random, *sizes) for name in about.inputs}


def _input(
    name: str, about: Family, random: np.random.Generator, batch: int, sequence: int, target: int
) -> np.ndarray:
    """One input; a mask hides the end of the last row, positions are unlike the default."""
    if name == "attention_mask":
        mask = np.ones((batch, sequence), np.int64)
        mask[-1, sequence - 3 :] = 0
        return mask
    if name == "position_ids":
        return np.arange(sequence)[None, :] + np.arange(batch)[:, None] * 5
    tokens = {"input_ids": sequence, "decoder_input_ids": target}
    if name in tokens:
        return random.integers(3, VOCABULARY, (batch, tokens[name]))
    shapes: dict[str, tuple[int, ...]] = {
        "pixel_values": (3, about.pixels, about.pixels),
        "input_features": (MELS, FRAMES),
        "input_values": (400,),
        "x": SIGNAL,
    }
    return random.standard_normal((batch, *shapes[name]), np.float32)


def _cached_inputs(about: Family, random: np.random.Generator, case: str) -> Inputs:
    """Inputs of a model with a KV cache: 8 tokens on an empty cache, or 1 token on a full one."""
    past, sequence = (about.past, 8) if case == "prefill" else (about.past or PAST, 1)
    heads, size = about.cache
    inputs: Inputs = {
        "input_ids": random.integers(0, VOCABULARY, (1, sequence)),
        "attention_mask": np.ones((1, past + sequence), np.int64),
    }
    if about.conv_width:
        inputs["past.0.conv"] = random.standard_normal((1, about.conv_width, 2), np.float32)
        inputs["past.0.conv"] *= past > 0
    for layer in range(1 if about.conv_width else 0, LAYERS):
        for part in ("key", "value"):
            cache = random.standard_normal((1, heads, past, size), np.float32)
            inputs[f"past_key_values.{layer}.{part}"] = cache
    return inputs


def family_path(family: str) -> Path:
    """Path of a family's ONNX file, exported at the first call.

    Raises:
        KeyError: no such family.
        RuntimeError: the export failed; its output is in the message.
    """
    if family not in TABLE:
        raise KeyError(f"no family '{family}'; choose one of {', '.join(FAMILIES)}")
    make_families([family])
    path = _folder() / family / "model.onnx"
    if not path.is_file():
        raise RuntimeError((_folder() / family / "failed.txt").read_text())
    return path


def make_families(families: Sequence[str]) -> None:
    """Export those that are not cached, in one process: torch takes seconds to import."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for family in sorted(families):  # in this order everywhere, so that nobody waits in a ring
            locks.enter_context(_locked(folder / f"{family}.lock"))
        missing = [family for family in families if not (folder / family).is_dir()]
        if missing:
            _run_exporter(folder, missing)


def _folder() -> Path:
    chosen = os.environ.get("TPCORE_TEST_CACHE")
    return (Path(chosen) if chosen else ROOT / ".cache") / "families" / _cache_key()


def _cache_key() -> str:
    """Digest of all that decides what the models are: the sources and the exporters' versions."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update((ROOT / "tests" / source).read_bytes())
    for package in ("torch", "transformers", "onnxscript", "onnx", "onnx-ir", "onnxruntime-genai"):
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()[:16]


def _run_exporter(folder: Path, families: Sequence[str]) -> None:
    command = [sys.executable, "-m", "tests.export_families", str(folder), *families]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=_without_mpi(os.environ) | offline,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=EXPORT_TIMEOUT_SECONDS,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}")


def _describe(family: str, case: str) -> str:
    path = family_path(family)
    outputs = run_reference(path, family_inputs(family, case))
    first = next(iter(outputs.values()))
    size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*")) / 1e6
    finite = all(np.isfinite(value).all() for value in outputs.values())
    spread = f"mean {first.mean():+.2f} std {first.std():.2f} finite {finite}"
    return f"{family:24} {case:8} {size:5.2f} MB  {first.shape!s:16} {spread}"


def main() -> int:
    """Print one line per family and case; the status is 1 if an export failed."""
    chosen = sys.argv[1:] or FAMILIES
    make_families(chosen)
    failed = 0
    for family in chosen:
        for case in family_cases(family):
            try:
                print(_describe(family, case), flush=True)
            except RuntimeError as error:
                print(f"{family:24} not exported: {str(error).splitlines()[0]}", flush=True)
                failed += 1
                break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
