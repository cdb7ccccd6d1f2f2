"""Small models in ONNX's own text form, and runs that show every value of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
OPSET = 18


def weight(*shape: int, seed: int = 0) -> Array:
    """A weight of f32[shape] whose values differ in sign and size."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def small_model(text: str, **weights: Array) -> ir.Model:
    """A model from ONNX text such as `(float[n, 4] x) => (float[n, 2] y) { y = MatMul(x, w) }`.

    `weights` become initializers; functions may follow the graph.
    """
    imports = f'"": {OPSET}, "com.microsoft": 1, "local": 1'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]>\nsmall {text}")
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.serde.deserialize_model(proto)


def run_whole(model: ir.Model, inputs: Mapping[str, Array], *, every_value: bool = False) -> Arrays:
    """Outputs by name in onnxruntime, unoptimized; with `every_value` those of all nodes too."""
    model = ir.external_data.load_to_model(model.clone())
    if every_value:
        _show_every_value(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    contents = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {value.name: inputs[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given)))


def _show_every_value(model: ir.Model) -> None:
    common.NameFixPass()(model)
    shown = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.uses() and id(value) not in shown:
                # A declared shape that turns out wrong must not stop the run that shows it.
                value.shape = None
                model.graph.outputs.append(value)


def greatest_difference(got: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    """Largest absolute difference over all values of `want`; shapes and dtypes must be equal."""
    worst = 0.0
    for name, array in want.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
        difference = np.abs(got[name].astype(np.float64) - array.astype(np.float64))
        worst = max(worst, float(difference.max(initial=0)))
    return worst
