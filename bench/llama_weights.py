"""The weights of `tests.big_model` as a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from tests.big_model import LlamaShape
from tests.genai_builder import save_tokenizer

POSITIONS = 1024
_MODULES = {
    "input_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    **{f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def save_checkpoint(model: Path, shape: LlamaShape, folder: Path) -> None:
    """Write config.json, model.safetensors and a tokenizer of numbered words."""
    folder.mkdir(parents=True)
    weights = ir.load(model).graph.initializers
    tensors = {
        _name(name): _as_torch(name, value.const_value.numpy())
        for name, value in weights.items()
        if value.const_value is not None and not name.startswith("constant_")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    save_tokenizer(folder, shape.vocabulary)


def config(shape: LlamaShape) -> dict[str, object]:
    """What transformers calls this model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _name(name: str) -> str:
    """`layers.3.q_proj` → `model.layers.3.self_attn.q_proj.weight`."""
    if name == "lm_head":
        return "lm_head.weight"
    first, _, last = name.rpartition(".")
    return f"model.{first}.{_MODULES[last]}.weight" if first else f"model.{name}.weight"


def _as_torch(name: str, array: np.ndarray) -> np.ndarray:
    """A projection as f32[outputs, inputs], the rest as it is."""
    is_projection = name == "lm_head" or name.endswith("_proj")
    return np.ascontiguousarray(array.T if is_projection else array)
