"""What the peers that run a transformers model in torch have in common (imported by them alone)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from bench import child
from bench.child import Ready, Work

CLASSES = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
    "vit": "ViTForImageClassification",
}


def load(work: Work, **options: Any) -> Any:
    """The model of a case in fp32, from its checkpoint."""
    torch.set_num_threads(work.threads)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    cls = getattr(transformers, CLASSES[work.case.form])
    return cls.from_pretrained(work.checkpoint, dtype=torch.float32, **options).eval()


def ready(model: Any, work: Work, rank: int = 0) -> Ready:
    """A model that may be split already, with its inputs and, for a decode step, its cache."""
    if work.case.is_decode:
        return _decode(model, work, rank)
    arrays = {"input_ids": work.prompt()[None]} if work.case.form == "llama" else work.inputs()
    inputs = child.given(arrays, torch.from_numpy)
    options = {} if work.case.is_image else {"use_cache": False}
    return Ready(lambda: _call(model, **inputs, **options), _logits, rank=rank)


def _decode(model: Any, work: Work, rank: int) -> Ready:
    """A static cache is filled once; every run writes the same place behind it again."""
    past = work.case.past
    ids = torch.from_numpy(work.prompt()[None])
    cache = transformers.StaticCache(model.config, max_cache_len=past + work.case.tokens)
    _call(model, input_ids=ids[:, :past], past_key_values=cache)

    def reset() -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(past)

    step = ids[:, past:].contiguous()
    return Ready(
        lambda: _call(model, input_ids=step, past_key_values=cache), _logits, reset, rank=rank
    )


def _call(model: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs).logits


def _logits(logits: Any) -> np.ndarray:
    array: np.ndarray = logits.numpy()
    return array
