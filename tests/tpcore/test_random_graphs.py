"""Random graphs of common ops, split and whole: what no rule by itself can get wrong.

A failure prints the graph; `random_graph(seed)` makes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.small import Array, run_whole, small_model, weight
from tests.tpcore.lockstep import TOLERANCE, SplitRunner, relative_difference
from tpcore.partition import Options
from tpcore.shard import split_model

SEEDS = range(40)
SIZES = (2, 6, 12)
INPUT = weight(*SIZES)

Shape = tuple[int, ...]


class Graph:
    """ONNX text that grows node by node."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}
        self.values: list[tuple[str, Shape]] = [("x", SIZES)]

    def weight(self, *shape: int) -> str:
        """A new weight that keeps what it multiplies near its size."""
        array = weight(*shape, seed=len(self.weights))
        return self.constant(array / np.sqrt(np.float32(shape[0] if len(shape) > 1 else 1)))

    def ints(self, *entries: int) -> str:
        return self.constant(np.array(entries, np.int64))

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def add(self, expression: str, *shapes: Shape) -> None:
        """A node with one result per shape."""
        names = [f"v{len(self.values) + i}" for i in range(len(shapes))]
        self.lines.append(f"    {', '.join(names)} = {expression}")
        self.values += zip(names, shapes, strict=True)

    def like(self, shape: Shape) -> str:
        """Some value of this shape."""
        return self.random.choice([name for name, other in self.values if other == shape])

    def dim(self, shape: Shape) -> int:
        return self.random.randrange(len(shape))

    @property
    def text(self) -> str:
        """The whole graph: its last value is an output, and now and then another."""
        outputs = [self.values[-1]]
        if self.random.random() < 0.4:
            outputs.append(self.random.choice(self.values[1:-1]))
        sizes = "b, s, 12" if self.random.random() < 0.5 else "2, 6, 12"
        typed = [f"float[{', '.join('?' for _ in shape)}] {name}" for name, shape in outputs]
        return "\n".join([f"(float[{sizes}] x) => ({', '.join(typed)}) {{", *self.lines, "}"])


def matmul(g: Graph, v: str, shape: Shape) -> None:
    columns = g.random.choice([8, 10, 12, 24])
    g.add(f"MatMul({v}, {g.weight(shape[-1], columns)})", (*shape[:-1], columns))


def bias(g: Graph, v: str, shape: Shape) -> None:
    g.add(f"Add({v}, {g.weight(shape[-1])})", shape)


def unary(g: Graph, v: str, shape: Shape) -> None:
    g.add(f"{g.random.choice(['Relu', 'Neg', 'Tanh'])}({v})", shape)


def binary(g: Graph, v: str, shape: Shape) -> None:
    g.add(f"{g.random.choice(['Add', 'Sub', 'Mul'])}({v}, {g.like(shape)})", shape)


def norm(g: Graph, v: str, shape: Shape) -> None:
    scale, shift = g.weight(shape[-1]), g.weight(shape[-1])
    g.add(f"LayerNormalization <axis = -1> ({v}, {scale}, {shift})", shape)


def softmax(g: Graph, v: str, shape: Shape) -> None:
    g.add(f"Softmax <axis = {g.dim(shape)}> ({v})", shape)


def transpose(g: Graph, v: str, shape: Shape) -> None:
    perm = g.random.sample(range(len(shape)), len(shape))
    g.add(f"Transpose <perm = {perm}> ({v})", tuple(shape[dim] for dim in perm))


def split_a_dim(g: Graph, v: str, shape: Shape) -> None:
    dim = g.dim(shape)
    major = g.random.choice([size for size in (2, 3, 4, 6, 1) if shape[dim] % size == 0])
    result = (*shape[:dim], major, shape[dim] // major, *shape[dim + 1 :])
    g.add(f"Reshape({v}, {g.ints(*result)})", result)


def merge_two_dims(g: Graph, v: str, shape: Shape) -> None:
    if len(shape) > 2:
        dim = g.random.randrange(len(shape) - 1)
        result = (*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :])
        g.add(f"Reshape({v}, {g.ints(*result)})", result)


