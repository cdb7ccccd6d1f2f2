"""Seeds for ops that draw numbers: all ranks, and the unsplit model they are compared with, must
draw the same."""

from __future__ import annotations

from zlib import crc32

import onnx_ir as ir

RANDOM_OPS = set(
    """RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial
    Dropout""".split()
)
TRAINING_MODE = 2
"""Operand without which a Dropout draws nothing."""
SEEDS = 10**6


def seed_random_ops(graph: ir.Graph) -> None:
    """Give a seed to every op of `graph` and its bodies that has none, by its place among them."""
    for place, node in enumerate(node for node in graph.all_nodes() if _draws(node)):
        if "seed" not in node.attributes:
            seed = crc32(f"{graph.name}/{place}".encode()) % SEEDS
            is_whole = node.op_type == "Dropout"
            node.attributes["seed"] = (
                ir.AttrInt64("seed", seed) if is_whole else ir.AttrFloat32("seed", float(seed))
            )


def _draws(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in RANDOM_OPS:
        return False
    return node.op_type != "Dropout" or node.inputs[TRAINING_MODE:] not in ((), (None,))
