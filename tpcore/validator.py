"""Prove the sharding rule of an op against the op itself.

A case is one node with its operands. Every strategy its rule generates is run split, through the same
steps a model goes through, and compared with the unsplit node: a rule is *wrong* where they differ.
Then every placement of operands and results is tried whatever the rule says; those that happen to be
right and are no strategy are *missing*. Data is random and of both signs and a partial operand is a
sum of unlike parts, since equal or positive parts hide ops that are not linear.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dims import bind
from graph.interpret import interpret
from graph.layout import Layout, box_of, take_box
from graph.mesh import Mesh
from graph.shapes import Shapes, infer_shapes
from tpcore.atoms import Atom, Item
from tpcore.factors import solve_factors
from tpcore.insert_reshards import ShardedGraph, insert_reshards
from tpcore.legalize import legalize
from tpcore.localize import localize
from tpcore.ops import OPS
from tpcore.plan import Plan
from tpcore.planner.problem import Choices, placement_text
from tpcore.sharding import SUM, WHOLE, Chain, DimSplit, Placement, Sharding, split_dim
from tpcore.simplify import simplify
from tpcore.strategies import Strategy, StrategySpace

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-4
"""Of the largest absolute value of the unsplit result, for floating-point results."""
MAX_TRIALS = 400
"""Placements tried per case; a case with more has its missing strategies not looked for."""

KNOWN_MISSING: tuple[tuple[str, str, str], ...] = ()
"""(op, pattern of the missing placement, why it is not offered)."""


@dataclass(frozen=True)
class Case:
    """One node with its operands."""

    op_type: str
    operands: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    outputs: int = 1
    constants: tuple[int, ...] = ()
    """Operands whose contents are part of the model: shapes, axes, bounds. They are never split."""
    symbols: Mapping[int, tuple[int | str, ...]] = field(default_factory=dict)
    """Operand -> its shape with symbolic dims, as a dynamic model declares it."""
    opset: int = 24

    def __str__(self) -> str:
        shapes = [
            "-" if array is None else f"{array.dtype}{list(self.symbols.get(i, array.shape))}"
            for i, array in enumerate(self.operands)
        ]
        attributes = [f"{name}={value}" for name, value in self.attributes.items()]
        return f"{self.op_type}({', '.join([*shapes, *attributes])})"


@dataclass(frozen=True)
class Findings:
    """What the validator found for one case on a number of ranks."""

    case: Case
    ranks: int
    strategies: tuple[str, ...]
    """Placements of every strategy that was run."""
    wrong: tuple[str, ...]
    """Strategies whose result differs, with the numbers."""
    missing: tuple[str, ...]
    """Placements that would be right, are no strategy and have no known reason."""
    excused: tuple[str, ...]
    """Missing placements with the reason why they are not offered."""
    trials: int
    """Placements tried beside the strategies."""
    not_tried: str = ""
    """Why missing strategies were not looked for."""

    @property
    def is_clean(self) -> bool:
        """Whether the rule is right and complete."""
        return not self.wrong and not self.missing

    def __str__(self) -> str:
        lines = [f"{self.case} on {self.ranks} ranks: {len(self.strategies)} strategies"]
        for title in ("wrong", "missing", "excused"):
            lines += [f"  {title}: {text}" for text in getattr(self, title)]
        return "\n".join(lines + ([f"  not tried: {self.not_tried}"] if self.not_tried else []))


def validate(case: Case, ranks: int) -> Findings:
    """Run every strategy of the case's node on `ranks` ranks, and look for missing ones.

    Raises:
        GraphError: the unsplit node itself does not run.
    """
    trial = _Trial.of(case, ranks)
    offered: dict[str, str | None] = {}
    for strategy in trial.space.strategies(trial.node):
        held = trial.shardings_of(strategy)
        offered[trial.text(held)] = trial.problem_with(strategy)
    wrong = [f"{text}: {problem}" for text, problem in offered.items() if problem]
    found, excused, trials, not_tried = _search(trial, set(offered))
    return Findings(
        case, ranks, tuple(offered), tuple(wrong), found, excused, trials, not_tried
    )


# --- one node, whole and split --------------------------------------------------------------------

Held = dict[ir.Value, Sharding]


@dataclass(frozen=True)
class _Trial:
    """A model of one node, what it computes unsplit, and the ways to split it."""

    model: ir.Model
    node: ir.Node
    shapes: Shapes
    inputs: Mapping[str, Array]
    wanted: Mapping[str, Array]
    space: StrategySpace
    sizes: Mapping[str, int]
    """Sizes of the symbolic dims."""

    @classmethod
    def of(cls, case: Case, ranks: int) -> _Trial:
        """Build the model of a case and run it unsplit."""
        model = build_model(case)
        node = model.graph[0]
        inputs = {f"x{i}": case.operands[i] for i in _inputs_of(case)}
        arrays = {name: array for name, array in inputs.items() if array is not None}
        (wanted,) = interpret([model], [arrays])
        if not case.symbols:
            for value in node.outputs:
                array = np.asarray(wanted[value.name or ""])
                value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        shapes = infer_shapes(model)
        splittable = [v for v in (*node.inputs, *node.outputs) if v is not None]
        factors = solve_factors(model.graph, shapes)
        space = StrategySpace(model.graph, factors, ranks, splittable)
        return cls(model, node, shapes, arrays, wanted, space, _sizes_of(case))

    @property
    def values(self) -> list[ir.Value]:
        """Operands, then results."""
        return [v for v in (*self.node.inputs, *self.node.outputs) if v is not None]

    def plan(self, choices: Choices) -> Plan:
        """A plan of these choices."""
        mesh = Mesh.of(tp=self.space.ranks)
        return Plan(mesh, self.model, self.shapes, self.space, choices)

    def places_of(self, strategy: Strategy) -> dict[ir.Value, Placement]:
        """Placement of every operand and result."""
        places = [*strategy.operands, *strategy.results]
        values = [*self.node.inputs, *self.node.outputs]
        return {v: place for v, place in zip(values, places, strict=True) if v is not None}

    def shardings_of(self, strategy: Strategy) -> Held:
        """How every operand and result is held."""
        return {v: self.space.sharding(v, p) for v, p in self.places_of(strategy).items()}

    def text(self, held: Held) -> str:
        """Placements in words: `R, S(0) 0:4 4:8 -> P(sum)`."""
        sides = (self.node.inputs, self.node.outputs)
        texts = [
            ", ".join("-" if v is None else placement_text(held[v]) for v in side)
            for side in sides
        ]
        return " -> ".join(texts)

    def problem_with(self, strategy: Strategy) -> str | None:
        """What is wrong with the results of a strategy, None if they are right."""
        choices = Choices(strategy={self.node: strategy}, hub=self.places_of(strategy))
        try:
            sharded = simplify(legalize(insert_reshards(self.plan(choices))))
            results = self.run(sharded, self.shardings_of(strategy))
        except Exception as error:  # whatever fails, it is this strategy that is wrong
            return f"{type(error).__name__}: {error}"
        return self.difference(self.shardings_of(strategy), results)

    def run(self, sharded: ShardedGraph, held: Held) -> list[dict[str, Array]]:
        """Results of all ranks."""
        ranks = range(self.space.ranks)
        models = [localize(sharded, rank) for rank in ranks]
        parts = {
            v.name or "": self.parts(self.inputs[v.name or ""], v, held[v])
            for v in self.model.graph.inputs
        }
        return interpret(models, [{name: p[rank] for name, p in parts.items()} for rank in ranks])

    def parts(self, whole: Array, value: ir.Value, held: Sharding) -> list[Array]:
        """What the ranks hold of an operand."""
        ranks = range(self.space.ranks)
        if held.is_partial:
            random = np.random.default_rng(zlib.crc32((value.name or "").encode()))
            parts = [random.standard_normal(whole.shape).astype(whole.dtype) for _ in ranks[1:]]
            return [np.asarray(whole - sum(parts), whole.dtype), *parts]
        return [self.part(whole, value, held, rank) for rank in ranks]

    def part(self, whole: Array, value: ir.Value, held: Sharding, rank: int) -> Array:
        """What `rank` holds of a value that is sharded or replicated."""
        layouts = held.layouts or tuple(self._bound_layout(value, s, held) for s in held.splits)
        return np.ascontiguousarray(take_box(whole, box_of(held.dims, layouts, rank, whole.ndim)))

    def _bound_layout(self, value: ir.Value, split: DimSplit, held: Sharding) -> Layout:
        """Index ranges of a dim at the actual sizes of symbolic dims."""
        items = _bound_items(self.space.factors.normal_dims(value)[split.dim], self.sizes)
        chain = held.placement.chain
        bound = split_dim(split.dim, items, chain) if chain is not None else None
        if bound is None or bound.layout is None:
            raise ValueError(f"dim {split.dim} of '{value.name}' has no ranges")
        return bound.layout

    def difference(self, held: Held, results: Sequence[Mapping[str, Array]]) -> str | None:
        """The first difference of the ranks' results from the unsplit ones, with the numbers."""
        for value in self.node.outputs:
            name = value.name or ""
            parts, whole = [np.asarray(r[name]) for r in results], self.wanted[name]
            if held[value].is_partial:
                shapes = {part.shape for part in parts}
                if shapes != {whole.shape}:
                    return f"'{name}' has parts of shapes {sorted(shapes)}, not {whole.shape}"
                if problem := _unlike(np.asarray(sum(parts)), whole, f"sum of '{name}'"):
                    return problem
                continue
            for rank, part in enumerate(parts):
                wanted = self.part(whole, value, held[value], rank)
                if problem := _unlike(part, wanted, f"'{name}' on rank {rank}"):
                    return problem
        return None


