"""Cutting rank graphs at their collectives."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from backends import segments
from backends.exec_ort import OrtExecutor
from backends.lockstep import run_lockstep
from backends.segments import Exchange, NativeOp, Segment, cut
from graph.dialect import AllReduce, Broadcast
from graph.errors import GraphError
from tests.backends.toys import Maker, mlp_rank


def kinds(model: ir.Model) -> list[str]:
    return [
        step.op.op_type
        if isinstance(step, Exchange)
        else "+".join(node.op_type for node in step.model.graph)
        for step in cut(model).steps
    ]


def test_mlp_is_cut_at_its_two_collectives() -> None:
    assert kinds(mlp_rank(0, 2)) == [
        "MatMul+Add+Relu+MatMul",
        "AllReduce",
        "Add+MatMul",
        "AllGather",
    ]


def test_segments_are_plain_models_with_only_their_weights() -> None:
    first, _, second, _ = cut(mlp_rank(0, 2)).steps
    assert isinstance(first, Segment) and isinstance(second, Segment)
    assert set(first.model.graph.initializers) == {"w1", "b1", "w2"}
    assert set(second.model.graph.initializers) == {"b2", "w3"}
    assert first.model.graph.opset_imports == {"": 18}
    assert (first.inputs, first.outputs) == (("x",), ("partial",))
    assert first.drop == ("x",)


def test_independent_work_does_not_wait_for_a_collective() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    total = maker.collective(AllReduce("tp"), maker.op("Neg", x), "reduce")
    late = maker.op("Abs", x)
    model = maker.model([maker.op("Add", total, late)])
    assert kinds(model) == ["Neg+Abs", "AllReduce", "Add"]


def test_order_is_tag_order_and_not_node_order() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    first = maker.collective(AllReduce("tp"), maker.op("Neg", x), "a")
    second = maker.collective(AllReduce("tp", "max"), maker.op("Abs", x), "b")
    for node, tag in ((first.producer(), 7), (second.producer(), 3)):
        assert node is not None
        node.attributes["tag"] = ir.AttrInt64("tag", tag)
    program = cut(maker.model([first, second]))
    assert [step.node for step in program.exchanges] == ["b", "a"]


def test_tags_that_contradict_the_data_flow_are_refused() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    maker.tag = 5
    first = maker.collective(AllReduce("tp"), x, "first")
    maker.tag = 1
    second = maker.collective(AllReduce("tp"), first, "second")
    with pytest.raises(GraphError, match="'second' has tag 1 but needs the result of 'first'"):
        cut(maker.model([second]))


def test_two_collectives_with_one_tag_are_refused() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    first = maker.collective(AllReduce("tp"), x, "first")
    maker.tag = 0
    with pytest.raises(GraphError, match="both have tag 0"):
        cut(maker.model([first, maker.collective(AllReduce("tp"), x, "second")]))


def test_a_value_without_type_between_segments_is_named() -> None:
    model = mlp_rank(0, 2)
    for node in model.graph:
        for output in node.outputs:
            output.type = None
    with pytest.raises(GraphError, match="'AllReduce_0_out', the output of node 'AllReduce_0'"):
        cut(model)


def passthrough(rank: int) -> ir.Model:
    """Inputs, weights and results of collectives that go nowhere near a plain node."""
    maker = Maker()
    x = maker.input("x", (2,))
    w = maker.weight("w", np.array([1, 2], np.float32) * (rank + 1))
    reduced = maker.collective(AllReduce("tp"), x, "of_input")
    known = maker.collective(Broadcast("tp", 1), w, "of_weight")
    return maker.model([x, w, reduced, known])


def test_collectives_of_inputs_and_weights_and_outputs_that_are_inputs() -> None:
    models = [passthrough(rank) for rank in range(2)]
    assert kinds(models[0]) == ["AllReduce", "Broadcast"]
    given = [{"x": np.array([rank, 1], np.float32)} for rank in range(2)]
    kept = given[0]["x"].copy()
    for _ in range(2):
        first, _ = run_lockstep(models, given, OrtExecutor())
        assert first["x"].tolist() == [0, 1] and first["w"].tolist() == [1, 2]
        assert first["of_input_out"].tolist() == [1, 2]
        assert first["of_weight_out"].tolist() == [2, 4]
    assert np.array_equal(given[0]["x"], kept)


def test_a_constant_node_stands_where_it_is_used() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    two = maker.op("Constant", value=ir.tensor(np.full(2, 2, np.float32)))
    total = maker.collective(AllReduce("tp"), maker.op("Mul", x, two), "reduce")
    model = maker.model([maker.op("Mul", total, two)])
    assert kinds(model) == ["Constant+Mul", "AllReduce", "Constant+Mul"]


def test_an_operand_that_is_read_later_is_not_the_buffer() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    part = maker.op("Neg", x)
    total = maker.collective(AllReduce("tp"), part, "reduce")
    program = cut(maker.model([maker.op("Add", total, part)]))
    assert program.exchanges[0].keep
    assert not cut(mlp_rank(0, 2)).exchanges[0].keep


def test_values_captured_by_a_subgraph_are_inputs_of_its_segment() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    w = maker.weight("w", np.ones(2, np.float32))
    flag = maker.input("flag", ())
    flag.type = ir.TensorType(ir.DataType.BOOL)
    total = maker.collective(AllReduce("tp"), x, "reduce")
    branches = []
    for op in ("Add", "Sub"):
        node = ir.node(op, [total, w])
        node.outputs[0].name = f"{op}_inner"
        node.outputs[0].type = maker.type
        branches.append(ir.Graph([], node.outputs, nodes=[node], name=op))
    node = ir.node("If", [flag], {"then_branch": branches[0], "else_branch": branches[1]})
    model = maker.model([maker._add(node, "choice", "y")])
    given = {"x": np.array([3, 4], np.float32), "flag": np.array(True)}
    assert run_lockstep([model], [given], OrtExecutor())[0]["y"].tolist() == [4, 5]
    given["flag"] = np.array(False)
    assert run_lockstep([model] * 2, [given] * 2, OrtExecutor())[1]["y"].tolist() == [5, 7]


def long_chain(collectives: int) -> ir.Model:
    """That many times nineteen nodes and a collective."""
    maker = Maker()
    value = maker.input("x", (2,))
    w = maker.weight("w", np.ones(2, np.float32))
    for index in range(collectives):
        for _ in range(19):
            value = maker.op("Add", value, w)
        value = maker.collective(AllReduce("tp"), value, f"reduce_{index}")
    return maker.model([value])


def calls_of(function: Callable[[], object]) -> int:
    """How many calls of Python functions it makes."""
    events: list[str] = []
    sys.setprofile(lambda frame, event, _: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(None)
    return events.count("call")


def test_cutting_takes_work_in_proportion_to_the_nodes() -> None:
    short, long = long_chain(25), long_chain(100)
    assert len(cut(long).steps) == 200
    assert calls_of(lambda: cut(long)) < 5 * calls_of(lambda: cut(short))


def test_what_weights_alone_make_stands_beside_its_reader() -> None:
    """A transposed weight would else cross from the first segment to the last in every run."""
    maker = Maker()
    x = maker.input("x", ("n", 2))
    w = maker.op("Neg", maker.op("Transpose", maker.weight("w", np.ones((3, 2), np.float32))))
    noise = maker.op("RandomNormal", shape=[1, 2])
    total = maker.collective(AllReduce("tp"), maker.op("Add", x, noise), "reduce")
    model = maker.model([maker.op("MatMul", total, w)])
    assert kinds(model) == ["RandomNormal+Add", "AllReduce", "Transpose+Neg+MatMul"]
    assert [step.inputs for step in cut(model).steps if isinstance(step, Segment)][1] == (
        "reduce_out",
    )


def test_what_weights_alone_make_may_be_exchanged_or_be_an_output() -> None:
    maker = Maker()
    w = maker.op("Neg", maker.weight("w", np.ones(2, np.float32)))
    first = maker.collective(AllReduce("tp"), maker.op("Abs", maker.input("x", (2,))), "first")
    second = maker.collective(AllReduce("tp"), w, "second")
    out = maker.op("Exp", maker.weight("v", np.ones(2, np.float32)))
    model = maker.model([maker.op("Add", first, second), out])
    assert kinds(model) == ["Abs+Exp", "AllReduce", "Neg", "AllReduce", "Add"]


# --- collectives inside segments ------------------------------------------------------------------

NATIVE = NativeOp("native", "Sum", {"link": 7, "step": 1})


def test_collectives_inside_a_segment_are_its_nodes() -> None:
    (first, gather) = cut(mlp_rank(0, 2), inside=sums_inside).steps
    assert isinstance(first, Segment) and isinstance(gather, Exchange)
    assert [node.op_type for node in first.model.graph] == [
        *("MatMul", "Add", "Relu", "MatMul", "Sum", "Add", "MatMul"),
    ]
    (node,) = (node for node in first.model.graph if node.domain == "native")
    assert {name: a.as_int() for name, a in node.attributes.items()} == NATIVE.attributes
    assert first.model.graph.opset_imports["native"] == 1
    assert (first.level, first.last_level, gather.level) == (0, 1, 1)
    assert [node.op_type for node in mlp_rank(0, 2).graph].count("AllReduce") == 1  # as it was


def test_what_an_optimizer_may_compute_ahead_or_drop_is_a_step_of_its_own() -> None:
    maker = Maker()
    x = maker.input("x", (2,))
    maker.collective(AllReduce("tp"), maker.op("Neg", x), "nobody_reads")
    folded = maker.op("Neg", maker.weight("w", np.ones(2, np.float32)))
    total = maker.collective(AllReduce("tp"), folded, "of_weights")
    blind = maker.collective(AllReduce("tp"), maker.op("Add", x, total), "for_its_shape")
    shape = maker.op("Cast", maker.op("Shape", blind), to=ir.DataType.FLOAT)
    model = maker.model([maker.op("Add", shape, total)])
    assert len(cut(model, inside=sums_inside).exchanges) == 3


def test_weights_that_must_be_read_into_memory_end_a_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = long_chain(40)
    assert len(cut(model, inside=sums_inside).steps) == 1
    monkeypatch.setattr(segments, "READ_BYTES", 16)
    steps = cut(model, inside=sums_inside).steps
    found = [step for step in steps if isinstance(step, Segment)]
    assert len(found) == 8  # each with the weights of five of the forty levels that have any
    assert all(step.last_level - step.level < 6 for step in found)


def sums_inside(exchange: Exchange) -> NativeOp | None:
    return NATIVE if isinstance(exchange.op, AllReduce) else None
