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
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.models import ROOT, Inputs, _locked, _without_mpi, run_reference

EXPORT_TIMEOUT_SECONDS = 1800
SOURCES = """families.py export_families.py family_models.py family_forms.py
models.py export_models.py""".split()
VOCABULARY = 512
LAYERS = 2
MELS, FRAMES = 16, 32
SIGNAL = (4, 64)
PAST = 8
"""Length of the cache that a decoding step reads."""
INT4_TOLERANCE = 1e-3
"""The unsplit model rounds its activations too."""
INT8_TOLERANCE = 2e-2
"""An activation that falls on the other side of a rounding border moves by one step of 1/127."""
HALF_TOLERANCE = 1e-2

DEFAULT_SIZES, OTHER_SIZES = (2, 12, 5), (3, 7, 4)
"""Batch, sequence and decoder sequence of the cases "default" and "other"."""


@dataclass(frozen=True)
class Family:
    """How a family is exported, and what its inputs are."""

    inputs: tuple[str, ...]
    exporter: str = "dynamo"
    """`dynamo`, `torchscript`, or the precision of onnxruntime-genai's builder."""
    dynamic: bool = True
    """Whether batch and sequence are left open."""
    cache: tuple[int, int] = (0, 0)
    """Number and size of the kv heads of a model with a cache."""
    past: int = 0
    """Length of the cache that a prefill starts from: a sliding window must be full."""
    conv_width: int = 0
    """Channels of the convolution whose state layer 0 keeps in place of keys and values."""
    pixels: int = 32
    """Height and width of an image."""
    split_target: bool = True
    """Whether it is a transformer, whose weights should be split but for a tenth."""
    base: str = ""
    """The architecture, where the family's name says more than that."""
    options: str = ""
    """Extra options of onnxruntime-genai's builder."""
    form: str = ""
    """What is done to the exported model: a name in tests/family_forms.py."""
    tolerance: float | None = None
    """Largest difference of a split model, as a share of the output's scale, if not the usual."""

    @property
    def is_genai(self) -> bool:
        """Whether onnxruntime-genai's builder makes it."""
        return self.exporter not in ("dynamo", "torchscript")


TEXT = ("input_ids", "attention_mask")
PLACED = (*TEXT, "position_ids")
SEQ2SEQ = (*TEXT, "decoder_input_ids")
SPEECH = ("input_features", "decoder_input_ids")
IMAGE = ("pixel_values",)


def _net(inputs: tuple[str, ...], exporter: str = "dynamo", pixels: int = 32) -> Family:
    return Family(inputs, exporter, pixels=pixels, split_target=False)


FIRST: dict[str, Family] = {
    "qwen2": Family(PLACED),
    "qwen3": Family(PLACED),
    "mixtral": Family(PLACED),
    "phi3": Family(PLACED),
    "gemma": Family(PLACED),
    "gpt-neox": Family(PLACED),
    "bloom": Family(TEXT),
    "falcon": Family(PLACED),
    "opt": Family(TEXT),
    "t5": Family(SEQ2SEQ, "torchscript"),
    "bart": Family(SEQ2SEQ),
    "whisper": Family(SPEECH),
    "resnet": _net(IMAGE),
    "lstm-tagger": _net(("input_ids",)),
    "distilbert": Family(TEXT),
    "roberta": Family(TEXT),
    "albert": Family(TEXT),
    "gemma2": Family(PLACED),
    "deit": Family(IMAGE),
    "swin": Family(IMAGE, "torchscript"),
    "convnext": _net(IMAGE),
    "mobilenet": _net(IMAGE),
    "gru-tagger": _net(("input_ids",)),
    "conv1d": _net(("x",)),
    "unet": _net(IMAGE),
    "mamba": Family(("input_ids",), dynamic=False, split_target=False),
    "clip": Family(("input_ids", "attention_mask", "pixel_values")),
    "deberta": Family(TEXT),
    "codegen": Family(PLACED),
    "gpt-bigcode": Family(TEXT),
    "wav2vec2": Family(("input_values",)),
    "segformer": Family(IMAGE),
}

STATIC = "qwen2 mixtral phi3 gemma gpt-neox bloom falcon t5 bart whisper".split()
"""Exported once more with fixed shapes: head counts are then literals."""