def _unlike(got: Array, want: Array, label: str) -> str | None:
    if got.shape != want.shape:
        return f"{label} has shape {list(got.shape)}, should have {list(want.shape)}"
    if not np.issubdtype(want.dtype, np.floating):
        count = int(np.count_nonzero(got != want))
        return f"{label} differs in {count} of {want.size} elements" if count else None
    finite = np.isfinite(want)
    scale = max(1.0, float(np.abs(want[finite]).max(initial=0)))
    with np.errstate(invalid="ignore"):
        same = np.isclose(got, want, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
        worst = float(np.abs(got - want)[finite].max(initial=0))
    return None if same.all() else f"{label} is off by {worst:.3g} of {scale:.3g}"


def _inputs_of(case: Case) -> list[int]:
    return [
        i for i, a in enumerate(case.operands) if a is not None and i not in case.constants
    ]


def build_model(case: Case) -> ir.Model:
    """A model of the case's node alone."""
    values: list[ir.Value | None] = []
    constants = []
    for i, array in enumerate(case.operands):
        if array is None:
            values.append(None)
            continue
        dtype = ir.DataType.from_numpy(array.dtype)
        tensor = ir.tensor(array, name=f"x{i}") if i in case.constants else None
        shape = ir.Shape(case.symbols.get(i, array.shape))
        values.append(ir.Value(name=f"x{i}", type=ir.TensorType(dtype), shape=shape, const_value=tensor))
        constants += [values[-1]] if tensor is not None else []
    node = ir.node(
        case.op_type, values, case.attributes, domain=case.domain, num_outputs=case.outputs,
        name=case.op_type,
    )  # fmt: skip
    for i, out in enumerate(node.outputs):
        out.name = f"y{i}"
    inputs = [v for i, v in enumerate(values) if i in _inputs_of(case) and v is not None]
    graph = ir.Graph(
        inputs,
        node.outputs,
        nodes=[node],
        initializers=[v for v in constants if v is not None],
        opset_imports={"": case.opset, "com.microsoft": 1},
        name=case.op_type,
    )
    return ir.Model(graph, ir_version=10)


def _sizes_of(case: Case) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for index, dims in case.symbols.items():
        array = case.operands[index]
        if array is not None:
            sizes |= {d: n for d, n in zip(dims, array.shape, strict=True) if isinstance(d, str)}
    return sizes


def _bound_items(items: tuple[Item, ...], sizes: Mapping[str, int]) -> tuple[Item, ...]:
    return tuple(
        tuple(_bound_items(segment, sizes) for segment in item)
        if isinstance(item, tuple)
        else item if isinstance(item.size, int) else Atom(bind(item.size, sizes))
        for item in items
    )  # fmt: skip


# --- missing strategies ---------------------------------------------------------------------------


def _search(
    trial: _Trial, offered: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...], int, str]:
    """Try all placements of one split dim per value that are not offered."""
    options = [_options(trial, value) for value in trial.values]
    count = len(list(itertools.islice(itertools.product(*options), MAX_TRIALS + 1)))
    if count > MAX_TRIALS:
        return (), (), 0, f"more than {MAX_TRIALS} placements of its operands and results"
    missing, excused, trials = [], [], 0
    for places in _right_placements(trial, options):
        text = trial.text(places)
        if text in offered:
            continue
        reason = _reason(trial.node.op_type, text)
        excused.append(f"{text}: {reason}") if reason else missing.append(text)
    return tuple(missing), tuple(excused), count, ""


