"""What a split amounts to: memory per rank, collectives, bytes on the wire, what stayed whole."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import onnx_ir as ir

from graph.dialect import is_collective, parse_node
from graph.dims import bind
from graph.errors import VerifyError
from graph.shapes import MAX_CONTENTS
from graph.weights import ShardTensor, bytes_of, is_index
from tpcore.annotations import NOT_ANNOTATED, Annotated, annotations_text
from tpcore.insert_reshards import ShardedGraph
from tpcore.plan import Plan
from tpcore.units import human_bytes, human_seconds
from tpcore.unsplit import NOTHING, READ_BY_BODY, why_whole

MAX_RANKS_SHOWN = 8
WORTH_HELP = 0.01
"""Share of all weights from which on a person is told what would help."""
SHOWN = 2
"""Names shown to a person per reason; programs get all."""


def split_report(sharded: ShardedGraph, ranks: Sequence[ir.Model]) -> dict[str, Any]:
    """The figures of `shard --json` and `inspect --json`.

    Bytes on the wire are lower bounds for the sizes the plan was made for (1 where symbolic).
    """
    by_source = _weights_by_source(sharded.model.graph)
    unsplit: list[dict[str, Any]] = []
    split_bytes = total = 0
    for values in by_source:
        size = _tensor_bytes(values[0].const_value)
        total += size
        for value in values:
            _check_covered(sharded, value)
        whole = [value for value in values if not sharded.held(value).splits]
        if whole:
            why = why_whole(sharded.plan, whole[0])
            unsplit.append({"name": whole[0].name, "bytes": size, **asdict(why)})
        else:
            split_bytes += size
    for value in _weights_of_bodies(sharded.model):
        size = _tensor_bytes(value.const_value)
        total += size
        unsplit.append({"name": value.name, "bytes": size, **asdict(READ_BY_BODY)})
    unsplit = [entry | {"share": entry["bytes"] / max(total, 1)} for entry in unsplit]
    unsplit.sort(key=lambda entry: -entry["bytes"])
    return {
        "world_size": sharded.mesh.size,
        "collectives": count_collectives(sharded.model),
        "comm_bytes_per_rank": comm_bytes(sharded),
        "weight_bytes_total": total,
        "weight_bytes_per_rank": [weight_bytes(model) for model in ranks],
        "split_fraction": split_bytes / total if total else 0.0,
        "unsplit": unsplit,
        "memory_per_rank": sharded.plan.memory.to_json(),
        "predicted": _predicted(sharded.plan),
        **_annotated(sharded.plan.annotated),
    }


def _predicted(plan: Plan) -> dict[str, float | bool]:
    choices = plan.choices
    return {
        "seconds": choices.seconds,
        "exchange_seconds": choices.exchange_seconds,
        "proven_cheapest": choices.is_cheapest,
    }


def _annotated(annotated: Annotated) -> dict[str, Any]:
    return {} if annotated == NOT_ANNOTATED else {"annotations": annotated.to_json()}


def _weights_by_source(graph: ir.Graph) -> list[list[ir.Value]]:
    found: dict[int, list[ir.Value]] = {}
    for value in graph.initializers.values():
        if value.const_value is not None and _is_weight(value.const_value):
            found.setdefault(id(value.const_value), []).append(value)
    return list(found.values())


def _weights_of_bodies(model: ir.Model) -> list[ir.Value]:
    """Weights that an If, Loop or Scan has of its own."""
    bodies = (graph for graph in model.graphs() if graph is not model.graph)
    values = (value for body in bodies for value in body.initializers.values())
    return [v for v in values if v.const_value is not None and _is_weight(v.const_value)]


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant counts as a weight: the small integers of shape arithmetic do not."""
    return not (is_index(tensor) and tensor.size <= MAX_CONTENTS)


def _tensor_bytes(tensor: ir.TensorProtocol | None) -> int:
    return 0 if tensor is None else bytes_of(tensor.dtype, tensor.size)


def _check_covered(sharded: ShardedGraph, value: ir.Value) -> None:
    """Refuse a split of which the ranks' parts together are less than the weight."""
    held = sharded.held(value)
    if held.splits and sum(held.fraction(rank) for rank in range(sharded.mesh.size)) < 1 - 1e-9:
        raise VerifyError(f"the ranks together hold less than the whole of weight '{value.name}'.")


