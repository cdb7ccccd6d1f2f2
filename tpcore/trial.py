"""One node on its own: what it computes unsplit, and what its ranks compute when it is split."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dims import bind
from graph.infer import infer_shapes
from graph.interpret import interpret
from graph.layout import Layout, box_of, take_box
from graph.mesh import Mesh
from graph.shapes import Shapes
from graph.zero_points import count_zero_points
from tpcore.atoms import Atom, Item
from tpcore.factors import solve_factors
from tpcore.insert_reshards import ShardedGraph, insert_reshards
from tpcore.legalize import legalize
from tpcore.localize import localize
from tpcore.plan import Plan
from tpcore.planner.options import Choices, placement_text
from tpcore.sharding import DimSplit, Placement, Sharding, split_dim
from tpcore.simplify import simplify
from tpcore.strategies import Strategy, StrategySpace

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-4
"""Of the largest absolute value of the unsplit result, for floating-point results."""


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


Held = dict[ir.Value, Sharding]


@dataclass(frozen=True)
class Trial:
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
    def of(cls, case: Case, ranks: int) -> Trial:
        """Build the model of a case and run it unsplit."""
        model = build_model(case)
        node = model.graph[0]
        inputs = {f"x{i}": case.operands[i] for i in _inputs_of(case)}
        arrays = {name: array for name, array in inputs.items() if array is not None}
        (wanted,) = interpret([model], [arrays])
        if not case.symbols:
            for value in node.outputs:
                array = np.asarray(wanted[value.name or ""])
                value.dtype, value.shape = (
                    ir.DataType.from_numpy(array.dtype),
                    ir.Shape(array.shape),
                )
        count_zero_points(model.graph)
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
            ", ".join("-" if v is None else placement_text(held[v]) for v in side) for side in sides
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
        inputs = [{name: p[rank] for name, p in parts.items()} for rank in ranks]
        with np.errstate(all="ignore"):  # parts of a sum may lie outside of an op's domain
            return interpret(models, inputs)

    def parts(self, whole: Array, value: ir.Value, held: Sharding) -> list[Array]:
        """What the ranks hold of an operand."""
        ranks = range(self.space.ranks)
        if held.is_partial:
            random = np.random.default_rng(zlib.crc32((value.name or "").encode()))
            parts = [
                np.asarray(random.standard_normal(whole.shape), whole.dtype) for _ in ranks[1:]
            ]
            return [np.asarray(whole - sum(parts), whole.dtype), *parts]
        return [self.part(whole, value, held, rank) for rank in ranks]

    def part(self, whole: Array, value: ir.Value, held: Sharding, rank: int) -> Array:
        """What `rank` holds of a value that is sharded or replicated."""
        layouts = held.layouts or tuple(self._bound_layout(value, s, held) for s in held.splits)
        return take_box(whole, box_of(held.dims, layouts, rank, whole.ndim)).copy(order="C")

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
    return [i for i, a in enumerate(case.operands) if a is not None and i not in case.constants]


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
        values.append(
            ir.Value(name=f"x{i}", type=ir.TensorType(dtype), shape=shape, const_value=tensor)
        )
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
