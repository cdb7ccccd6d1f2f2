"""Make plans: problem, price of memory, solution, and what to say where nothing fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graph.dims import Expr
from graph.errors import PlanError
from graph.mesh import Mesh
from graph.shapes import Shapes
from graph.weights import is_index
from tpcore.factors import solve_factors
from tpcore.plan import AUTO, Plan, read_pins
from tpcore.planner.asked import NOTHING_ASKED, Asked, ask
from tpcore.planner.cost import SHARED_MEMORY_CPU, CostModel, default_price
from tpcore.planner.memory import Fitted, MemoryUse, fit
from tpcore.planner.options import Choices, find_states, options_of, pin, placement_text
from tpcore.planner.problem import Problem, Workload
from tpcore.planner.steer import COLWISE, REPLICATE, ROWWISE, all_weights, resolve
from tpcore.planner.topology import Topology
from tpcore.reshard import ReshardKind
from tpcore.strategies import StrategySpace
from tpcore.units import human_bytes
from tpcore.workload import Work

MEGATRON = "megatron"
PRESETS = (AUTO, MEGATRON, COLWISE, ROWWISE, REPLICATE)
"""The cheapest plan; the one that exchanges by AllReduce; and, of all weights, one way to hold."""
AVOIDED_SECONDS, PARTIAL_SECONDS = 1.0, 1e-5
"""What a collective costs that should not be used, and a partial value that is passed on."""
MOST_RANKS = 4096
"""Where the search for a number of ranks that fits ends."""


@dataclass(frozen=True)
class Request:
    """What is asked of a plan."""

    ranks: int
    preset: str = AUTO
    """One of PRESETS, or the path of a plan file or of a file of pins."""
    topology: Topology = SHARED_MEMORY_CPU
    memory: int | None = None
    """Bytes that a rank may hold."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Pattern of names -> word or placement, see `tpcore.planner.steer`."""
    asked: Asked = NOTHING_ASKED
    """What the model's annotations ask of single nodes and values."""
    split_outputs: tuple[str, ...] = ()
    """Outputs of which every rank may keep its part of the last dim."""


