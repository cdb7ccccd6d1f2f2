"""The cases of the collectives: op, element type, size, layout, memory order, number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from graph.dialect import (
    REDUCTIONS,
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    ReduceScatter,
)
from graph.layout import Layout, box_of, take_box

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.int64, np.bool_)
MIB = 1 << 20
ODD_BYTES = 1001
SIZES_BYTES = (0, 1, ODD_BYTES, 16 << 10, MIB)
"""Bytes of an operand, rounded up to whole elements: empty, one, odd, both sides of a limit."""
CHUNKS_BYTES = 4 * MIB + 4099
"""More than one chunk, and a rest."""
BIG_BYTES, BIG_RANKS = 64 * MIB, 2
"""Once for each collective, in float32, on so many ranks."""
LAYOUTS = ("even", "uneven", "packed", "overlapping", "empty")
_PERIOD = 65_537
"""A prime, so that no chunk and no part repeats what another one has."""


@dataclass(frozen=True)
class Case:
    """A collective and the operands of all ranks."""

    name: str
    make: Callable[[], tuple[Collective, list[np.ndarray]]]
    again: bool = False
    """Whether to run it a second time, with operands that must not change."""


def collective_cases(ranks: int) -> list[Case]:
    """All cases for a number of ranks."""
    makers = (_all_reduces, _all_gathers, _reduce_scatters, _all_to_alls, _broadcasts)
    return [case for make in makers for case in make(ranks)] + list(_strided(ranks))


def layout(kind: str, ranks: int, unit: int = 1) -> Layout:
    """A layout of one dim over `ranks` ranks; `unit` makes all ranges that much longer."""
    if kind == "even":
        return Layout.even(6 * unit * ranks, ranks)
    if kind == "uneven":
        return Layout.even(3 * unit * ranks + max(1, ranks // 2), ranks)
    if kind == "empty":
        return Layout((((0, 5 * unit),), *((),) * (ranks - 1)))
    if kind == "overlapping":
        held = [(r // 2 * 3 * unit, (r // 2 * 3 + 3) * unit) for r in range(ranks)]
        return Layout(tuple((one,) for one in held))
    half, n = 2 * ranks * unit, unit
    firsts = [(2 * r * n, (2 * r + 2) * n) for r in range(ranks)]
    return Layout(
        tuple((one, (half + 3 * r * n, half + (3 * r + 3) * n)) for r, one in enumerate(firsts))
    )


def values(shape: Sequence[int], dtype: Any, seed: int) -> np.ndarray:
    """Sign-changing values with rounding in every sum, the same in every process."""
    count = int(np.prod(shape))
    return np.resize(_period(np.dtype(dtype), seed), count).reshape(shape)


@cache
def _period(dtype: np.dtype[Any], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype == np.bool_:
        return np.asarray(random.integers(0, 2, size=_PERIOD)).astype(dtype)
    if dtype.kind == "i":
        return np.asarray(random.integers(-1000, 1000, size=_PERIOD)).astype(dtype)
    scales = 10.0 ** random.integers(-2, 3, size=_PERIOD)
    return np.asarray(random.normal(size=_PERIOD) * scales).astype(dtype)


def _count(size_bytes: int, dtype: Any) -> int:
    return math.ceil(size_bytes / int(np.dtype(dtype).itemsize))


def _sized(name: str, size_bytes: int, make: Any) -> Case:
    return Case(f"{name} {_text(size_bytes)}", make, again=size_bytes == ODD_BYTES)


def _text(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes % MIB == 0 < size_bytes else f"{size_bytes} B"


def _name(*parts: object) -> str:
    texts = [np.dtype(part).name if isinstance(part, type) else str(part) for part in parts]
    return " ".join(text for text in texts if text)


def _each(op: Collective, shape: Sequence[int], dtype: Any, ranks: int) -> Any:
    """Operands of one shape on all ranks."""
    return lambda: (op, [values(shape, dtype, rank) for rank in range(ranks)])


def _all_reduces(ranks: int) -> Iterator[Case]:
    for reduce in REDUCTIONS:
        op = AllReduce("tp", reduce)
        sizes = (*SIZES_BYTES, CHUNKS_BYTES) if reduce == "sum" else SIZES_BYTES
        for dtype in DTYPES:
            for size in sizes:
                make = _each(op, [_count(size, dtype)], dtype, ranks)
                yield _sized(_name("AllReduce", reduce, dtype), size, make)
    for dims in [(), (1,), (3, 0), (2, 3, 5)]:
        op = AllReduce("tp")
        yield Case(_name("AllReduce of shape", dims), _each(op, dims, np.float32, ranks))
    yield Case("AllReduce of float16 rounds once", lambda: _rounding(ranks))
    if ranks == BIG_RANKS:
        shape = [_count(BIG_BYTES, np.float32)]
        yield Case("AllReduce sum 64 MiB", _each(AllReduce("tp"), shape, np.float32, ranks))


def _rounding(ranks: int) -> tuple[Collective, list[np.ndarray]]:
    """2048 + 1 is no float16: summing in 16 bits would lose every one."""
    parts = [np.full(3, 1 if rank else 2048, np.float16) for rank in range(ranks)]
    assert AllReduce("tp").meaning(parts)[0][0] == np.float16(np.float32(2047 + ranks))
    return AllReduce("tp"), parts


def _broadcasts(ranks: int) -> Iterator[Case]:
    for dtype in DTYPES:
        for size in (*SIZES_BYTES, CHUNKS_BYTES):
            for root in {0, ranks - 1} if size > 1001 else range(ranks):
                make = _each(Broadcast("tp", root), [_count(size, dtype)], dtype, ranks)
                yield _sized(_name("Broadcast from", root, dtype), size, make)
    if ranks == BIG_RANKS:
        shape = [_count(BIG_BYTES, np.float32)]
        yield Case("Broadcast 64 MiB", _each(Broadcast("tp", 1), shape, np.float32, ranks))


def _gather(
    dims: Sequence[int], layouts: Sequence[Layout], dtype: Any, shape: Sequence[int]
) -> Any:
    """The parts of a whole; its size on `dims` is that of the layouts."""

    def make() -> tuple[Collective, list[np.ndarray]]:
        sizes = {dim: held.global_size for dim, held in zip(dims, layouts)}
        whole = values([sizes.get(dim, size) for dim, size in enumerate(shape)], dtype, 7)
        boxes = [box_of(dims, layouts, rank, len(shape)) for rank in range(layouts[0].ranks)]
        parts = [np.ascontiguousarray(take_box(whole, box)) for box in boxes]
        op = AllGather("tp", tuple(dims), tuple(layouts))
        assert op.assemble(parts).tobytes() == whole.tobytes()
        return op, parts

    return make


def _all_gathers(ranks: int) -> Iterator[Case]:
    for dtype in DTYPES:
        for kind in LAYOUTS:
            held = layout(kind, ranks)
            for dim in range(3):
                name = _name("AllGather on dim", dim, kind, dtype)
                yield Case(name, _gather([dim], [held], dtype, [3, 3, 3]))
        for size in SIZES_BYTES:
            held = layout("uneven", ranks)
            rows = _count(size, dtype) // held.global_size + (size > 0)
            make = _gather([1], [held], dtype, [rows, 0])
            yield _sized(_name("AllGather of", dtype), size, make)
    whole = Layout((((0, 2),),) * ranks)
    boxes = _gather([0, 1], [whole, layout("uneven", ranks)], np.float32, [0, 0, 3])
    yield Case("AllGather of boxes", boxes)
    if ranks == BIG_RANKS:
        held = layout("uneven", ranks, BIG_BYTES // (64 * ranks))
        yield Case("AllGather 64 MiB", _gather([0], [held], np.float32, [0, 5]))


def _reduce_scatters(ranks: int) -> Iterator[Case]:
    for dtype in DTYPES:
        for reduce in REDUCTIONS:
            for kind in LAYOUTS:
                held = layout(kind, ranks)
                op = ReduceScatter("tp", (1,), (held,), reduce)
                name = _name("ReduceScatter", reduce, kind, dtype)
                yield Case(name, _each(op, [3, held.global_size, 2], dtype, ranks))
        for size in SIZES_BYTES:
            held = layout("uneven", ranks)
            rows = _count(size, dtype) // held.global_size + (size > 0)
            op = ReduceScatter("tp", (0,), (held,))
            make = _each(op, [held.global_size, rows], dtype, ranks)
            yield _sized(_name("ReduceScatter of", dtype), size, make)
    if ranks == BIG_RANKS:
        held = layout("uneven", ranks)
        op = ReduceScatter("tp", (0,), (held,))
        shape = [held.global_size, BIG_BYTES // 4 // held.global_size]
        yield Case("ReduceScatter 64 MiB", _each(op, shape, np.float32, ranks))


def _move(split: Layout, concat: Layout, dtype: Any, middle: int) -> Any:
    """Parts of a whole that is split on its last dim and is to be split on its first."""

    def make() -> tuple[Collective, list[np.ndarray]]:
        op = AllToAll("tp", 0, 2, split, concat)
        whole = values([split.global_size, middle, concat.global_size], dtype, 5)
        boxes = [box_of([2], [concat], rank, 3) for rank in range(concat.ranks)]
        return op, [np.ascontiguousarray(take_box(whole, box)) for box in boxes]

    return make


def _all_to_alls(ranks: int) -> Iterator[Case]:
    for dtype in DTYPES:
        for split in ("even", "uneven", "packed", "empty"):
            for concat in ("even", "uneven", "packed"):
                layouts = layout(split, ranks), layout(concat, ranks)
                name = _name("AllToAll", concat, "to", split, dtype)
                yield Case(name, _move(*layouts, dtype, 3))
        for size in SIZES_BYTES:
            layouts = layout("uneven", ranks), layout("even", ranks)
            cells = layouts[0].global_size * layouts[1].global_size
            middle = _count(size, dtype) // cells + (size > 0)
            yield _sized(_name("AllToAll of", dtype), size, _move(*layouts, dtype, middle))
    if ranks == BIG_RANKS:
        layouts = layout("uneven", ranks), layout("even", ranks)
        middle = BIG_BYTES // 4 // (layouts[0].global_size * layouts[1].global_size)
        yield Case("AllToAll 64 MiB", _move(*layouts, np.float32, middle))


def _strided(ranks: int) -> Iterator[Case]:
    """Operands whose elements do not lie one after the other."""
    held = layout("uneven", ranks)
    n = held.global_size
    for op in (
        AllReduce("tp"),
        Broadcast("tp", ranks - 1),
        ReduceScatter("tp", (1,), (held,)),
    ):
        whole = _each(op, [4, n, 3], np.float32, ranks)
        yield Case(_name(op.op_type, "of transposed operands"), _transposed(whole), True)
    gather = _gather([1], [held], np.float32, [4, 0, 3])
    yield Case("AllGather of transposed operands", _transposed(gather), True)
    move = _move(held, layout("even", ranks), np.float32, 3)
    yield Case("AllToAll of transposed operands", _transposed(move), True)


def _transposed(make: Any) -> Any:
    """The same operands, stored last dim first."""

    def stored() -> tuple[Collective, list[np.ndarray]]:
        op, parts = make()
        return op, [np.asfortranarray(part) for part in parts]

    return stored
