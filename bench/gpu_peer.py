"""What bench.gpu compares with: `python -m bench.gpu_peer rates|eager|compiled DEVICE [SIZES]`.

The rates that a device reaches, or the median seconds of a run of transformers' Llama.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

RUNS = 10
COPY_BYTES, MATMUL = 4 << 30, 8192
CPU_COPY_BYTES, CPU_MATMUL = 64 << 20, 512


def main() -> None:
    """Print one JSON object."""
    way, device = sys.argv[1:3]
    with torch.inference_mode():
        found = rates(device) if way == "rates" else llama(way, device, json.loads(sys.argv[3]))
    print(json.dumps(found))


def seconds(run: Callable[[], Any], device: str) -> float:
    """Median seconds until the device has done it."""
    times = []
    for _ in range(RUNS + 3):
        began = time.perf_counter()
        run()
        if device != "cpu":
            getattr(torch, device).synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


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


def llama(way: str, device: str, sizes: dict[str, int]) -> dict[str, float]:
    """A decode step over a cache, or a prefill without one."""
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=sizes["cache"] + sizes["sequence"],
        dtype=torch.bfloat16,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    past, length = sizes["cache"], sizes["sequence"]
    ids = torch.zeros((1, length), dtype=torch.int64, device=device)
    places = torch.arange(past, past + length, device=device)
    given: dict[str, Any] = {"input_ids": ids, "cache_position": places, "use_cache": past > 0}
    if past:
        given["past_key_values"] = StaticCache(config=config, max_cache_len=past + length)
    run = torch.compile(model) if way == "compiled" else model
    return {"seconds": seconds(lambda: run(**given).logits[:, -1:].cpu(), device)}


if __name__ == "__main__":
    main()
