"""transformers in eager torch: unsplit with 2 threads, and split by its own plan over gloo."""

from __future__ import annotations

import os
import sys

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer

PACKAGES = ("transformers", "torch")
PEERS = [
    Peer(
        name="transformers",
        title="transformers, 2 threads",
        module="transformers",
        packages=PACKAGES,
        forms=("llama", "gpt2", "bert", "vit"),
        why_not="transformers does not read 4-bit weights of ONNX Runtime's form",
        threads=2,
    ),
    Peer(
        name="tp-plan",
        title="transformers tp_plan, gloo, 2 × 1 thread",
        module="transformers",
        packages=(*PACKAGES, "accelerate"),
        forms=("llama",),
        why_not="transformers has no tensor-parallel plan for it, or does not read its weights",
        launcher="torchrun",
        processes=2,
    ),
]


def load(work: Work) -> Ready:
    """Split if torchrun has started several processes."""
    from bench import torch_work

    if "WORLD_SIZE" not in os.environ:
        return torch_work.ready(torch_work.load(work), work)
    from transformers.distributed import DistributedConfig

    split = DistributedConfig(tp_plan="auto")
    model = torch_work.load(work, distributed_config=split)
    return torch_work.ready(model, work, int(os.environ["RANK"]))


if __name__ == "__main__":
    sys.exit(child.main(load))
