"""If, Loop and Scan: Python runs their bodies, which are modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from .plain_dims import Dims
from .tensors import Tensor

if TYPE_CHECKING:
    from .lower import Lowering

Body = Callable[..., tuple[Any, ...]]


def run_if(
    condition: Any, yes: Body, no: Body, for_yes: tuple[Any, ...], for_no: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The results of one of two bodies."""
    return yes(*for_yes) if bool(first_of(condition)) else no(*for_no)


def run_loop(
    body: Body,
    trips: int | None,
    condition: Any,
    state: tuple[Tensor, ...],
    outer: tuple[Any, ...],
    empty: Sequence[tuple[tuple[int, ...], Any]],
) -> tuple[Any, ...]:
    """Run a body on its own results; what it makes beside them is stacked."""
    going, step = condition is None or bool(first_of(condition)), 0
    rows: list[list[Tensor]] = [[] for _ in empty]
    count = len(state)
    while going and (trips is None or step < trips):
        going, *results = body(step, going, *state, *outer)
        state, step, going = tuple(results[:count]), step + 1, bool(going)
        for row, made in zip(rows, results[count:]):
            row.append(made)
    stacks = [_stacked(row, 0, *of) for row, of in zip(rows, empty)]
    return (*state, *stacks)


def run_scan(
    body: Body,
    state: tuple[Tensor, ...],
    scanned: tuple[Tensor, ...],
    outer: tuple[Any, ...],
    empty: Sequence[tuple[tuple[int, ...], Any]],
    axes: Sequence[tuple[int, int]],
    made_axes: Sequence[tuple[int, int]],
) -> tuple[Any, ...]:
    """Run a body along dims of tensors; axes are pairs of dim and direction (1 is backwards)."""
    rows: list[list[Tensor]] = [[] for _ in empty]
    length, count = scanned[0].shape[axes[0][0]], len(state)
    for step in range(length):
        parts = [
            x.select(dim, length - 1 - step if back else step)
            for x, (dim, back) in zip(scanned, axes)
        ]
        results = body(*state, *parts, *outer)
        state = tuple(results[:count])
        for row, made in zip(rows, results[count:]):
            row.append(made)
    stacks = [
        _stacked(row[::-1] if back else row, dim, *of)
        for row, (dim, back), of in zip(rows, made_axes, empty)
    ]
    return (*state, *stacks)


def _stacked(rows: list[Tensor], dim: int, shape: tuple[int, ...], dtype: Any) -> Tensor:
    return torch.stack(rows, dim) if rows else torch.empty((0, *shape), dtype=dtype)


def lower_if(lowering: Lowering, node: ir.Node) -> None:
    """A call of `run_if`."""
    condition = node.inputs[0]
    bodies, arguments = [], []
    for name in ("then_branch", "else_branch"):
        inner = lowering.child(node.attributes[name].as_graph())
        bodies.append(_body(lowering, inner))
        arguments.append(_outer(lowering, inner))
    held = lowering.find(condition) if condition is not None else None
    asked = lowering.plain(held) if held is not None else True
    _hold(lowering, node, lowering.call(run_if, (asked, *bodies, *arguments)))


def lower_loop(lowering: Lowering, node: ir.Node) -> None:
    """A call of `run_loop`."""
    graph = node.attributes["body"].as_graph()
    inner = lowering.child(graph)
    for place, value in enumerate(graph.inputs):
        inner.add_input(value, Dims(0) if place < 2 else None)
    trips, condition = (
        None if value is None else _number(lowering, value) for value in node.inputs[:2]
    )
    state = _tensors(lowering, node.inputs[2:])
    body = _body(lowering, inner, plain_first=True)
    empty = _empty(lowering, graph.outputs[1 + len(state) :])
    arguments = (body, trips, condition, state, _outer(lowering, inner), empty)
    _hold(lowering, node, lowering.call(run_loop, arguments))


def lower_scan(lowering: Lowering, node: ir.Node) -> None:
    """A call of `run_scan`."""
    graph = node.attributes["body"].as_graph()
    inner = lowering.child(graph)
    for value in graph.inputs:
        inner.add_input(value)
    scanned = node.attributes["num_scan_inputs"].as_int()
    states = len(node.inputs) - scanned
    made = graph.outputs[states:]
    body = _body(lowering, inner)
    arguments = (
        body,
        _tensors(lowering, node.inputs[:states]),
        _tensors(lowering, node.inputs[states:]),
        _outer(lowering, inner),
        _empty(lowering, made),
        _axes(node, "scan_input", scanned),
        _axes(node, "scan_output", len(made)),
    )
    _hold(lowering, node, lowering.call(run_scan, arguments))


def _axes(node: ir.Node, kind: str, count: int) -> tuple[tuple[int, int], ...]:
    def each(what: str) -> Sequence[int]:
        name = f"{kind}_{what}"
        return node.attributes[name].as_ints() if name in node.attributes else [0] * count

    return tuple(zip(each("axes"), each("directions")))


def _body(lowering: Lowering, inner: Lowering, plain_first: bool = False) -> Any:
    """The module of a lowered body, as a node of the graph around it."""
    inner.run()
    outputs = []
    for place, value in enumerate(inner.onnx.outputs):
        held = inner.find(value)
        if place == 0 and plain_first:
            outputs.append(held.plain if held.dims is not None else inner.tensor(held))
        else:
            outputs.append(inner.tensor(held))
    return lowering.attribute("body", inner.finish(outputs))


def _outer(lowering: Lowering, inner: Lowering) -> tuple[Any, ...]:
    """What a body reads of the graph around it."""
    return tuple(
        held.plain if held.dims is not None else lowering.tensor(held, held.wide)
        for held in inner.captured
    )


def _number(lowering: Lowering, value: ir.Value) -> Any:
    plain = lowering.plain(lowering.find(value))
    held = lowering.find(value)
    is_list = held.dims is not None and held.dims.rank == 1
    return lowering.call(first_of, (plain,)) if is_list or held.dims is None else plain


def first_of(value: Any) -> Any:
    """A number, or the one in a tuple."""
    return value[0] if isinstance(value, tuple) else value


def _tensors(lowering: Lowering, values: Iterable[ir.Value | None]) -> tuple[Any, ...]:
    return tuple(lowering.tensor(lowering.find(v)) for v in values if v is not None)


def _empty(
    lowering: Lowering, values: Sequence[ir.Value]
) -> tuple[tuple[tuple[int, ...], Any], ...]:
    """Shape and type of one row of each stacked result, for a body that never runs."""
    found = []
    for value in values:
        shape = () if value.shape is None else tuple(value.shape)
        dtype = lowering.types.of(value.dtype) if value.dtype is not None else None
        found.append((tuple(size if isinstance(size, int) else 0 for size in shape), dtype))
    return tuple(found)


def _hold(lowering: Lowering, node: ir.Node, made: Any) -> None:
    for index, value in enumerate(node.outputs):
        lowering.hold_tensor(value, lowering.call(result, (made, index)))


def result(results: Sequence[Any], index: int) -> Any:
    """One of a body's results."""
    return results[index]


LOWERED: dict[str, Callable[[Any, ir.Node], None]] = {
    "If": lower_if,
    "Loop": lower_loop,
    "Scan": lower_scan,
}
