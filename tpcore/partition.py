"""The journey of a model through tpcore, as a list of steps; each is one function in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graph.canonicalize import canonicalize
from graph.errors import GraphError
from graph.reader import read_model
from tpcore.insert_reshards import ShardedGraph, insert_reshards
from tpcore.legalize import legalize
from tpcore.localize import localize
from tpcore.plan import Plan, make_plan
from tpcore.simplify import simplify
from tpcore.text import graph_text, plan_text, sharded_text

MIN_OPSET = 13
"""Before this opset axes are attributes and Softmax has another meaning."""

Dump = Callable[[str, Callable[[], str]], None]


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    tp: int
    """Number of ranks."""
    plan: str = "auto"
    """`auto`, `replicate` or the path of a plan file."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of symbolic dims to plan for; those missing count as 1."""
    dump: Path | None = None
    """Folder to write the text after each step to."""


def plan_model(path: Path, options: Options) -> Plan:
    """read → canonicalize → infer shapes → rules → plan."""
    dump = _dumper(options.dump)
    model = read_model(path)
    dump("read", lambda: graph_text(model))
    _check_opset(path, model)
    model, shapes = canonicalize(model)
    dump("canonicalize", lambda: graph_text(model))
    plan = make_plan(model, shapes, options.tp, preset=options.plan, sizes=options.sizes)
    dump("plan", lambda: plan_text(plan))
    return plan


def _check_opset(path: Path, model: ir.Model) -> None:
    opset = model.opset_imports.get("", MIN_OPSET)
    if opset < MIN_OPSET:
        raise GraphError(
            f"'{path}' uses opset {opset}, and models are split from opset {MIN_OPSET} on. "
            f"Convert it with onnx.version_converter.convert_version(model, {MIN_OPSET})."
        )


def shard_plan(plan: Plan, options: Options) -> ShardedGraph:
    """insert reshards → legalize to collectives → simplify."""
    dump = _dumper(options.dump, start=3)
    sharded = insert_reshards(plan)
    dump("insert_reshards", lambda: sharded_text(sharded))
    sharded = legalize(sharded)
    dump("legalize", lambda: sharded_text(sharded))
    sharded = simplify(sharded)
    dump("simplify", lambda: sharded_text(sharded))
    for rank in range(plan.mesh.size if options.dump else 0):
        _dump_rank(dump, sharded, rank)
    return sharded


def _dump_rank(dump: Dump, sharded: ShardedGraph, rank: int) -> None:
    dump(f"localize_rank{rank}", lambda: graph_text(localize(sharded, rank)))


def partition(path: Path, options: Options) -> ShardedGraph:
    """All steps that concern all ranks; `localize` then makes the graph of each."""
    return shard_plan(plan_model(path, options), options)


def rank_models(sharded: ShardedGraph) -> list[ir.Model]:
    """The graphs of all ranks."""
    return [localize(sharded, rank) for rank in range(sharded.mesh.size)]


def _dumper(folder: Path | None, start: int = 0) -> Dump:
    if folder is None:
        return lambda step, text: None
    folder.mkdir(parents=True, exist_ok=True)
    count = start

    def dump(step: str, text: Callable[[], str]) -> None:
        nonlocal count
        (folder / f"{count:02d}_{step}.txt").write_text(text())
        count += 1

    return dump
