"""What ONNX Runtime's own tests of distributed ops and collectives ask for, asked of our planner.

Each row is one of their cases: an op, its operands, how they and the result are held. Held so, the
op must be split right by every strategy it has, and those that exchange least often must be able
to do with what the last column says. `S0` is split on the first dim; `S0/2` is their device mesh
[0, 1, 0, 1], where every rank holds two ranges. Cases that ask for ranges which our splits never
have are listed with None: such a request is refused, not run wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import product

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from backends.comm_local import run_together
from backends.segments import collectives_of
from graph.dialect import AllGather, AllReduce, AllToAll
from graph.layout import Layout, box_of, take_box
from tpcore.insert_reshards import insert_reshards
from tpcore.legalize import legalize
from tpcore.localize import localize
from tpcore.planner.options import Choices, placement_text
from tpcore.sharding import REPLICATE, Placement
from tpcore.simplify import simplify
from tpcore.trial import Array, Case, Trial

RANKS = 2


@dataclass(frozen=True)
class Asked:
    """One case."""

    name: str
    case: Case
    held: tuple[str, ...]
    """How operands that are no constants, then the result, are held."""
    collectives: str | None
    """The fewest exchanges it can do with; None where we have no such ranges."""


def numbers(*shape: int) -> Array:
    return np.random.default_rng(shape).integers(-4, 5, size=shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def matmul(x: Array, w: Array, *held: str, collectives: str) -> Asked:
    return Asked(f"MatMul {' '.join(held)}", Case("MatMul", (x, w)), held, collectives)


def one(
    op: str, x: Array, *constants: Array, held: str, collectives: str | None = "", **attributes: int
) -> Asked:
    """An op of one operand, and shapes or axes as constants."""
    places = tuple(range(1, len(constants) + 1))
    case = Case(op, (x, *constants), attributes, constants=places)
    given = " ".join(map(str, [list(x.shape), *(c.tolist() for c in constants)]))
    return Asked(f"{op} {given} {held}", case, tuple(held.split(" ")), collectives)


def reshape(
    before: tuple[int, ...], after: tuple[int, ...], held: str, collectives: str | None = ""
) -> Asked:
    shape = integers(*after)
    return one("Reshape", numbers(*before), shape, held=held, collectives=collectives)


def reduce(op: str, axis: int, held: str, collectives: str = "") -> Asked:
    return one(op, numbers(8, 4), integers(axis), held=held, collectives=collectives, keepdims=1)


CASES = [
    matmul(numbers(2, 4), numbers(4, 2), "S1", "S0", "R", collectives="AllReduce"),
    matmul(numbers(2, 4), numbers(4, 2), "S1", "S1", "R", collectives="AllGather AllGather"),
    matmul(numbers(2, 4), numbers(4, 2), "S1", "S1", "S1", collectives="AllGather"),
    matmul(numbers(2, 2, 4), numbers(4, 2), "S0", "R", "S0", collectives=""),
    matmul(numbers(2, 2, 4), numbers(1, 2, 4, 2), "S0", "R", "S1", collectives=""),
    matmul(numbers(4, 2), numbers(2, 2), "S0", "S1", "R", collectives="AllGather AllGather"),
    matmul(numbers(4, 2), numbers(2, 4), "R", "S1", "S1", collectives=""),
    matmul(numbers(4, 2), numbers(2, 6), "R", "S0", "R", collectives="AllReduce"),
    one("Slice", numbers(2, 4), integers(0), integers(2), integers(1), held="S0 S0"),
    one(
        "Slice",
        numbers(2, 4),
        integers(0),
        integers(2),
        integers(1),
        held="S1 S1",
        collectives=None,
    ),
    reshape((2, 3), (6,), "S0 S0"),
    reshape((2, 4), (8,), "S1 S0/2"),
    reshape((2, 3, 5), (2, 15), "S0 S0"),
    reshape((2, 4, 5), (2, 20), "S1 S1"),
    reshape((2, 3, 6), (2, 18), "S2 S1/3"),
    reshape((6,), (2, 3), "S0 S0"),
    reshape((16,), (1, 16), "S0 S1"),
    reshape((16,), (2, 8), "S0 S0"),
    reshape((16,), (4, 4), "S0 S0"),
    reshape((16,), (8, 2), "S0 S0"),
    reshape((16,), (16, 1), "S0 S0"),
    reshape((16,), (1, 16), "S0/2 S1/2", None),
    reshape((16,), (2, 8), "S0/2 S1"),
    reshape((16,), (4, 4), "S0/2 S0/2", None),
    reshape((16,), (8, 2), "S0/2 S0/2", None),
    reshape((16,), (16, 1), "S0/2 S0/2", None),
    reshape((21, 4096), (3, 7, 4096), "S1 S2"),
    reshape((3, 7, 4096), (3, 7, 64, 64), "S2 S2"),
    reshape((3, 7, 4096), (21, 4096), "R R"),
    reshape((21, 4096), (3, 7, 4096), "R R"),
    reshape((3, 64, 7, 64), (192, 7, 64), "S1 S0/3"),
    reshape((192, 7, 7), (3, 64, 7, 7), "S0/3 S1"),
    reshape((3, 64, 7, 7), (192, 7, 7), "S1 S0/3"),
    reshape((192, 7, 64), (3, 64, 7, 64), "S0/3 S1"),
    reshape((3, 7, 64, 64), (3, 7, 4096), "S2 S2"),
    reshape((3, 7, 4096), (21, 4096), "S2 S1"),
    one("Expand", numbers(8, 1), integers(8, 4), held="R S1"),
    one("Expand", numbers(8, 1), integers(8, 8), held="R S1/2", collectives=None),
    one("Expand", numbers(8, 1), integers(1, 4), held="R R"),
    one("Expand", numbers(8, 1), integers(1, 4), held="S0 S0"),
    one("Expand", numbers(2, 4, 256, 4), integers(2, 4, 256, 4), held="S1 S1"),
    *(reduce(op, 0, "R R") for op in ("ReduceSum", "ReduceMax", "ReduceMean")),
    *(reduce(op, 1, "S0 S0") for op in ("ReduceSum", "ReduceMax", "ReduceMean")),
    # Kernels that they have without a test:
    one("Unsqueeze", numbers(4, 6), integers(1), held="S1 S2"),
    one("Squeeze", numbers(4, 1, 6), integers(1), held="S2 S1"),
    one("Softmax", numbers(4, 6), held="S0 S0", axis=1),
    one("Softmax", numbers(4, 6), held="S1 R", collectives="AllGather", axis=1),
    reduce("ReduceSum", 0, "S0 R", "AllReduce"),
]


def text_of(held: str, shape: tuple[int, ...]) -> str:
    """`S1/2` of a value as a placement of ours."""
    match = re.fullmatch(r"S(\d)(?:/(\d))?", held)
    if match is None:
        return held
    dim, repeats = int(match[1]), int(match[2] or 1)
    pieces = Layout.even(shape[dim], RANKS * repeats).ranges
    parts = ["+".join(f"{a}:{b}" for ((a, b),) in pieces[r::RANKS]) for r in range(RANKS)]
    return f"S({dim}) {' '.join(parts)}"


def pins_of(trial: Trial, asked: Asked) -> dict[ir.Value, Placement] | None:
    """The placement of every value that the case asks for; None if one of them is none of ours."""
    values = [*trial.model.graph.inputs, *trial.node.outputs]
    pins: dict[ir.Value, Placement] = dict.fromkeys(trial.values, REPLICATE)
    for value, held in zip(values, asked.held, strict=True):
        wanted = text_of(held, value.shape.numpy())  # type: ignore[union-attr]
        places = [Placement("S", chain) for chain in trial.space.chains]
        known = {placement_text(trial.space.sharding(value, place)): place for place in places}
        known["R"] = REPLICATE
        if wanted not in known:
            return None
        pins[value] = known[wanted]
    return pins


@pytest.mark.parametrize("asked", CASES, ids=lambda asked: asked.name)
def test_a_case_of_onnx_runtime(asked: Asked) -> None:
    trial = Trial.of(asked.case, RANKS)
    if pins_of(trial, asked) is None:
        assert asked.collectives is None, "none of our placements"
        return
    count = len(trial.space.strategies(trial.node))
    exchanged = [run_by(asked, index) for index in range(count)]
    fewest = min(len(ops) for ops in exchanged)
    assert asked.collectives in {" ".join(ops) for ops in exchanged if len(ops) == fewest}


def run_by(asked: Asked, index: int) -> list[str]:
    """Run a case by one of the op's strategies, check the results; what it exchanges."""
    trial = Trial.of(asked.case, RANKS)  # a plan that is carried out changes its graph
    pins = pins_of(trial, asked)
    assert pins is not None
    held = {value: trial.space.sharding(value, place) for value, place in pins.items()}
    strategy = trial.space.strategies(trial.node)[index]
    plan = trial.plan(Choices(strategy={trial.node: strategy}, hub=pins))
    (result,) = trial.node.outputs
    name = result.name or ""
    sharded = simplify(legalize(insert_reshards(plan)))
    for rank, results in enumerate(trial.run(sharded, held)):
        wanted = trial.part(trial.wanted[name], result, held[result], rank)
        np.testing.assert_allclose(
            results[name], wanted, rtol=1e-5, atol=1e-5, err_msg=strategy.name
        )
    return sorted(node.op_type for node in collectives_of(localize(sharded, 0)))


