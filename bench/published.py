"""Published cases computed again with their hardware's table, beside the published figure.

    python -m bench.published

Megatron-LM's weak scaling on a DGX-2H, and the share of AllReduce in decoding Llama 70B on eight
H100. Each case is a graph with the published sizes and no weights, planned as any other model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from bench.fused_decoder import DecoderShape, make
from graph.canonicalize import canonicalize
from tpcore.insert_reshards import insert_reshards
from tpcore.planner.cost import CostModel
from tpcore.planner.plans import Request, make_plans
from tpcore.planner.topology import COLLECTIVES, Topology
from tpcore.planner.topology_files import load_topology
from tpcore.reshard import reshard_kind
from tpcore.workload import Work

MEGATRON = "nv-adlr.github.io/MegatronLMV1, Table 1; sizes that give its numbers of parameters"
MEGATRON_BATCH, MEGATRON_SEQUENCE, MEGATRON_VOCABULARY = 8, 1024, 51200
LADDER = "Ladder-Residual, arXiv 2501.06589: 70B, TP 8, NVLink, NCCL; the batch is assumed"
LADDER_SHARE, LADDER_BATCHES = 0.38, (1, 4, 16)
LLAMA_70B = DecoderShape(
    layers=80,
    hidden=8192,
    intermediate=28672,
    heads=64,
    kv_heads=8,
    vocabulary=128256,
    batch=1,
    sequence=1,
    cache=1280,
)
COMPUTE_PASSES, EXCHANGE_PASSES = 4, 3
"""A training step with recomputed activations: two forward passes and a backward one, which takes
as long as two; each of the three exchanges as the first does."""


@dataclass(frozen=True)
class WeakScaling:
    """One row of Megatron-LM's table."""

    ranks: int
    layers: int
    hidden: int
    heads: int
    milliseconds: float
    efficiency: float

    @property
    def parameters(self) -> float:
        """Of a GPT-2: 12 h² per layer, and the embedding."""
        h = self.hidden
        return 12 * self.layers * h * h + (MEGATRON_VOCABULARY + MEGATRON_SEQUENCE) * h

    @property
    def shape(self) -> DecoderShape:
        """The graph of its forward pass."""
        return DecoderShape(
            layers=self.layers,
            hidden=self.hidden,
            intermediate=4 * self.hidden,
            heads=self.heads,
            kv_heads=self.heads,
            vocabulary=MEGATRON_VOCABULARY,
            batch=MEGATRON_BATCH,
            sequence=MEGATRON_SEQUENCE,
            gated=False,
        )


WEAK_SCALING = (
    WeakScaling(1, 24, 1920, 15, 1288, 1.0),
    WeakScaling(2, 30, 2304, 18, 1242, 0.907),
    WeakScaling(4, 36, 3072, 24, 1357, 0.865),
    WeakScaling(8, 42, 4096, 32, 1508, 0.796),
)


@dataclass(frozen=True)
class Times:
    """Predicted seconds of one run of a plan."""

    total: float
    exchange: float
    collectives: int


def main() -> int:
    """Print all cases."""
    _print_weak_scaling()
    _print_decode_share()
    return 0


def _print_weak_scaling() -> None:
    topology = load_topology("v100-dgx2")
    print(f"Weak scaling of GPT-2 by tensor parallelism, {topology.name} ({MEGATRON})")
    print(f"{'':4}{'ranks':>5}{'ms':>8}{'published':>11}{'efficiency':>12}{'published':>11}")
    first = 0.0
    for case in WEAK_SCALING:
        times = times_of(case.shape, topology, case.ranks)
        step = COMPUTE_PASSES * (times.total - times.exchange) + EXCHANGE_PASSES * times.exchange
        per_parameter = step * case.ranks / case.parameters
        first = first or per_parameter
        print(
            f"{'':4}{case.ranks:>5}{step * 1e3:>8.0f}{case.milliseconds:>11.0f}"
            f"{first / per_parameter:>12.1%}{case.efficiency:>11.1%}  "
            f"{times.collectives} collectives forward"
        )


def _print_decode_share() -> None:
    topology = load_topology("h100-nvlink")
    print(f"\nExchange in a decode step of Llama 70B on 8 ranks, {topology.name} ({LADDER})")
    print(f"{'':4}{'batch':>5}{'ms':>8}{'exchange':>10}{'published':>11}")
    for batch in LADDER_BATCHES:
        times = times_of(replace(LLAMA_70B, batch=batch), topology, 8)
        share = times.exchange / times.total
        print(
            f"{'':4}{batch:>5}{times.total * 1e3:>8.2f}{share:>10.1%}{LADDER_SHARE:>11.1%}  "
            f"{times.collectives} collectives"
        )


def times_of(shape: DecoderShape, topology: Topology, ranks: int) -> Times:
    """Plan a decoder and say what the plan is predicted to take."""
    model, shapes = canonicalize(make(shape))
    (plan,) = make_plans(model, shapes, [Work()], Request(ranks, topology=topology))
    seconds = plan.choices.seconds
    sharded = insert_reshards(plan)
    cost = CostModel(topology, sharded.shapes, ranks, shapes.equal)
    found = [
        cost.reshard_seconds(cost.value_bytes(node.outputs[0]), have, want)
        for node in sharded.model.graph
        if node.op_type == "Reshard"
        for have, want in [sharded.reshards[node.name or ""]]
        if reshard_kind(have, want) in COLLECTIVES
    ]
    return Times(seconds, sum(found), len(found))


if __name__ == "__main__":
    sys.exit(main())
