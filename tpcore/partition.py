"""The journey of a model through tpcore, as a list of steps; each is one function in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from graph.annotations import take_annotations
from graph.canonicalize import canonicalize
from graph.errors import PlanError
from graph.reader import read_model
from graph.shapes import Shapes
from tpcore.annotations import ANNOTATED, Annotated, follow
from tpcore.insert_reshards import ShardedGraph, insert_reshards
from tpcore.legalize import legalize
from tpcore.localize import localize
from tpcore.manifest import MAIN
from tpcore.plan import AUTO, Plan
from tpcore.planner.asked import Asked, explain_contradiction
from tpcore.planner.elimination import Contradiction
from tpcore.planner.plans import Request, make_plans, problem_of
from tpcore.planner.topology_files import DEFAULT_TOPOLOGY, load_topology
from tpcore.simplify import simplify
from tpcore.text import graph_text, plan_text, sharded_text
from tpcore.workload import Work, decoder_works

Dump = Callable[[str, Callable[[], str]], None]


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    tp: int
    """Number of ranks."""
    plan: str = ANNOTATED
    """As the model's device annotations say, or one of `planner.plans.PRESETS`, or the path of a
    plan file or a file of pins."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of symbolic dims to plan for; those missing count as 1."""
    dump: Path | None = None
    """Folder to write the text after each step to."""
    memory: int | None = None
    """Bytes that a rank may hold."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of a decoder's workloads, {"prefill": 2048, "decode": 256}; none for one program."""
    topology: str = DEFAULT_TOPOLOGY
    """Name or path of what the ranks run on."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Pattern of names -> word or placement, see `tpcore.planner.steer`."""
    split_outputs: Sequence[str] = ()
    """Outputs of which every rank may keep its part, as sampling from logits allows."""

    @property
    def request(self) -> Request:
        """What is asked of the plan. Raises PlanError if there is no such topology.

        A rank may hold what the device has, where one is named and no budget is given.
        """
        topology = load_topology(self.topology)
        preset = AUTO if self.plan == ANNOTATED else self.plan
        memory = self.memory
        if memory is None and self.topology != DEFAULT_TOPOLOGY:
            memory = int(topology.device.memory_bytes)
        outputs = tuple(self.split_outputs)
        return Request(self.tp, preset, topology, memory, self.pins, split_outputs=outputs)


@dataclass(frozen=True)
class Canonical:
    """A model as plans are made for, before one is."""

    model: ir.Model
    shapes: Shapes
    works: Sequence[Work]
    annotated: Annotated
    request: Request
    """What is asked of the plan, by the user and by the model's annotations."""


def prepare(path: Path, options: Options) -> Canonical:
    """read → canonicalize → infer shapes, and the workloads asked for."""
    dump = _dumper(options.dump)
    model = read_model(path)
    dump("read", lambda: graph_text(model))
    annotations = take_annotations(model)
    model, shapes = canonicalize(model)
    dump("canonicalize", lambda: graph_text(model))
    works = [Work(sizes=options.sizes)]
    if options.tokens:
        works = decoder_works(model.graph, shapes, options.tokens, options.sizes)
    found = follow(annotations, model.graph, shapes, options.tp, options.plan, str(path))
    request = replace(options.request, asked=found.asked)
    return Canonical(model, shapes, works, found, request)


def plan_models(path: Path, options: Options) -> list[Plan]:
    """prepare → rules → plan; one plan per workload."""
    found = prepare(path, options)
    try:
        plans = make_plans(found.model, found.shapes, found.works, found.request)
    except Contradiction as error:
        raise _contradiction(found, error) from error
    plans = [replace(plan, annotated=found.annotated) for plan in plans]
    dump = _dumper(options.dump, start=2)
    for plan in plans:
        dump(_step("plan", plan), lambda plan=plan: plan_text(plan))  # type: ignore[misc]
    return plans


def _contradiction(found: Canonical, error: Contradiction) -> PlanError:
    """The error that tells which annotation takes part in a contradiction."""

    def solve(asked: Asked) -> None:
        request = replace(found.request, asked=asked)
        problem_of(found.model, found.shapes, found.works, request).solve(0.0)

    return explain_contradiction(found.request.asked, solve) if found.request.asked else error


def plan_model(path: Path, options: Options) -> Plan:
    """The plan for one workload."""
    return plan_models(path, options)[0]


def _step(name: str, plan: Plan) -> str:
    """Name of a step's file; of several programs each has its own."""
    return name if plan.work.name == MAIN else f"{name}_{plan.work.name}"


def shard_plan(plan: Plan, options: Options) -> ShardedGraph:
    """insert reshards → legalize to collectives → simplify."""
    dump = _dumper(options.dump, start=3)
    sharded = insert_reshards(plan)
    dump(_step("insert_reshards", plan), lambda: sharded_text(sharded))
    sharded = legalize(sharded)
    dump(_step("legalize", plan), lambda: sharded_text(sharded))
    sharded = simplify(sharded)
    dump(_step("simplify", plan), lambda: sharded_text(sharded))
    for rank in range(plan.mesh.size if options.dump else 0):
        _dump_rank(dump, sharded, rank)
    return sharded


def _dump_rank(dump: Dump, sharded: ShardedGraph, rank: int) -> None:
    step = _step(f"localize_rank{rank}", sharded.plan)
    dump(step, lambda: graph_text(localize(sharded, rank)))


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
