"""A model of an old opset means the same after it was brought to a newer one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime
import pytest

from graph.errors import GraphError
from graph.interpret import interpret
from graph.old_ops import LEFT_OVER, OLD_FORMS
from graph.reader import read_model
from graph.upgrade import TARGET, upgrade
from tests.graph.old_cases import AROUND, CASES, MORE_INPUTS, Array, OldCase, floats, plain


def _run(contents: bytes, inputs: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: inputs[name] for name in names}))


def _upgraded(contents: bytes) -> ir.Model:
    model = ir.serde.deserialize_model(onnx.ModelProto.FromString(contents))
    upgrade(model)
    common.NameFixPass()(model)
    return model


def _same(got: list[Array], want: list[Array]) -> None:
    assert [(a.dtype, a.shape) for a in got] == [(a.dtype, a.shape) for a in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_old_node_means_the_same(case: OldCase, around: str) -> None:
    contents, inputs = AROUND[around](case), {**case.inputs, **MORE_INPUTS}
    model = _upgraded(contents)
    assert model.graph.opset_imports[""] == TARGET
    _same(_run(ir.to_proto(model).SerializeToString(), inputs), _run(contents, inputs))


def _interpreted(case: OldCase) -> list[Array]:
    (results,) = interpret([_upgraded(plain(case))], [case.inputs])
    return list(results.values())


A, B = floats(2, 3, 4), floats(3)
LEFT, RIGHT, ROW = floats(2, 3), floats(3, 4), floats(4)
OLDER = [
    (OldCase("Add", 6, [A, B], {"broadcast": 1, "axis": 1}), A + B[:, None]),
    (OldCase("Mul", 6, [A, floats(4)], {"broadcast": 1}), A * floats(4)),
    (OldCase("Sub", 6, [A, floats(3, 4)], {"broadcast": 1, "axis": -2}), A - floats(3, 4)),
    (OldCase("Div", 1, [A, A], {"consumed_inputs": [0, 0]}), A / A),
    (OldCase("PRelu", 6, [A, B]), np.where(A < 0, B[:, None] * A, A)),
    (OldCase("Gemm", 6, [LEFT, RIGHT, ROW], {"broadcast": 1}), LEFT @ RIGHT + ROW),
    (OldCase("Cast", 5, [A], {"to": "INT64"}), A.astype(np.int64)),
    (OldCase("Concat", 3, [A, A]), np.concatenate([A, A], axis=1)),
    (OldCase("Selu", 1, [A]), 1.0507 * np.where(A > 0, A, 1.6732 * (np.exp(A) - 1))),
    (OldCase("GlobalLpPool", 1, [A], {"p": 1.0}), np.abs(A).sum(axis=2, keepdims=True)),
    (OldCase("Upsample", 1, [floats(1, 1, 2, 2)], {"height_scale": 2.0, "width_scale": 1.0}),
     floats(1, 1, 2, 2).repeat(2, axis=2)),
    (OldCase("Pad", 1, [LEFT], {"paddings": [0, 1, 0, 0]}), np.pad(LEFT, ((0, 0), (1, 0)))),
    (OldCase("Dropout", 6, [A], {"is_test": 1}), A),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "want"), OLDER, ids=lambda x: str(x) if type(x) is OldCase else ""
)
def test_a_node_too_old_for_runtimes_means_what_its_opset_says(case: OldCase, want: Array) -> None:
    _same(_interpreted(case), [want.astype(want.dtype if want.dtype == np.int64 else np.float32)])


REFUSED = [
    (OldCase("Dropout", 6, [A]), "at random"),
    (OldCase("BatchNormalization", 9, [A, B, B, B, B], results=4), "gives out statistics"),
    (OldCase("BatchNormalization", 7, [A, B, B, B, B], {"spatial": 0}, results=2), "every element"),
    (OldCase("ATen", 9, [A], {"operator": "relu"}), "no form in newer opsets"),
    (OldCase("Tile", 5, [A, np.array(2), np.array(1)]), "no form in newer opsets"),
    (OldCase("GlobalLpPool", 1, [A], {"p": 1.5}), "power 1.5"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda x: str(x).replace(" ", "_"))
def test_what_has_no_newer_form_is_refused_with_its_reason(case: OldCase, reason: str) -> None:
    with pytest.raises(GraphError, match=rf"'old' \({case.op} of opset {case.opset}\).*{reason}"):
        _upgraded(plain(case))


def test_scans_of_several_lengths_are_refused() -> None:
    (scan,) = (case for case in CASES if case.op == "Scan")
    proto = onnx.ModelProto.FromString(plain(scan))
    proto.graph.node[0].input[0] = "x1"
    with pytest.raises(GraphError, match="several lengths"):
        _upgraded(proto.SerializeToString())


def test_weights_are_not_read_and_foreign_nodes_are_kept(tmp_path: Path) -> None:
    text = """<ir_version: 3, opset_import: ["": 8, "com.microsoft": 1]>
    old (float[2, 64] x, float[64, 64] w) => (float[2, 64] y) {
        h = MatMul(x, w)
        g = com.microsoft.Gelu(h)
        y = Clip<max = 0.5>(g)
    }"""
    proto, weight = onnx.parser.parse_model(text), floats(64, 64)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path, given = tmp_path / "old.onnx", proto.SerializeToString()
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = read_model(path)
    (tmp_path / "w.bin").rename(tmp_path / "away")
    upgrade(model)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert [n.op_type for n in model.graph if n.domain] == ["Gelu"]
    (tmp_path / "away").rename(tmp_path / "w.bin")
    whole = ir.external_data.load_to_model(model)
    inputs = {"x": floats(2, 64), "w": weight}
    _same(_run(ir.to_proto(whole).SerializeToString(), inputs), _run(given, inputs))


def test_a_model_that_is_new_enough_is_not_touched() -> None:
    contents = plain(OldCase("Softmax", TARGET, [A]))
    assert ir.to_proto(_upgraded(contents)).graph == onnx.ModelProto.FromString(contents).graph


# --- the table is complete ------------------------------------------------------------------------


def _schemas() -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= TARGET:
            found[schema.name][schema.since_version] = schema
    return found


def _attributes(schema: Any) -> dict[str, tuple[Any, bytes]]:
    return {
        name: (attribute.type, attribute.default_value.SerializeToString())
        for name, attribute in schema.attributes.items()
    }


def _fits(old: Any, new: Any) -> bool:
    """Whether a node of the old form is one of the new form."""
    before, after = _attributes(old), _attributes(new)
    is_kept = all(after.get(name) == kind for name, kind in before.items() if name not in LEFT_OVER)
    required = {name for name, attribute in new.attributes.items() if attribute.required}
    demanded = required - {name for name, a in old.attributes.items() if a.required}
    names = ([v.name for v in old.inputs], [v.name for v in new.inputs])
    grew = len(names[0]) == len(names[1]) and len(old.outputs) <= len(new.outputs)
    return is_kept and grew and not demanded and not new.deprecated


def test_every_op_whose_form_changed_has_a_row() -> None:
    missing, checked = [], 0
    for name, versions in _schemas().items():
        newest = versions.pop(max(versions))
        for version, schema in versions.items():
            until = min(v for v in [*versions, newest.since_version] if v > version)
            checked += 1
            row = OLD_FORMS.get(name)
            if not _fits(schema, newest) and (row is None or row.until < until):
                missing.append(f"{name}-{version}")
    assert checked > 150
    assert sorted(set(missing)) == sorted(SUPERSEDED)


SUPERSEDED = ["GRU-1"]
"""GRU-1 misspells the default direction, `foward`."""