OTHERS: dict[str, Family] = {
    "bert-fused": Family(TEXT, "torchscript", base="bert", form="fused"),
    "bert-dynamo-fused": Family(TEXT, base="bert", form="fused"),
    "gpt2-fused": Family(PLACED, "torchscript", base="gpt2", form="fused"),
    "vit-fused": Family(IMAGE, "torchscript", base="deit", form="fused"),
    "gpt2-optimized": Family(PLACED, base="gpt2", form="optimized"),
    "whisper-optimized": Family(SPEECH, base="whisper", form="optimized"),
    "resnet-optimized": replace(FIRST["resnet"], base="resnet", form="optimized"),
    "bert-dynamic-int8": Family(TEXT, base="bert", form="dynamic", tolerance=INT8_TOLERANCE),
    "llama-dynamic-int8": Family(PLACED, base="llama", form="dynamic", tolerance=INT8_TOLERANCE),
    "bert-qdq": Family(TEXT, base="bert", form="qdq", tolerance=INT8_TOLERANCE),
    "resnet-qdq": replace(FIRST["resnet"], base="resnet", form="qdq", tolerance=INT8_TOLERANCE),
    "bert-qlinear": Family(TEXT, base="bert", form="qlinear", tolerance=INT8_TOLERANCE),
    "resnet-qlinear": replace(
        FIRST["resnet"], base="resnet", form="qlinear", tolerance=INT8_TOLERANCE
    ),
    "llama-half": Family(PLACED, base="llama", form="half", tolerance=HALF_TOLERANCE),
    "llama-torchscript": Family(PLACED, "torchscript", base="llama"),
    "gpt2-torchscript": Family(PLACED, "torchscript", base="gpt2"),
    "bert-torchscript": Family(TEXT, "torchscript", base="bert"),
}


def _genai(base: str, kv_heads: int, precision: str, options: str = "") -> Family:
    tolerance = None if precision == "fp32" else INT4_TOLERANCE
    return Family(
        TEXT, precision, cache=(kv_heads, 16), base=base, options=options, tolerance=tolerance
    )


GENAI: dict[str, Family] = {
    "llama-genai-fp32": _genai("llama", 4, "fp32"),
    "llama-genai-int4": _genai("llama", 4, "int4"),
    "llama-genai-int4-zp": _genai("llama", 4, "int4", "is_symmetric=false"),
    "llama-genai-int4-b16": _genai("llama", 4, "int4", "block_size=16"),
    "llama-genai-int4-b128": _genai("llama", 4, "int4", "block_size=128"),
    "llama-genai-int4-qdq": _genai("llama", 4, "int4", "use_qdq=true"),
    "llama-genai-int8": _genai("llama", 4, "int8"),
    "qwen2-genai-fp32": _genai("qwen2", 2, "fp32"),
    "qwen2-genai-int4": _genai("qwen2", 2, "int4"),
    "qwen2-genai-int4-zp": _genai("qwen2", 2, "int4", "is_symmetric=false"),
    "qwen3-genai-fp32": _genai("qwen3", 4, "fp32"),
    "qwen3-genai-int4": _genai("qwen3", 4, "int4"),
    "phi3-genai-int4": _genai("phi3", 4, "int4"),
    "gemma-genai-fp32": _genai("gemma", 1, "fp32"),
    "gpt-oss-genai-fp32": replace(_genai("gpt-oss", 4, "fp32"), past=PAST),
    "lfm2-moe-genai-fp32": replace(_genai("lfm2-moe", 4, "fp32"), conv_width=128),
    "lfm2-moe-genai-int4": replace(_genai("lfm2-moe", 4, "int4"), conv_width=128),
}

TABLE: dict[str, Family] = {
    **FIRST,
    **{f"{name}-static": replace(FIRST[name], dynamic=False, base=name) for name in STATIC},
    **OTHERS,
    **GENAI,
}
FAMILIES: list[str] = list(TABLE)


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
    made = {name: _input(name, about, random, *sizes) for name in about.inputs}
    return made


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
    """Inputs of a model with a KV cache: 8 tokens on an empty cache, or 1 token on 8."""
    past, sequence = (about.past, 8) if case == "prefill" else (PAST, 1)
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
    with _locked(folder / "lock"):
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
