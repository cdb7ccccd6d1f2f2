"""What bench.gpu compares with: `python -m bench.gpu_peer rates|eager|compiled DEVICE [WORKS]`.

The rates that a device reaches, or the median seconds of runs of transformers' Llama: one JSON
object per line.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

RUNS, WARM_UP = 20, 3
COPY_BYTES, MATMUL = 4 << 30, 8192
CPU_COPY_BYTES, CPU_MATMUL = 64 << 20, 512


def main() -> None:
    """Print what was asked for."""
    way, device = sys.argv[1:3]
    with torch.inference_mode():
        if way == "rates":
            print(json.dumps(rates(device)))
            return
        works = json.loads(sys.argv[3])
        model = llama(device, works)
        for work, sizes in works.items():
            found = {"seconds": run(model, way == "compiled", device, sizes)}
            print(json.dumps({"way": way, "work": work, **found}), flush=True)


def seconds(run: Callable[[], Any], device: str) -> float:
    """Median seconds until the device has done it."""
    times = []
    for _ in range(RUNS + WARM_UP):
        began = time.perf_counter()
        run()
        if device != "cpu":
            getattr(torch, device).synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


def rates(device: str) -> dict[str, float]:
    """Bytes that a copy reads and writes per second, operations of a matmul per second."""
    on_cpu = device == "cpu"
    size = CPU_COPY_BYTES if on_cpu else COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = CPU_MATMUL if on_cpu else MATMUL
    square = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    return {
        "bytes_per_second": 2 * size / seconds(lambda: target.copy_(source), device),
        "flops_per_second": 2 * side**3 / seconds(lambda: square @ square, device),
    }


def llama(device: str, works: dict[str, dict[str, int]]) -> Any:
    """A model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = next(iter(works.values()))
    config = LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=max(s["cache"] + s["sequence"] for s in works.values()),
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


def run(model: Any, compiled: bool, device: str, sizes: dict[str, int]) -> float:
    """A prefill without a cache, or a decode step that appends to a static one."""
    from transformers import StaticCache

    past, length = sizes["cache"], sizes["sequence"]
    ids = torch.randint(0, sizes["vocabulary"], (1, length), device=device)
    given: dict[str, Any] = {"use_cache": False}
    if past:
        room = past + (RUNS + WARM_UP) * length
        cache = StaticCache(config=model.config, max_cache_len=room)
        given = {"past_key_values": cache, "use_cache": True}
        model(input_ids=ids.expand(1, past), **given)
    mode = "reduce-overhead" if past and device == "cuda" else None
    forward = torch.compile(model, mode=mode) if compiled else model
    return seconds(lambda: forward(input_ids=ids, **given).logits[:, -1:].cpu(), device)


if __name__ == "__main__":
    main()