def _reason(op_type: str, text: str) -> str | None:
    for op, pattern, reason in KNOWN_MISSING:
        if op == op_type and re.fullmatch(pattern, text):
            return reason
    return None


def _options(trial: _Trial, value: ir.Value) -> list[Sharding]:
    """Replicated, partial, or split evenly on one dim."""
    if value.const_value is not None or value.dtype is None:
        return [WHOLE]
    dims = trial.shapes.dims.get(value, ())
    options = [WHOLE, SUM] if value.dtype.is_floating_point() else [WHOLE]
    for dim, size in enumerate(dims):
        if isinstance(size, int) and size >= trial.space.ranks:
            layout = Layout.even(size, trial.space.ranks)
            split = DimSplit(dim, size, tuple(layout.sizes), layout)
            options.append(Sharding(Placement("S"), (split,)))
    return options


def _right_placements(trial: _Trial, options: list[list[Sharding]]) -> Iterator[Held]:
    """All placements whose results are right; the node is localized for each of them."""
    node, operands = trial.node, len([v for v in trial.node.inputs if v is not None])
    spec = OPS.get((node.domain, node.op_type))
    results = list(itertools.product(*options[operands:]))
    for given in itertools.product(*options[:operands]):
        if spec is None or spec.localize is None:
            ran = _try(trial, dict(zip(trial.values, given)))
            outcomes = [(made, ran) for made in results]
        else:
            outcomes = [(m, _try(trial, dict(zip(trial.values, (*given, *m))))) for m in results]
        for made, outcome in outcomes:
            held = dict(zip(trial.values, (*given, *made), strict=True))
            if outcome is not None and trial.difference(held, outcome) is None:
                yield held


def _try(trial: _Trial, held: Held) -> list[dict[str, Array]] | None:
    """Results of all ranks, None where the placement makes the op fail."""
    sharded = ShardedGraph(
        trial.model, Mesh.of(tp=trial.space.ranks), trial.shapes, trial.plan(Choices())
    )
    sharded.shardings = {v.name or "": s for v, s in held.items() if not s.is_replicated}
    sharded.chains = {trial.node.name or "": _chain(trial, held)}
    try:
        return trial.run(sharded, held)
    except Exception:  # the ranks' shapes do not fit each other, one way or another
        return None


def _chain(trial: _Trial, held: Held) -> Chain:
    """The major atom of a split dim, by which attributes that hold sizes are made local."""
    for value, sharding in held.items():
        for dim in sharding.dims:
            items = trial.space.factors.normal_dims(value)[dim]
            if items and isinstance(items[0], Atom) and isinstance(items[0].size, int):
                return Chain((items[0],), trial.space.ranks)
    return Chain((), trial.space.ranks)
