"""An executor that rounds where an op's definition does, beside one that may round more."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends import registry
from backends.as_written import drop_rounding
from backends.base import Executor
from backends.exec_ort import OrtExecutor
from graph.interpret import interpret
from tests.graph.small import Array, small_model, weight

RANDOM = np.random.default_rng(6)


def codes(*shape: int) -> Array:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def product() -> ir.Model:
    """A product whose activations may be rounded to eight bits."""
    text = """(float[3, 64] x) => (float[3, 32] y) {
        y = com.microsoft.MatMulNBits
            <K = 64, N = 32, bits = 4, block_size = 16, accuracy_level = 4> (x, w, s)
    }"""
    return small_model(text, w=codes(32, 4, 8), s=RANDOM.uniform(0.1, 1, (32, 4)).astype("f"))


def error_of(executor: Executor, model: ir.Model) -> float:
    """Largest difference from the op's definition, as a share of the largest value."""
    x = weight(3, 64)
    (want,) = interpret([model], [{"x": x}])
    got = executor.to_array(executor.prepare(model, 1)({"x": executor.to_tensor(x)})["y"])
    return float(np.abs(got - want["y"]).max() / np.abs(want["y"]).max())


def test_activations_are_not_rounded() -> None:
    model = product()
    assert error_of(OrtExecutor(1, as_written=True), model) < 1e-6
    assert error_of(OrtExecutor(1), model) > 1e-4
    assert "accuracy_level" in model.graph[0].attributes


@pytest.mark.parametrize("name", ["simulate", "cpu"])
def test_own_backends_have_an_exact_executor(name: str) -> None:
    exact = registry.get(name).exact_executor
    assert exact is not None and error_of(exact(), product()) < 1e-6


def test_bodies_and_functions_are_changed_too() -> None:
    inner = ir.to_proto(product()).graph
    made = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.ModelProto(
        graph=onnx.GraphProto(node=[made]), functions=[onnx.FunctionProto(node=inner.node)]
    )
    drop_rounding(model)
    branches = [attribute.g for attribute in model.graph.node[0].attribute]
    for part in (*branches, *model.functions):
        names = [attribute.name for attribute in part.node[0].attribute]
        assert "K" in names and "accuracy_level" not in names
