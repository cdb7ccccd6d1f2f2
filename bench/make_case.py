"""Write the folder of one case: `python -m bench.make_case CASE_AS_JSON FOLDER`.

The one file of the benchmark's own side that imports torch and transformers; `bench.cases` says
what is written. Weights are random, but the same in every form of a model.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from bench.cases import INT4, LLAMA, Case
from bench.llama_weights import POSITIONS, save_checkpoint
from tests.big_model import LlamaShape, make
from tests.big_weights import cache_names
from tests.export_models import Logits, export, randomize
from tests.genai_builder import build_genai

Arrays = dict[str, np.ndarray]
OPSET = 18


def main() -> None:
    """Make the case beside its final name and rename it at the end."""
    case, folder = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    logging.disable(logging.WARNING)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        (make_built if case.by_builder else MAKERS[case.form])(case, unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save(folder: Path, inputs: Arrays, logits: np.ndarray) -> None:
    np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)
    np.save(folder / "expected.npy", logits.reshape(-1, logits.shape[-1])[-1])


# --- the Llama -----------------------------------------------------------------------------------


def make_llama(case: Case, folder: Path) -> None:
    """The graph of tests.big_model, fused attention with a cache or written out without one."""
    path = folder / "model.onnx"
    checkpoint = _checkpoint(case.layers, folder)
    make(path, layers=case.layers, sequence=case.tokens, cache=case.past)
    prompt = _prompt(case)
    cache, logits = _reference(case, prompt, checkpoint)
    ids = prompt[None, case.past :]
    if case.past:
        _save(folder, {"input_ids": ids, **cache}, logits)
    else:
        mask, places = np.ones_like(ids), np.arange(case.tokens)[None]
        _save(folder, {"input_ids": ids, "attention_mask": mask, "position_ids": places}, logits)
    np.save(folder / "prompt.npy", prompt)


def make_built(case: Case, folder: Path) -> None:
    """What onnxruntime-genai's builder makes of the checkpoint, in fp32 or 4 bits."""
    checkpoint = _checkpoint(case.layers, folder)
    precision = "int4" if case.form == INT4 else "fp32"
    built = checkpoint.parent / f"genai-{precision}"
    if not built.exists():
        build_genai(checkpoint, built, precision)
    for file in built.glob("model.onnx*"):  # onnx refuses data files that are hard links
        shutil.copyfile(file, folder / file.name)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    prompt, cache = _prompt(case), _empty_cache(case)
    if case.past:
        given = _built_inputs(prompt[: case.past], 0, cache)
        names = [cache_names(layer, "present") for layer in range(case.layers)]
        present = session.run([name for pair in names for name in pair], given)
        cache = dict(zip(cache, present))
    inputs = _built_inputs(prompt[case.past :], case.past, cache)
    if case.form == INT4:
        logits = session.run(["logits"], inputs)[0]
    else:
        logits = _reference(case, prompt, checkpoint)[1]
    _save(folder, inputs, logits)
    np.save(folder / "prompt.npy", prompt)


def _built_inputs(ids: np.ndarray, past: int, cache: Arrays) -> Arrays:
    """Of a model by onnxruntime-genai's builder."""
    mask = np.ones((1, past + len(ids)), np.int64)
    return {"input_ids": ids[None], "attention_mask": mask, **cache}


def _checkpoint(layers: int, folder: Path) -> Path:
    """The checkpoint that all cases of the Llama share."""
    shared = folder.parent.parent / f"{LLAMA}-{layers}"
    checkpoint = shared / "hf"
    if not checkpoint.exists():
        shared.mkdir(exist_ok=True)
        shape = LlamaShape(layers=layers)
        with tempfile.TemporaryDirectory(dir=shared) as scratch:
            model = make(Path(scratch, "model.onnx"), layers=layers)
            save_checkpoint(model, shape, Path(scratch, "hf"))
            Path(scratch, "hf").rename(checkpoint)
    return checkpoint


def _prompt(case: Case) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(3, LlamaShape.vocabulary, POSITIONS)[: case.past + case.tokens]


def _empty_cache(case: Case) -> Arrays:
    shape = LlamaShape()
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    return {n: empty for layer in range(case.layers) for n in cache_names(layer, "past")}


def _reference(case: Case, prompt: np.ndarray, checkpoint: Path) -> tuple[Arrays, np.ndarray]:
    """The cache before the last tokens, if there is one, and the logits, by torch."""
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.from_numpy(prompt[None])
    cache = transformers.DynamicCache(config=model.config)
    arrays: Arrays = {}
    with torch.no_grad():
        if case.past:
            model(ids[:, : case.past], past_key_values=cache)
            for number, layer in enumerate(cache.layers):
                held = (layer.keys.numpy().copy(), layer.values.numpy().copy())
                arrays |= zip(cache_names(number, "past"), held)
        logits = model(ids[:, case.past :], past_key_values=cache).logits
    return arrays, logits.numpy()


# --- exported from torch -------------------------------------------------------------------------


def _gpt2(case: Case) -> torch.nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=case.layers))


def _bert(case: Case) -> torch.nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(num_hidden_layers=case.layers))


def _vit(case: Case) -> torch.nn.Module:
    config = transformers.ViTConfig(num_hidden_layers=case.layers, num_labels=case.outputs)
    return transformers.ViTForImageClassification(config)


def _exported(build: Callable[[Case], torch.nn.Module]) -> Callable[[Case, Path], None]:
    def make_exported(case: Case, folder: Path) -> None:
        model = randomize(build(case), seed=0)
        inputs = _inputs(case)
        options = {} if case.is_image else {"use_cache": False}
        wrapped = Logits(model, inputs, **options)
        export(wrapped, inputs, folder / "model.onnx", OPSET, dynamic=False)
        with torch.no_grad():
            logits = wrapped(*map(torch.from_numpy, inputs.values())).numpy()
        _save(folder, inputs, logits)
        checkpoint = folder.parent / "hf"
        if not checkpoint.exists():
            model.save_pretrained(checkpoint)

    return make_exported


def _inputs(case: Case) -> Arrays:
    random = np.random.default_rng(0)
    if case.is_image:
        return {"pixel_values": random.standard_normal((1, 3, 224, 224), np.float32)}
    ids = random.integers(0, case.outputs, (1, case.tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


MAKERS: dict[str, Callable[[Case, Path], None]] = {
    LLAMA: make_llama,
    "gpt2": _exported(_gpt2),
    "bert": _exported(_bert),
    "vit": _exported(_vit),
}


if __name__ == "__main__":
    main()
