"""torch's own tensor parallelism: `parallelize_module` with a plan by hand, DTensor over gloo.

The plans are Megatron-LM's. `GPT2LMHeadModel` keeps its matrices in modules of transformers' own
(Conv1D), for which torch has no parallel style.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer

PEERS = [
    Peer(
        name="dtensor",
        title="torch DTensor, gloo, 2 × 1 thread",
        module="dtensor",
        packages=("torch", "transformers"),
        forms=("llama", "bert", "vit"),
        why_not="torch has no parallel style for transformers' Conv1D, nor for 4-bit weights",
        launcher="torchrun",
        processes=2,
    )
]
COLUMNS, ROWS = "columns", "rows"
PLANS = {
    "llama": {
        "model.embed_tokens": "embedding",
        **{f"model.layers.*.self_attn.{name}_proj": COLUMNS for name in "qkv"},
        "model.layers.*.self_attn.o_proj": ROWS,
        "model.layers.*.mlp.gate_proj": COLUMNS,
        "model.layers.*.mlp.up_proj": COLUMNS,
        "model.layers.*.mlp.down_proj": ROWS,
        "lm_head": "gathered columns",
    },
    "bert": {
        **{f"bert.encoder.layer.*.attention.self.{n}": COLUMNS for n in ("query", "key", "value")},
        "bert.encoder.layer.*.attention.output.dense": ROWS,
        "bert.encoder.layer.*.intermediate.dense": COLUMNS,
        "bert.encoder.layer.*.output.dense": ROWS,
    },
    "vit": {
        **{f"vit.layers.*.attention.{n}_proj": COLUMNS for n in "qkv"},
        "vit.layers.*.attention.o_proj": ROWS,
        "vit.layers.*.mlp.fc1": COLUMNS,
        "vit.layers.*.mlp.fc2": ROWS,
    },
}
"""The head of BERT shares the embedding's table and stays whole, and so does what is small."""


def load(work: Work) -> Ready:
    """Load whole, then let torch keep this process's share."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    from bench import torch_work

    model = torch_work.load(work)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {name: _style(style) for name, style in PLANS[work.case.form].items()}
    _check(model, plan)
    parallelize_module(model, mesh, plan)
    return torch_work.ready(model, work, int(os.environ["RANK"]))


def _style(name: str) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    return {
        COLUMNS: ColwiseParallel(),
        ROWS: RowwiseParallel(),
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "gathered columns": ColwiseParallel(output_layouts=Replicate()),
    }[name]


def _check(model: Any, plan: dict[str, Any]) -> None:
    """Refuse a pattern that names no module: torch would only warn and leave it whole."""
    names = {".".join("*" if part.isdigit() else part for part in name.split("."))
             for name, _ in model.named_modules()}  # fmt: skip
    unknown = sorted(set(plan) - names)
    if unknown:
        raise KeyError(f"the model has no module {', '.join(unknown)}")


if __name__ == "__main__":
    sys.exit(child.main(load))
