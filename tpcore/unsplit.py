"""Why a weight is held whole on every rank, and what would help."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tpcore.ops import OPS
from tpcore.plan import Plan
from tpcore.planner.options import is_captured, placement_text
from tpcore.rules.whole import WHOLE_OPS
from tpcore.sharding import REPLICATE

NOTHING = "nothing is needed"
SHOWN_PLACEMENTS = 2


@dataclass(frozen=True)
class Why:
    """Both are half sentences."""

    reason: str
    help: str


READ_BY_BODY = Why(
    "the body of an If, Loop or Scan reads it, and bodies are not split",
    "export the model with the body unrolled, or what reads the weight outside of it",
)


def why_whole(plan: Plan, value: ir.Value) -> Why:
    """Why `value`, a weight, is held whole."""
    ranks = plan.mesh.size
    if ranks == 1:
        return Why("there is one rank", "give --tp 2 or more")
    if len(plan.choices.hubs[value]) == 1 and value.name in plan.pinned:
        return Why("the plan given keeps it whole", f"take '{value.name}' out of the plan")
    if plan.held(value).is_partial:
        return Why("it is added once: rank 0 holds it, the other ranks hold zeros", NOTHING)
    if value.const_value is not None and value.const_value.size <= 1:
        return Why("it is a scalar", NOTHING)
    if is_captured(plan.model.graph, value):
        return READ_BY_BODY
    if _is_annotated_whole(plan, value):
        return Why(
            "a device annotation of the model keeps it whole",
            "annotate it as split, or plan without annotations by --plan auto",
        )
    return _readers_need_it_whole(plan, value) or _too_dear(plan, value)


def _is_annotated_whole(plan: Plan, value: ir.Value) -> bool:
    asked = plan.annotated.asked
    pins = [asked.run.get(node.name or "", {}).get(index) for node, index in value.uses()]
    pins.append(asked.held.get(value.name or ""))
    return any(pin is not None and pin.text == "R" for pin in pins)


def _readers_need_it_whole(plan: Plan, value: ir.Value) -> Why | None:
    for node, index in value.uses():
        if (node.domain, node.op_type) not in OPS:
            return _no_rule(node)
        if node not in plan.space.factors.nodes:
            return Why(
                f"op {node.op_type} of node '{node.name}' has shapes that are not known",
                "export with shapes, or run onnxruntime.tools.symbolic_shape_infer on the model",
            )
        if all(s.operands[index] == REPLICATE for s in plan.choices.strategies[node]):
            return _too_small(value, plan.mesh.size) or _no_split(plan, value, node)
    return None


def _no_rule(node: ir.Node) -> Why:
    why = WHOLE_OPS.get((node.domain, node.op_type))
    return Why(
        f"op {node.op_type} of node '{node.name}' has no sharding rule"
        + (f": {why}" if why else ""),
        "export what the op does as standard ops, or add a rule for it in tpcore/rules",
    )


def _too_small(value: ir.Value, ranks: int) -> Why | None:
    tensor = value.const_value
    largest = max(tensor.shape.numpy(), default=1) if tensor is not None else ranks
    if largest >= ranks:
        return None
    return Why(f"none of its dims has {ranks} parts", f"choose --tp up to {largest}")


def _no_split(plan: Plan, value: ir.Value, node: ir.Node) -> Why:
    """The op's rule lets nothing through that would split this operand on so many ranks."""
    sizes = [
        size
        for atoms in plan.space.atoms_of(value)
        for atom in atoms
        if isinstance(size := atom.size, int) and 1 < size < plan.mesh.size
    ]
    return Why(
        f"op {node.op_type} needs it whole",
        f"choose --tp up to {max(sizes)}"
        if sizes
        else f"`tpcore ops` tells what {node.op_type} splits",
    )


def _too_dear(plan: Plan, value: ir.Value) -> Why:
    places = [placement_text(plan.space.sharding(value, p)) for p in plan.choices.hubs[value]]
    others = [text for text in places if text.startswith("S")][:SHOWN_PLACEMENTS]
    choice = f" to one of {'; '.join(others)}" if others else ""
    return Why(
        "splitting it costs more exchange than the memory it saves is worth",
        f"pin '{value.name}'{choice} in a plan file",
    )
