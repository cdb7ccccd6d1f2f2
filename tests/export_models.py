"""Export the test models and the demo model: the one file of the project that needs transformers.

    python -m tests.export_models all FOLDER     one folder per model of tests/models.py
    python -m tests.export_models demo FOLDER    the small Llama that `tpcore demo` splits

Weights are random with a fixed seed, and such that mistakes show: no bias is zero, no norm weight
is one, every layer keeps its signal near unit size, so attention is far from uniform.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from torch import nn

from tests.genai_builder import build_genai, save_tokenizer
from tests.models import (
    GENAI,
    HEADS,
    KV_HEADS,
    LAYERS,
    TORCH_MODELS,
    VOCABULARY,
    Inputs,
    model_cases,
    model_inputs,
    run_reference,
)

HIDDEN = HEADS * 16
POSITIONS = 128
TOLERANCE = 1e-4
"""Largest difference between torch and onnxruntime, relative to the largest logit."""


class MLP(nn.Module):
    """Three biased layers, the middle one of a width that few rank counts divide."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256)
        self.middle = nn.Linear(256, 250)
        self.down = nn.Linear(250, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.up(x))
        return self.down(torch.relu(self.middle(hidden)))


class Logits(nn.Module):
    """A transformers model that takes its inputs by position and returns its logits alone."""

    def __init__(self, model: nn.Module, names: Iterable[str], **options: Any) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.options = options

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs)), **self.options).logits


def llama_model(intermediate: int = 352) -> nn.Module:
    """A Llama with grouped-query attention: 8 query heads, 4 key and value heads."""
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2_model() -> nn.Module:
    """A GPT-2: one packed projection for query, key and value; head tied to the embedding."""
    config = transformers.GPT2Config(
        n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, n_positions=POSITIONS
    )
    return transformers.GPT2LMHeadModel(config)


def bert_model() -> nn.Module:
    """A BERT with the head for masked tokens."""
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
    )
    return transformers.BertForMaskedLM(config)


def vit_model() -> nn.Module:
    """A vision transformer: patches by a convolution, 16 of them, and 10 classes."""
    config = transformers.ViTConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return transformers.ViTForImageClassification(config)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "gpt2": gpt2_model,
    "bert": bert_model,
    "llama": llama_model,
    "vit": vit_model,
}


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a random value: biases ±0.2, norms 1 ± 0.2, matrices 1/sqrt(fan in)."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.dim() > 1:
                parameter.copy_(noise * (parameter.shape[0] / parameter.numel()) ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
    return model.eval()


def build(family: str) -> nn.Module:
    """The torch model of a family, ready to export."""
    model = randomize(BUILDERS[family](), zlib.crc32(family.encode()))
    if family == "mlp":
        return model
    options = {} if family == "vit" else {"use_cache": False}
    return Logits(model, model_inputs(family), **options)


def export(model: nn.Module, inputs: Inputs, path: Path, opset: int, dynamic: bool) -> None:
    """Export with torch.onnx; `dynamic` leaves batch and, for text, sequence open."""
    names = list(inputs)
    axes = {0: "batch", 1: "sequence"} if "input_ids" in inputs else {0: "batch"}
    shapes: Any = tuple(axes for _ in names)
    torch.onnx.export(
        model,
        tuple(torch.from_numpy(value) for value in inputs.values()),
        path,
        dynamo=True,
        opset_version=opset,
        input_names=names,
        output_names=["logits"],
        # A module that takes *inputs sees them as one tuple.
        dynamic_shapes=(shapes if isinstance(model, MLP) else (shapes,)) if dynamic else None,
        verbose=False,
    )


def check(model: nn.Module, path: Path, inputs: Inputs) -> float:
    """Greatest difference between torch and onnxruntime. Raises RuntimeError if it is large."""
    names = model.names if isinstance(model, Logits) else inputs
    with torch.no_grad():
        expected = model(*(torch.from_numpy(inputs[name]) for name in names)).numpy()
    logits = run_reference(path, inputs)["logits"]
    difference = float(np.abs(logits - expected).max())
    if not difference <= TOLERANCE * np.abs(expected).max():
        raise RuntimeError(f"{path}: onnxruntime differs from torch by {difference:.3g}")
    return difference


def export_torch_model(model_id: str, model: nn.Module, folder: Path) -> None:
    """Export one model of TORCH_MODELS and compare it with torch on all its cases."""
    variant = model_id.split("-", 1)[1]
    path = folder / model_id / "model.onnx"
    path.parent.mkdir()
    opset = int(variant.removesuffix("-dynamic").removeprefix("opset"))
    export(model, model_inputs(model_id), path, opset, variant.endswith("dynamic"))
    worst = max(check(model, path, model_inputs(model_id, c)) for c in model_cases(model_id))
    print(f"{model_id}: differs from torch by {worst:.2g}", flush=True)


def save_hugging_face(model: nn.Module, folder: Path) -> None:
    """Write what onnxruntime-genai's builder reads, with a tokenizer of numbered words."""
    model.save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)


def export_genai(folder: Path) -> None:
    """Build the Llama with a KV cache: packed QKV into GroupQueryAttention, fp32."""
    model = randomize(llama_model(), zlib.crc32(b"llama"))
    path = folder / GENAI / "model.onnx"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        save_hugging_face(model, source)
        build_genai(source, path.parent)
    inputs = model_inputs(GENAI, "prefill")
    reference = Logits(model, ["input_ids", "attention_mask"])
    print(f"{GENAI}: differs from torch by {check(reference, path, inputs):.2g}", flush=True)


def export_all(folder: Path) -> None:
    """Export every model of tests/models.py into a folder of its own under `folder`."""
    for family, ids in _by_family(TORCH_MODELS).items():
        model = build(family)
        for model_id in ids:
            export_torch_model(model_id, model, folder)
    export_genai(folder)


def _by_family(model_ids: Iterable[str]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for model_id in model_ids:
        families.setdefault(model_id.split("-")[0], []).append(model_id)
    return families


def export_demo(folder: Path) -> None:
    """Write the demo: model.onnx, model.onnx.data and inputs.npz, 2 MB in all."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = model_inputs("llama")
    model = Logits(randomize(llama_model(256), seed=0), inputs, use_cache=False)
    path = folder / "model.onnx"
    for old in folder.glob("model.onnx*"):
        old.unlink()
    export(model, inputs, path, opset=18, dynamic=True)
    strip(path)
    np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)
    print(f"{path}: differs from torch by {check(model, path, inputs):.2g}")


def strip(path: Path) -> None:
    """Remove the exporter's notes: they outweigh the graph and name files of this machine."""
    proto = onnx.load(path, load_external_data=False)
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    onnx.save(proto, path)


def main() -> None:
    """Run one of the two commands in the module's docstring."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("all", "demo"):
        sys.exit(__doc__)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    start = time.monotonic()
    {"all": export_all, "demo": export_demo}[sys.argv[1]](Path(sys.argv[2]))
    print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
