"""DeepSpeed's AutoTP on CPU: `init_inference` finds what to split, ranks sum in shared memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer

PEERS = [
    Peer(
        name="deepspeed",
        title="DeepSpeed AutoTP, 2 × 1 thread",
        module="deepspeed",
        packages=("deepspeed", "torch", "transformers"),
        forms=("llama", "gpt2", "bert", "vit"),
        why_not="DeepSpeed does not read 4-bit weights of ONNX Runtime's form",
        launcher="torchrun",
        processes=2,
        # Without LOCAL_SIZE, which its own launcher sets, its all-reduce in shared memory crashes.
        environment={"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"},
    )
]


def load(work: Work) -> Ready:
    """Load whole, then let DeepSpeed keep this process's share."""
    import deepspeed
    import torch

    from bench import torch_work

    model = torch_work.load(work)
    deepspeed.init_distributed()
    _unlink_buffer()
    engine = deepspeed.init_inference(
        model,
        dtype=torch.float32,
        tensor_parallel={"tp_size": int(os.environ["WORLD_SIZE"])},
        replace_with_kernel_inject=False,
    )
    return torch_work.ready(engine.module, work, int(os.environ["RANK"]))


def _unlink_buffer() -> None:
    """Remove the name of this process's shared memory, which DeepSpeed leaves behind at its end."""
    import torch.distributed as dist

    dist.barrier()  # all have it mapped
    names = (os.getuid(), os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], dist.get_rank())
    name = "_".join(["deepspeed_allreduce_buffer", *map(str, names)])
    Path("/dev/shm", name).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(child.main(load))
