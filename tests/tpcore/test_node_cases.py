"""ONNX's own node tests: whatever their attributes, every way to split them is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from graph.interpret import interpret
from tpcore.ops import OPS
from tpcore.trial import Array, Case, Trial

RANKS = (2, 3)
LAST_OPSET = 26
SMALL = 64
"""Integer operands of up to this many elements are constants, as shapes and axes are in models."""
ALWAYS_CONSTANT = ("Resize", "Upsample")


@cache
def node_cases() -> tuple[tuple[str, Case], ...]:
    """Node tests of one node with a rule, on dense tensors of numbers, by name."""
    return tuple((test.name, case) for test in collect_testcases(None) for case in _cases(test))


def _cases(test: Any) -> Iterator[Case]:
    model = test.model
    node = model.graph.node[0]
    opset = {o.domain: o.version for o in model.opset_import}.get("", LAST_OPSET)
    arrays = _arrays(test)
    if len(model.graph.node) > 1 or (node.domain, node.op_type) not in OPS or arrays is None:
        return
    if opset > LAST_OPSET or not set(node.input) <= {*arrays, ""}:
        return
    operands = tuple(arrays[name] if name else None for name in node.input)
    places = tuple(
        i for i, a in enumerate(operands) if i and a is not None and _is_constant(node.op_type, a)
    )
    yield Case(
        node.op_type, operands, _attributes(node), node.domain, len(node.output), places,
        opset=opset,
    )  # fmt: skip


def _is_constant(op_type: str, array: Array) -> bool:
    return op_type in ALWAYS_CONSTANT or (array.dtype.kind in "iu" and array.size <= SMALL)


def _arrays(test: Any) -> dict[str, Array] | None:
    given: dict[str, Array] = {}
    for info, value in zip(test.model.graph.input, test.data_sets[0][0]):
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        if not isinstance(array, np.ndarray) or array.dtype.kind in "OVUS":
            return None
        given[info.name] = array
    return given


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def _problems(name: str, case: Case, ranks: int, counts: Counter[str]) -> list[str]:
    trial = Trial.of(case, ranks)
    whole, *split = trial.space.strategies(trial.node)
    if trial.problem_with(whole) is not None:  # a NaN of a type that numpy cannot compare
        counts["not comparable"] += 1
        return []
    counts["left whole" if not split else "split"] += 1
    counts["strategies"] += len(split)
    found = {trial.text(trial.shardings_of(s)): trial.problem_with(s) for s in split}
    return [f"{name} on {ranks}: {text}: {problem}" for text, problem in found.items() if problem]


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool", "MaxPool"])
def test_what_the_oracle_makes_of_pools_is_what_onnx_states(op_type: str) -> None:
    every: list[Any] = collect_testcases(None)
    tests = [test for test in every if test.model.graph.node[0].op_type == op_type]
    assert len(tests) > 7
    for test in tests:
        ((given, wanted),) = test.data_sets
        model = ir.from_proto(test.model)
        names = [value.name or "" for value in model.graph.inputs]
        (made,) = interpret([model], [dict(zip(names, given))])
        for got, want in zip(made.values(), wanted, strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, 1e-3, 1e-6, err_msg=test.name)  # of 4 digits


@pytest.mark.parametrize("ranks", RANKS)
def test_every_split_of_a_node_test_is_right(
    ranks: int, record_property: Callable[[str, object], None]
) -> None:
    counts: Counter[str] = Counter()
    wrong = [p for name, case in node_cases() for p in _problems(name, case, ranks, counts)]
    for label, count in counts.items():
        record_property(label, count)
    print(f"{len(node_cases())} node tests on {ranks} ranks: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    assert counts["split"] > 500