def test_the_table_has_all_of_their_cases() -> None:
    counts = Counter(asked.case.op_type for asked in CASES)
    assert counts["MatMul"] == 8 and counts["Slice"] == 2
    assert counts["Reshape"] == 26 and counts["Expand"] == 5
    assert sum(asked.collectives is None for asked in CASES) == 6


# --- collectives ----------------------------------------------------------------------------------

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_)
EACH = [pytest.param(ranks, dtype, id=f"{ranks} {np.dtype(dtype).name}")
        for ranks, dtype in product((2, 4), TYPES)]  # fmt: skip


@pytest.mark.parametrize(("ranks", "dtype"), EACH)
def test_all_reduce_of_ones(ranks: int, dtype: type) -> None:
    ones: list[Array] = [np.ones((128, 128), dtype) for _ in range(ranks)]
    for result in run_together(AllReduce("tp"), ones):
        assert (result == np.array(1 if dtype is np.bool_ else ranks, dtype)).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("ranks", "dtype"), EACH)
def test_all_gather_of_what_each_rank_is(ranks: int, dtype: type, axis: int) -> None:
    parts: list[Array] = [np.full((128, 128), rank, dtype) for rank in range(ranks)]
    op = AllGather("tp", (axis,), (Layout.even(128 * ranks, ranks),))
    for result in run_together(op, parts):
        assert result.tobytes() == np.concatenate(parts, axis).tobytes()


@pytest.mark.parametrize(("ranks", "dtype"), EACH)
def test_all_to_all_of_what_each_rank_is(ranks: int, dtype: type) -> None:
    """Theirs moves blocks of the first dim only: the ranks' blocks, one after the other."""
    layout = Layout.even(8, ranks)
    rows = Layout.even(8 * ranks, ranks)
    op = AllToAll("tp", 1, 0, layout, rows)
    parts: list[Array] = [np.full((8, 8), rank, dtype) for rank in range(ranks)]
    whole = np.concatenate(parts)
    for rank, result in enumerate(run_together(op, parts)):
        assert result.tobytes() == take_box(whole, box_of([1], [layout], rank, 2)).tobytes()
