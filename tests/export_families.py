"""Export the models of tests/families.py.

    python -m tests.export_families FOLDER NAME ...

Each gets a folder FOLDER/NAME with model.onnx, or with failed.txt where its export fails. Weights
are random with a fixed seed, as those of tests/export_models.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from torch import nn

from tests.export_models import TOLERANCE, randomize, save_hugging_face
from tests.families import family_cases, family_inputs
from tests.family_forms import FORMS
from tests.family_models import TEXT_MODELS, qwen2
from tests.family_nets import OTHER_MODELS
from tests.family_table import TABLE, Family
from tests.genai_builder import build_genai
from tests.models import Inputs, run_reference

OPSET = 18
BUILDERS = TEXT_MODELS | OTHER_MODELS
FP32_TOLERANCE = 1e-3
INT4_TOLERANCE = 1.0
"""Largest differences of the builder's models from torch, as a share of the scale."""
AXES: dict[str, dict[int, str]] = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "sequence"},
    "position_ids": {0: "batch", 1: "sequence"},
    "decoder_input_ids": {0: "batch", 1: "target"},
}
LOGITS = {"clip": "logits_per_image"}


class Named(nn.Module):
    """A model that takes its inputs by position and returns one tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], result: str) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.result = result
        config = getattr(model, "config", None)
        self.options: dict[str, Any] = {}
        if config is not None and getattr(config, "use_cache", False):
            self.options["use_cache"] = False

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        found = self.model(**dict(zip(self.names, inputs)), **self.options)
        return found if isinstance(found, torch.Tensor) else getattr(found, self.result)


def build(family: str) -> nn.Module:
    """The torch model of a family, its weights random."""
    about, name = TABLE[family], TABLE[family].base or family
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    wide = about.is_genai and name == "qwen2"  # its attention op takes no heads of 8
    model = randomize(qwen2(head_size=16) if wide else BUILDERS[name](), seed)
    _liven(model, seed)
    return model


def _liven(model: nn.Module, seed: int) -> None:
    """Statistics that no norm may leave out, and stacked weights of the size of single ones."""
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name and parameter.dim() == 3:
                parameter *= parameter.shape[1] ** 0.5
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=random))
            if name.endswith("running_var"):
                buffer.copy_(1.0 + 0.5 * torch.rand(buffer.shape, generator=random))


def export(model: nn.Module, about: Family, inputs: Inputs, path: Path) -> None:
    """Export with torch.onnx, by either of its exporters."""
    axes = {name: AXES.get(name, {0: "batch"}) for name in inputs}
    dynamo = about.exporter == "dynamo"
    chosen: dict[str, Any] = {}
    if about.dynamic and dynamo:
        chosen = {"dynamic_shapes": (tuple(axes.values()),)}
    elif about.dynamic:
        chosen = {"dynamic_axes": axes}
    torch.onnx.export(
        model,
        tuple(torch.from_numpy(value) for value in inputs.values()),
        path,
        dynamo=dynamo,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=["logits"],
        verbose=False,
        **chosen,
    )


def check(model: nn.Module, path: Path, inputs: Inputs, tolerance: float) -> float:
    """Greatest difference between torch and onnxruntime. Raises RuntimeError if it is large."""
    with torch.no_grad():
        expected = model(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    logits = run_reference(path, inputs)["logits"]
    difference, scale = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    if not difference <= tolerance * scale or not scale > 0:
        raise RuntimeError(f"{path}: onnxruntime differs from torch by {difference:.3g}")
    return difference / scale


def export_torch(family: str, folder: Path) -> float:
    """Export a family with torch and compare it on all its cases."""
    about, inputs = TABLE[family], family_inputs(family)
    model = Named(build(family), tuple(inputs), LOGITS.get(family, "logits")).eval()
    cases = [family_inputs(family, case) for case in family_cases(family)]
    path, tolerance = folder / "model.onnx", TOLERANCE
    if not about.form:
        export(model, about, inputs, path)
        return max(check(model, path, case, tolerance) for case in cases)
    make, tolerance = FORMS[about.form]
    with tempfile.TemporaryDirectory() as scratch:
        plain, whole = Path(scratch) / "plain.onnx", Path(scratch) / "model.onnx"
        export(model, about, inputs, plain)
        onnx.save(onnx.load(plain), whole)  # in one file: not all of ORT's tools find a second
        make(whole, path, about.base, cases)
    return max(check(model, path, case, tolerance) for case in cases)


def export_genai(family: str, folder: Path) -> float:
    """Build a family with onnxruntime-genai's builder and compare its prefill with torch."""
    precision = TABLE[family].exporter
    model = build(family)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        save_hugging_face(model, source)
        build_genai(source, folder, precision, TABLE[family].options.split())
    tolerance = FP32_TOLERANCE if precision == "fp32" else INT4_TOLERANCE
    inputs = family_inputs(family, "prefill")
    if TABLE[family].past:
        run_reference(folder / "model.onnx", inputs)
        return math.nan  # a random past is not one that torch can be given
    with torch.no_grad():
        tokens = {name: torch.from_numpy(inputs[name]) for name in TABLE[family].inputs}
        expected = model(**tokens).logits.numpy()
    logits = run_reference(folder / "model.onnx", inputs)["logits"]
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise RuntimeError(f"{family}: onnxruntime differs from torch by {difference:.3g} of scale")
    return difference


def export_family(family: str, folder: Path) -> None:
    """Fill `folder`/`family`, which appears when it is complete."""
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder))
    unfinished.chmod(0o755)
    began = time.monotonic()
    try:
        make = export_genai if TABLE[family].is_genai else export_torch
        with contextlib.redirect_stdout(sys.stderr):
            difference = make(family, unfinished)
        note = f"differs from torch by {difference:.2g} of the scale"
    except Exception as error:
        shutil.rmtree(unfinished)
        unfinished.mkdir()
        note = f"not exported: {_short(error)}"
        (unfinished / "failed.txt").write_text(f"{note}\n{traceback.format_exc()}")
    unfinished.rename(folder / family)
    print(f"{family}: {note} ({time.monotonic() - began:.0f} s)", flush=True)


def _short(error: BaseException) -> str:
    """The innermost cause: exporters wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    """Run the command in the module's docstring."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    for family in sys.argv[2:]:
        export_family(family, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