def count_collectives(model: ir.Model) -> dict[str, int]:
    """Number of collectives per op."""
    return dict(Counter(node.op_type for node in model.graph if is_collective(node)))


def comm_bytes(sharded: ShardedGraph) -> int:
    """Lower bound of the bytes a rank sends per run."""
    total = 0.0
    for node in sharded.model.graph:
        if is_collective(node):
            value = node.outputs[0]
            dims = sharded.shapes.dims.get(value, ())
            count = math.prod(bind(size, sharded.plan.sizes) for size in dims)
            size = bytes_of(value.dtype, count)
            total += parse_node(node).bytes_sent(size, sharded.mesh.size)
    return round(total)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the weights of one rank; parts that are stored once count once."""
    parts = {
        tensor.key: _tensor_bytes(tensor)
        for value in model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ShardTensor) and _is_weight(tensor.source)
    }
    inside = (_tensor_bytes(value.const_value) for value in _weights_of_bodies(model))
    return sum(parts.values()) + sum(inside)


# --- for people -----------------------------------------------------------------------------------


def report_text(report: Mapping[str, Any]) -> str:
    """The report as a few lines for a terminal."""
    total, per_rank = report["weight_bytes_total"], report["weight_bytes_per_rank"]
    ranks = report["world_size"]
    largest = max(per_rank)
    share = f"{largest / total:.1%}" if total else "0%"
    collectives = ", ".join(f"{n} {op}" for op, n in sorted(report["collectives"].items()))
    lines = [
        f"ranks          {ranks}",
        f"weights        {human_bytes(total)} in all, {report['split_fraction']:.1%} of them split",
        f"per rank       {_per_rank_text(per_rank)}"
        f"  (largest {share}, 1/{ranks} = {1 / ranks:.1%})",
        f"collectives    {collectives or 'none'}",
        f"bytes sent     {human_bytes(report['comm_bytes_per_rank'])} per rank and run at least"
        " (symbolic dims count as 1 unless --shape says otherwise)",
        f"memory         {_memory_text(report['memory_per_rank'])}",
        f"predicted      {_predicted_text(report['predicted'])}",
    ]
    if "annotations" in report:
        lines += annotations_text(report["annotations"])
    return "\n".join(lines + _unsplit_lines(report["unsplit"]))


def _memory_text(memory: Mapping[str, int]) -> str:
    parts = {"weights": "weights", "states": "caches", "activations": "activations"}
    held = [f"{label} {human_bytes(memory[name])}" for name, label in parts.items() if memory[name]]
    return f"{human_bytes(memory['total'])} on the fullest rank: {', '.join(held) or 'nothing'}"


def _predicted_text(predicted: Mapping[str, float]) -> str:
    seconds = predicted["seconds"]
    share = predicted["exchange_seconds"] / seconds if seconds else 0.0
    proven = "" if predicted["proven_cheapest"] else "; a cheaper plan is not ruled out"
    return f"{human_seconds(seconds)} per run, {share:.0%} of it exchange{proven}"


def _per_rank_text(per_rank: Sequence[int]) -> str:
    if len(per_rank) > MAX_RANKS_SHOWN:
        return f"{human_bytes(min(per_rank))} to {human_bytes(max(per_rank))}"
    return ", ".join(human_bytes(size) for size in per_rank)


def _unsplit_lines(unsplit: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is whole, the same reasons together."""
    if not unsplit:
        return ["whole          nothing"]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in unsplit:
        groups.setdefault(re.sub(r" of node '.*'", "", entry["reason"]), []).append(entry)
    held = sum_bytes(unsplit)
    lines = [
        f"whole          {len(unsplit)} weights, {human_bytes(held)} on every rank,"
        f" {sum(entry['share'] for entry in unsplit):.1%} of all (--json: each with its reason)"
    ]
    for reason, entries in groups.items():
        names = ", ".join(str(entry["name"]) for entry in entries[:SHOWN])
        more = f", … ({len(entries)})" if len(entries) > SHOWN else ""
        lines += [
            f"  {human_bytes(sum_bytes(entries)):>9}  {reason}:",
            f"             {names}{more}",
        ]
        if entries[0]["help"] != NOTHING and sum(e["share"] for e in entries) >= WORTH_HELP:
            lines.append(f"             to split it, {entries[0]['help']}")
    return lines


def sum_bytes(entries: Sequence[Mapping[str, Any]]) -> int:
    """Total of the entries' bytes."""
    return sum(entry["bytes"] for entry in entries)