def split(g: Graph, v: str, shape: Shape) -> None:
    dim = g.dim(shape)
    if shape[dim] > 1:
        first = g.random.choice([shape[dim] // 2, g.random.randint(1, shape[dim] - 1)])
        parts = first, shape[dim] - first
        shapes = [(*shape[:dim], part, *shape[dim + 1 :]) for part in parts]
        g.add(f"Split <axis = {dim}> ({v}, {g.ints(*parts)})", *shapes)


def concat(g: Graph, v: str, shape: Shape) -> None:
    dim = g.dim(shape)
    rest = shape[:dim], shape[dim + 1 :]
    fit = [(n, s) for n, s in g.values if len(s) == len(shape) and (s[:dim], s[dim + 1 :]) == rest]
    other, sizes = g.random.choice(fit)
    if shape[dim] + sizes[dim] <= 64:
        result = (*shape[:dim], shape[dim] + sizes[dim], *shape[dim + 1 :])
        g.add(f"Concat <axis = {dim}> ({v}, {other})", result)


def cut(g: Graph, v: str, shape: Shape) -> None:
    dim = g.dim(shape)
    start = g.random.randrange(shape[dim])
    stop = g.random.randint(start + 1, shape[dim])
    bounds = ", ".join(g.ints(bound) for bound in (start, stop, dim))
    g.add(f"Slice({v}, {bounds})", (*shape[:dim], stop - start, *shape[dim + 1 :]))


def gather(g: Graph, v: str, shape: Shape) -> None:
    dim = g.dim(shape)
    indices = [g.random.randrange(-shape[dim], shape[dim]) for _ in range(g.random.randint(1, 5))]
    result = (*shape[:dim], len(indices), *shape[dim + 1 :])
    g.add(f"Gather <axis = {dim}> ({v}, {g.ints(*indices)})", result)


def reduce(g: Graph, v: str, shape: Shape) -> None:
    op, dim = g.random.choice(["ReduceMean", "ReduceSum", "ReduceMax"]), g.dim(shape)
    g.add(f"{op} ({v}, {g.ints(dim)})", (*shape[:dim], 1, *shape[dim + 1 :]))


OPS: list[Callable[[Graph, str, Shape], None]] = [
    *([matmul] * 6),
    *([bias, unary, binary] * 2),
    *(norm, softmax, transpose, split_a_dim, merge_two_dims, split, concat, cut, gather, reduce),
]


def random_graph(seed: int, fewest: int = 4, most: int = 14) -> Graph:
    """So many ops, each on one of the last four values, and a MatMul in the end."""
    graph = Graph(seed)
    for _ in range(graph.random.randint(fewest, most)):
        value, shape = graph.random.choice(graph.values[-4:])
        graph.random.choice(OPS)(graph, value, shape)
    matmul(graph, *graph.values[-1])
    return graph


@pytest.mark.parametrize("seed", SEEDS)
def test_split_equals_whole(seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed)
    text = graph.text
    print(text)
    compare(small_model(text, **graph.weights), tmp_path)


def compare(model: ir.Model, folder: Path) -> None:
    """Run a model whole, and split over 2 and 3 ranks."""
    want = run_whole(model, {"x": INPUT})
    scale = max(1.0, *(float(np.abs(array).max(initial=0)) for array in want.values()))
    ir.save(model, folder / "model.onnx")
    for ranks in (2, 3):
        got = SplitRunner(split_model(folder / "model.onnx", Options(ranks))).run({"x": INPUT})
        assert relative_difference(got, want) <= TOLERANCE * scale, ranks


def test_a_sum_over_a_dim_that_is_split_in_part(tmp_path: Path) -> None:
    """Every rank holds all of the segment from x: a sum over the ranks would count it twice."""
    text = """(float[2, 6, 12] x) => (float[2, 6, 7] y) {
        h = MatMul(x, w1)
        c = Concat <axis = 2> (h, x)
        p = MatMul(c, w2)
        m = Mul(p, x)
        z, y = Split <axis = 2> (m, parts)
    }"""
    weights = {"w1": weight(12, 24) / 3, "w2": weight(36, 12) / 6, "parts": np.array([5, 7])}
    compare(small_model(text, **weights), tmp_path)
