"""JAX with 2 host devices: the Llama in plain jax.numpy, weights sharded as Megatron-LM does.

One process; XLA inserts the collectives. The step is compiled once, before it is timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer

DEVICES = 2
PEERS = [
    Peer(
        name="jax",
        title=f"JAX, {DEVICES} host devices",
        module="jax",
        packages=("jax", "safetensors"),
        forms=("llama",),
        why_not="only the Llama in fp32 is written for JAX here",
        threads=DEVICES,
        environment={
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
            "JAX_PLATFORMS": "cpu",
        },
    )
]
Weights = dict[str, Any]
_ROWS = ("o_proj", "down_proj")
"""Projections split along their inputs; all others along their outputs (f32[outputs, inputs])."""


def load(work: Work) -> Ready:
    """Weights and cache on the devices, the step compiled."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("tp",))

    def put(array: np.ndarray, *axes: str | None) -> Any:
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    config = json.loads((work.checkpoint / "config.json").read_text())
    weights = {name: put(array, *_axes(name)) for name, array in _checkpoint(work)}
    step = jax.jit(_step(config, work.case.past), donate_argnums=1)
    ids, past = work.prompt(), work.case.past
    heads = config["num_key_value_heads"], config["head_dim"]
    cache = [
        put(np.zeros((2, heads[0], len(ids), heads[1]), np.float32), None, "tp")
        for _ in range(config["num_hidden_layers"])
    ]
    if past:
        _, cache = jax.jit(_step(config, 0))(weights, cache, jnp.asarray(ids[:past]))
    fresh = jnp.asarray(ids[past:])
    compiled = step.lower(weights, cache, fresh).compile()
    held = [cache]

    def run() -> Any:
        # Every run writes the same places of the cache again, which it was given to keep.
        logits, held[0] = jax.block_until_ready(compiled(weights, held[0], fresh))
        return logits

    return Ready(run, np.asarray)


def _checkpoint(work: Work) -> Any:
    from safetensors import safe_open

    with safe_open(work.checkpoint / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            yield name, file.get_tensor(name)


def _axes(name: str) -> tuple[str | None, ...]:
    if "norm" in name:
        return ()
    return (None, "tp") if name.split(".")[-2] in _ROWS else ("tp", None)


def _step(config: dict[str, Any], past: int) -> Callable[..., Any]:
    """Logits f32[tokens, vocabulary] and caches f32[2, kv_heads, positions, head_size] per layer.

    Tokens take the positions from `past` on, which is a constant of the compiled program.
    """
    import jax
    import jax.numpy as jnp

    size, kv_heads = config["head_dim"], config["num_key_value_heads"]
    group = config["num_attention_heads"] // kv_heads

    def norm(x: Any, weight: Any) -> Any:
        return weight * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + config["rms_norm_eps"])

    def rotate(x: Any, positions: Any) -> Any:
        half = size // 2
        angles = positions[:, None] * config["rope_theta"] ** (-jnp.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def attention(x: Any, w: Callable[[str], Any], cache: Any) -> tuple[Any, Any]:
        tokens = len(x)
        positions = past + jnp.arange(tokens)

        def heads(name: str, count: int) -> Any:
            return (x @ w(name).T).reshape(tokens, count, size).transpose(1, 0, 2)

        queries = rotate(heads("self_attn.q_proj", kv_heads * group), positions)
        keys = rotate(heads("self_attn.k_proj", kv_heads), positions)
        new = jnp.stack([keys, heads("self_attn.v_proj", kv_heads)])
        cache = jax.lax.dynamic_update_slice(cache, new, (0, 0, past, 0))
        seen = cache[:, :, : past + tokens]
        queries = queries.reshape(kv_heads, group, tokens, size)
        scores = jnp.einsum("kgtd,ksd->kgts", queries, seen[0]) / size**0.5
        causal = jnp.arange(past + tokens)[None] <= positions[:, None]
        shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), -1)
        mixed = jnp.einsum("kgts,ksd->tkgd", shares, seen[1]).reshape(tokens, -1)
        return mixed @ w("self_attn.o_proj").T, cache

    def step(weights: Weights, caches: list[Any], ids: Any) -> tuple[Any, list[Any]]:
        x = weights["model.embed_tokens.weight"][ids]
        written = []
        for layer, cache in enumerate(caches):

            def w(name: str, layer: int = layer) -> Any:
                return weights[f"model.layers.{layer}.{name}.weight"]

            added, cache = attention(norm(x, w("input_layernorm")), w, cache)
            written.append(cache)
            x = x + added
            wide = norm(x, w("post_attention_layernorm"))
            gate = jax.nn.silu(wide @ w("mlp.gate_proj").T) * (wide @ w("mlp.up_proj").T)
            x = x + gate @ w("mlp.down_proj").T
        x = norm(x, weights["model.norm.weight"])
        return x @ weights["lm_head.weight"].T, written

    return step


if __name__ == "__main__":
    sys.exit(child.main(load))