def make_plan(
    model: ir.Model,
    shapes: Shapes,
    ranks: int,
    *,
    preset: str = AUTO,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """Plan the split of a canonical model over `ranks` ranks for one workload; see `make_plans`."""
    return make_plans(model, shapes, [Work(sizes=dict(sizes or {}))], Request(ranks, preset))[0]


def make_plans(
    model: ir.Model, shapes: Shapes, works: Sequence[Work], request: Request
) -> list[Plan]:
    """Plan a canonical model for several workloads at once: they hold weights and states alike.

    Every plan has a model of its own, with the same weights.

    Raises:
        PlanError: there are more ranks than any dim allows, the plan file does not fit, or nothing
            fits into the memory allowed.
    """
    for work in works:
        _check_sizes(shapes, work.sizes)
    copies = [_copy(model, shapes) for _ in works[1:]]
    price = price_of(model, shapes, works, request)
    baseline = {MEGATRON: _by_all_reduce, COLWISE: _all_one_way, ROWWISE: _all_one_way}
    if request.preset in baseline:
        pins = baseline[request.preset](model, shapes, works, request, price)
        request = replace(request, preset=AUTO, pins=pins)
    problem = problem_of(model, shapes, works, request)
    fitted = fit(problem, price, request.memory)
    if request.memory is not None and fitted.memory.total > request.memory:
        raise PlanError(_too_little(model, shapes, works, request, fitted.memory))
    plans = [_plan(model, shapes, problem, fitted, works[0])]
    for choices, (own, own_shapes), work in zip(fitted.choices[1:], copies, works[1:], strict=True):
        held = replace(request, preset=AUTO, pins=_texts(problem, choices))
        again = problem_of(own, own_shapes, [work], held)
        plans.append(_plan(own, own_shapes, again, Fitted(again.solve(0.0), fitted.memory), work))
    return plans


def _costs(shapes: Shapes, request: Request, sizes: Mapping[str, int]) -> CostModel:
    return CostModel(request.topology, shapes, request.ranks, {**shapes.equal, **sizes})


def price_of(model: ir.Model, shapes: Shapes, works: Sequence[Work], request: Request) -> float:
    """Seconds that holding a byte costs, for all runs together."""
    return sum(
        work.runs * default_price(model.graph, _costs(shapes, request, work.sizes))
        for work in works
    )


def _by_all_reduce(
    model: ir.Model, shapes: Shapes, works: Sequence[Work], request: Request, price: float
) -> dict[str, str]:
    """Placements of the plan that exchanges by AllReduce wherever it can, as Megatron-LM does.

    Outputs made from what every rank holds are gathered, as its logits are: to sum parts of them
    would send twice as much.
    """
    links = tuple(
        replace(
            link,
            alpha_seconds={
                kind: seconds if kind is ReshardKind.ALL_REDUCE else seconds + AVOIDED_SECONDS
                for kind, seconds in link.alpha_seconds.items()
            },
            measured={},
        )
        for link in request.topology.links
    )
    topology = replace(request.topology, links=links)
    problem = problem_of(model, shapes, works, replace(request, preset=AUTO, topology=topology))
    _prefer_sums(problem)
    choices = problem.solve(price)[0]
    outputs = {v for v in model.graph.outputs if _is_cut_from_whole(problem.space, choices, v)}
    outputs -= set(problem.states.values())
    if outputs:
        for (maker, made), table in problem.graph.pairs.items():
            if made[1] in outputs:
                avoided = AVOIDED_SECONDS * works[maker[0]].runs
                gathered = np.isfinite(table) & (table >= avoided)
                problem.graph.pairs[maker, made] = np.where(gathered, table - avoided, table)
        choices = problem.solve(price)[0]
    return _texts(problem, choices)


def _prefer_sums(problem: Problem) -> None:
    """Sum partial values where they are made, all else being equal: so the AllReduce is theirs."""
    for value, hubs in problem.options.hubs.items():
        partial_ones = [problem.space.sharding(value, hub).is_partial for hub in hubs]
        problem.graph.unary[problem.key(0, value)] += PARTIAL_SECONDS * np.array(partial_ones)


def _is_cut_from_whole(space: StrategySpace, choices: Choices, value: ir.Value) -> bool:
    """Whether parts that are summed to this value stem from one that all ranks hold, by cuts alone.

    The parts of a row-split weight's input that a column-split weight has made do not.
    """
    node, matrices = value.producer(), 0
    while node is not None:
        held = choices.strategy[node].operands
        pairs = [(v, h) for v, h in zip(node.inputs, held) if v is not None]
        parts = [v for v, h in pairs if not space.sharding(v, h).is_replicated]
        made = [v for v in parts if v.const_value is None]
        matrices += any(_is_matrix(v) for v in parts)
        if not made or matrices > 1:
            return False
        if any(space.sharding(v, choices.hub[v]).is_replicated for v in made):
            return True
        node = made[0].producer()
    return False


def _is_matrix(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) >= 2


def _all_one_way(
    model: ir.Model, shapes: Shapes, works: Sequence[Work], request: Request, price: float
) -> dict[str, str]:
    """Placements of the plan that holds as many weights as it can as the preset's name says."""
    problem = problem_of(model, shapes, works, replace(request, preset=AUTO))
    space, options = problem.space, problem.options
    wanted = all_weights(space, options, request.preset)
    for value, hubs in options.hubs.items():
        text = wanted.get(value.name or "")
        if text is not None:
            held = [placement_text(space.sharding(value, hub)).split(" ")[0] for hub in hubs]
            problem.graph.unary[problem.key(0, value)] += AVOIDED_SECONDS * (np.array(held) != text)
    return _texts(problem, problem.solve(price)[0])


def _texts(problem: Problem, choices: Choices) -> dict[str, str]:
    """Every value's placement."""
    return {
        value.name or "": placement_text(problem.space.sharding(value, hub))
        for value, hub in choices.hub.items()
    }


def _plan(model: ir.Model, shapes: Shapes, problem: Problem, fitted: Fitted, work: Work) -> Plan:
    choices = fitted.choices[0]
    return Plan(
        mesh=Mesh.of(tp=problem.space.ranks),
        model=model,
        shapes=shapes,
        space=problem.space,
        choices=choices,
        pinned=problem.pinned,
        names={value: value.name or "" for value in choices.hub},
        states=problem.states,
        memory=fitted.memory,
        work=work,
    )


def problem_of(model: ir.Model, shapes: Shapes, works: Sequence[Work], request: Request) -> Problem:
    """The planning problem of a canonical model.

    Raises:
        PlanError: there are more ranks than any dim allows, or what is prescribed does not fit.
    """
    nothing: list[ir.Value] | None = [] if request.preset == REPLICATE else None
    space = StrategySpace(model.graph, solve_factors(model.graph, shapes), request.ranks, nothing)
    _check_ranks(space, model, request.ranks)
    states = find_states(model.graph)
    _check_outputs(model.graph, request.split_outputs)
    options = options_of(space, states, request.split_outputs)
    pins = {**_preset_pins(space, options, request), **resolve(space, options, request.pins)}
    pin(space, options, pins)
    ask(space, options, request.asked)
    cost = partial(_costs, shapes, request)
    workloads = [
        Workload(cost(work.sizes), work.runs, cost(work.memory_sizes) if work.longest else None)
        for work in works
    ]
    return Problem.of(space, workloads, options, states, pins)


def _preset_pins(space: StrategySpace, options: Choices, request: Request) -> dict[str, str]:
    if request.preset == AUTO:
        return {}
    if request.preset == REPLICATE:
        return all_weights(space, options, request.preset)
    values, patterns = read_pins(Path(request.preset), request.ranks)
    return {**values, **resolve(space, options, patterns)}


def _copy(model: ir.Model, shapes: Shapes) -> tuple[ir.Model, Shapes]:
    """The same model once more, for a plan of its own; weights are shared."""
    copy = model.clone()
    pairs = list(zip(_values(model.graph), _values(copy.graph), strict=True))
    dims = {new: shapes.dims[old] for old, new in pairs if old in shapes.dims}
    contents = {new: shapes.contents[old] for old, new in pairs if old in shapes.contents}
    return copy, replace(shapes, dims=dims, contents=contents)


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


# --- what cannot be -------------------------------------------------------------------------------


def _too_little(
    model: ir.Model,
    shapes: Shapes,
    works: Sequence[Work],
    request: Request,
    least: MemoryUse,
) -> str:
    """The sentence for a budget that no plan keeps to: by how much, and which number of ranks."""
    budget = request.memory or 0
    needed = (
        f"weights {human_bytes(least.weights)}, cache {human_bytes(least.states)}, activations "
        f"{human_bytes(least.activations)}"
    )
    enough = _enough_ranks(model, shapes, works, request)
    advice = (
        f"The smallest number of ranks that fits is {enough}."
        if enough
        else (
            "No larger number of ranks fits either: allow more, or give smaller sizes with --shape."
        )
    )
    return (
        f"no plan over tp={request.ranks} fits into {human_bytes(budget)} per rank: the one that "
        f"holds least takes {human_bytes(least.total)} ({needed}), "
        f"{human_bytes(least.total - budget)} too much. {advice}"
    )


def _enough_ranks(
    model: ir.Model, shapes: Shapes, works: Sequence[Work], request: Request
) -> int | None:
    """The smallest number of ranks whose leanest plan keeps to the budget, by bisection."""

    def fits(ranks: int) -> bool:
        try:
            problem = problem_of(
                model, shapes, works, replace(request, ranks=ranks, preset=AUTO, pins={})
            )
        except PlanError:
            return False  # more ranks than any dim allows
        return fit(problem, 1.0, None).memory.total <= (request.memory or 0)

    low, high = request.ranks, 2 * request.ranks
    while not fits(high):
        low, high = high, 2 * high
        if high > MOST_RANKS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _check_sizes(shapes: Shapes, sizes: Mapping[str, int]) -> None:
    known = {
        name
        for dims in shapes.dims.values()
        for size in dims
        if isinstance(size, Expr)
        for name in size.symbols
    }
    for name in sizes:
        if name not in known:
            raise PlanError(
                f"--shape names '{name}', which is no dim of the model. "
                f"Symbolic dims of this model: {', '.join(sorted(known)) or 'none'}."
            )


def _check_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    known = [value.name or "" for value in graph.outputs]
    unknown = [f"'{name}'" for name in names if name not in known]
    if unknown:
        raise PlanError(
            f"--keep-split names {' and '.join(unknown)}, which is no output of the model. "
            f"Outputs of this model: {', '.join(known)}."
        )


def _check_ranks(space: StrategySpace, model: ir.Model, ranks: int) -> None:
    if ranks == 1 or space.chains:
        return
    sizes = {
        (int(size), v.name)
        for v in model.graph.initializers.values()
        if _is_matrix(v) and not is_index(v.const_value)  # type: ignore[arg-type]
        for size in v.const_value.shape.numpy()  # type: ignore[union-attr]
    }
    if not sizes:
        return  # nothing to split: every rank computes the whole graph, and the report says so
    largest, name = max(sizes)
    if largest >= ranks:
        return  # what stands in the way is something else: the report gives each weight's reason
    raise PlanError(
        f"cannot split over tp={ranks}: the largest dim of any weight is {largest} (of '{name}'), "
        f"and {ranks} ranks would leave some of them without a part. Choose tp up to {largest}."
    )
