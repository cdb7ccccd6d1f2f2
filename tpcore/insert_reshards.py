"""Write a plan into the graph: every change of a value's sharding becomes a `Reshard` node.

A value is resharded once from its producer's result to its hub, and once from the hub to each other
sharding it is read in, however many nodes read it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graph.dialect import DOMAIN, VERSION
from graph.mesh import Mesh
from graph.shapes import Shapes
from tpcore.plan import Plan
from tpcore.planner.options import placement_text
from tpcore.sharding import REPLICATE, Chain, Placement, Sharding


@dataclass
class ShardedGraph:
    """A graph with global shapes, and how each of its values is held."""

    model: ir.Model
    mesh: Mesh
    shapes: Shapes
    plan: Plan
    shardings: dict[str, Sharding] = field(default_factory=dict)
    """By value name; a value that is not listed is replicated."""
    reshards: dict[str, tuple[Sharding, Sharding]] = field(default_factory=dict)
    """(have, want) by name of the Reshard node."""
    chains: dict[str, Chain] = field(default_factory=dict)
    """The chain a node is split along, by node name."""

    def held(self, value: ir.Value) -> Sharding:
        """How `value` is held."""
        return self.shardings.get(value.name or "", Sharding(REPLICATE))


def insert_reshards(plan: Plan) -> ShardedGraph:
    """Make the sharded graph of a plan; the plan's model is changed in place."""
    sharded = ShardedGraph(plan.model, plan.mesh, plan.shapes, plan)
    graph, choices = plan.model.graph, plan.choices
    uses = {value: list(value.uses()) for value in choices.hub}
    produced = {
        value: choices.strategy[node].results[index]
        for node in graph
        for index, value in enumerate(node.outputs)
    }
    for node in graph:
        strategy = choices.strategy[node]
        chain = next((p.chain for p in (*strategy.operands, *strategy.results) if p.chain), None)
        if chain is not None:
            sharded.chains[node.name or ""] = chain
    for value, hub in choices.hub.items():
        _insert_for_value(sharded, value, produced.get(value, hub), hub, uses[value])
    return sharded


def _insert_for_value(
    sharded: ShardedGraph,
    value: ir.Value,
    made: Placement,
    hub: Placement,
    uses: Sequence[tuple[ir.Node, int]],
) -> None:
    plan = sharded.plan
    sharding = plan.space.sharding
    is_output = value.is_graph_output()
    _hold(sharded, value, sharding(value, made))
    source = value
    if not sharding(value, made).same_as(sharding(value, hub)):
        source = _reshard(sharded, value, value, made, hub, rename=is_output)
        for user, index in uses:
            user.replace_input_with(index, source)
    per_place: dict[Placement, ir.Value] = {}
    for user, index in uses:
        strategy = plan.choices.strategy.get(user)  # none in the body of an If, Loop or Scan
        place = REPLICATE if strategy is None else strategy.operands[index]
        if sharding(value, place).same_as(sharding(value, hub)):
            continue
        if place not in per_place:
            per_place[place] = _reshard(sharded, value, source, hub, place)
        user.replace_input_with(index, per_place[place])


def _hold(sharded: ShardedGraph, value: ir.Value, sharding: Sharding) -> None:
    if not sharding.is_replicated:
        sharded.shardings[value.name or ""] = sharding


def _reshard(
    sharded: ShardedGraph,
    value: ir.Value,
    operand: ir.Value,
    have: Placement,
    want: Placement,
    *,
    rename: bool = False,
) -> ir.Value:
    """Insert a Reshard behind `operand`; with `rename` it takes over the name as graph output."""
    plan, graph = sharded.plan, sharded.model.graph
    before, after = plan.space.sharding(value, have), plan.space.sharding(value, want)
    name = f"{value.name}/reshard_{len(sharded.reshards)}"
    texts = {"have": placement_text(before), "want": placement_text(after)}
    node = ir.node("Reshard", [operand], texts, domain=DOMAIN, version=VERSION, name=name)
    result = node.outputs[0]
    result.name, result.type, result.shape = name, operand.type, operand.shape
    producer = operand.producer()
    if producer is not None:
        producer.append(node)
    else:
        _prepend_to_graph(graph, node)
    sharded.reshards[name] = (before, after)
    sharded.shapes.dims[result] = sharded.shapes.dims.get(value, ())
    if rename:
        _take_output(sharded, operand, result)
    _hold(sharded, result, after)
    return result


def _prepend_to_graph(graph: ir.Graph, node: ir.Node) -> None:
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)


def _take_output(sharded: ShardedGraph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` be the graph output in place of `old`, under its name."""
    outputs, name = sharded.model.graph.outputs, old.name or ""
    for index, value in enumerate(outputs):
        if value is old:
            outputs[index] = new
    held = sharded.shardings.pop(name, None)
    old.name = f"{name}/before_reshard"
    if held is not None:
        sharded.shardings[old.name] = held
    new.name = name
