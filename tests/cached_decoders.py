"""Decoders with a KV cache as torch.onnx writes them: exported on first use, then cached.

    python -m tests.cached_decoders FOLDER     export them all

A `Concat` joins every step to the cache. `llama` is what the newer exporter writes, with rotary
positions; `gpt2` is what the older one writes, as optimum does, with learned positions, so that a
row that is padded wrongly shows.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.models import (
    EXPORT_TIMEOUT_SECONDS,
    HEADS,
    KV_HEADS,
    LAYERS,
    ROOT,
    VOCABULARY,
    _locked,
    _without_mpi,
)

DECODERS = {"llama": KV_HEADS, "gpt2": HEADS}
"""Name -> heads of its cache."""
SOURCES = ("cached_decoders.py", "export_models.py", "models.py")
PACKAGES = ("torch", "transformers", "onnxscript", "onnx")
PAST, STEP = 5, 3


def decoder_path(name: str) -> Path:
    """Path of a decoder's ONNX file; the first call exports all of them."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update((ROOT / "tests" / source).read_bytes())
    digest.update(" ".join(version(package) for package in PACKAGES).encode())
    chosen = os.environ.get("TPCORE_TEST_CACHE")
    caches = Path(chosen) if chosen else ROOT / ".cache"
    folder = caches / "cached-decoders" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not (folder / "done").exists():
            _run_exporter(folder)
    return folder / f"{name}.onnx"


def _run_exporter(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.cached_decoders", str(folder)]
    environment = _without_mpi(os.environ) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=EXPORT_TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    (folder / "done").touch()


def export_all(folder: Path) -> None:
    """Export every decoder, in a process of its own."""
    import torch
    from transformers.cache_utils import DynamicCache

    from tests.export_models import BUILDERS, randomize

    class Cached(torch.nn.Module):
        """Takes and returns the caches one by one."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Any, mask: Any, positions: Any, *past: Any) -> Any:
            cache = DynamicCache(config=self.model.config)
            for layer in range(LAYERS):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            made = self.model(
                input_ids=tokens, attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            layers = made.past_key_values.layers
            return made.logits, *(x for layer in layers for x in (layer.keys, layer.values))

    for name, heads in DECODERS.items():
        model = Cached(randomize(BUILDERS[name](), zlib.crc32(name.encode())))
        past = [torch.randn(2, heads, PAST, 16) for _ in range(2 * LAYERS)]
        mask = torch.ones(2, PAST + STEP, dtype=torch.int64)
        positions = torch.arange(PAST, PAST + STEP)[None].expand(2, STEP).contiguous()
        tokens = torch.randint(0, VOCABULARY, (2, STEP))
        _export(model, (tokens, mask, positions, *past), folder / f"{name}.onnx")


def _export(model: Any, inputs: tuple[Any, ...], path: Path) -> None:
    import torch

    parts = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids"]
    axes = [{0: "batch", 1: "sequence"}, {0: "batch", 1: "total"}, {0: "batch", 1: "sequence"}]
    caches = [f"past_key_values.{part}" for part in parts]
    outputs = ["logits", *(f"present.{part}" for part in parts)]
    if path.stem == "llama":
        past = tuple({0: "batch", 2: "past"} for _ in caches)
        how: dict[str, Any] = {"dynamo": True, "dynamic_shapes": (*axes, past), "verbose": False}
    else:
        open_dims = dict(zip(names, axes)) | {c: {0: "batch", 2: "past"} for c in caches}
        open_dims |= {name: {0: "batch", 2: "total"} for name in outputs[1:]}
        how = {"dynamo": False, "dynamic_axes": open_dims}
    torch.onnx.export(
        model, inputs, path, input_names=[*names, *caches], output_names=outputs,
        opset_version=18 if path.stem == "llama" else 17, **how,
    )  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    export_all(Path(sys.argv[1]))
