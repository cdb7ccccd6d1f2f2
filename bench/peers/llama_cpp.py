"""llama.cpp by llama-cpp-python with 2 threads: the same weights as GGUF, and as its own Q4_0."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer

PEERS = [
    Peer(
        name="llama.cpp",
        title="llama.cpp, 2 threads",
        module="llama_cpp",
        packages=("llama-cpp-python", "gguf", "safetensors"),
        forms=("llama", "llama-int4"),
        why_not="only the Llama is written as GGUF here",
        threads=2,
        is_prepared=True,
        own_weights=("llama-int4",),
    )
]
_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}


def prepare(work: Work) -> None:
    """Write the file in fp32, and from it the one in 4 bits, unless they are there."""
    path = work.checkpoint.parent / "f32.gguf"
    if not path.exists():
        _write(work.checkpoint, path)
    small = _path(work)
    if not small.exists():
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        params.output_tensor_type = llama_cpp.GGML_TYPE_Q4_0
        params.nthread = 2
        names = (str(path).encode(), str(small).encode())
        if llama_cpp.llama_model_quantize(*names, params):
            raise RuntimeError("llama.cpp could not quantize the model")


def _path(work: Work) -> Path:
    return work.checkpoint.parent / ("q4_0.gguf" if "int4" in work.case.form else "f32.gguf")


def _write(checkpoint: Path, path: Path) -> None:
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path.with_suffix(".unfinished"), "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    for name, array in _tensors(checkpoint, config):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".unfinished").rename(path)


def _tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Named as llama.cpp does, with the rows of queries and keys as its rotation wants them."""
    from safetensors.numpy import load_file

    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for name, array in load_file(checkpoint / "model.safetensors").items():
        *path, module, _ = name.split(".")
        if module in heads:
            array = interleaved(array, heads[module])
        layer = next((f"blk.{part}." for part in path if part.isdigit()), "")
        yield f"{layer}{_MODULES[module]}.weight", array


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of f32[heads · size, inputs] so that those rotated together are neighbours.

    transformers rotates row i of a head with row i + size / 2, llama.cpp row 2 i with row 2 i + 1.
    """
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def load(work: Work) -> Ready:
    """A context that holds the cache's tokens already."""
    import llama_cpp

    prompt, past = work.prompt().tolist(), work.case.past
    # Its default for a cache is 16 bits; with fp32 weights all hold it in fp32.
    cache = llama_cpp.GGML_TYPE_F32 if work.case.form == "llama" else llama_cpp.GGML_TYPE_F16
    model = llama_cpp.Llama(
        str(_path(work)),
        n_ctx=len(prompt) + 8,
        n_batch=max(len(prompt), 32),
        n_ubatch=max(len(prompt), 32),
        n_threads=work.threads,
        n_threads_batch=work.threads,
        logits_all=not past,
        type_k=cache,
        type_v=cache,
        verbose=False,
    )
    if past:
        model.eval(prompt[:past])

    def reset() -> None:
        model.n_tokens = past  # `eval` forgets what the cache holds beyond

    def logits(_: Any) -> np.ndarray:
        # A pointer to the rows of all tokens that have logits.
        rows = 1 if past else work.case.tokens
        found = model._ctx.get_logits()
        return np.ctypeslib.as_array(found, (rows, work.case.outputs)).copy()

    return Ready(lambda: model.eval(prompt[past:]), logits, reset)


if __name__ == "__main__":
    sys.exit(child.main(load, prepare))
