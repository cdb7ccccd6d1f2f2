"""What our oracle makes of the validator's cases is what ONNX Runtime makes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph.interpret import interpret
from tests.tpcore.cases_experts import EXPERTS
from tests.tpcore.cases_nets import NETS
from tpcore.trial import Case, build_model

NO_KERNEL = {"GlobalLpPool", "RoiAlign", "GemmFastGelu", "BiasAdd", "BiasSplitGelu", "BiasSoftmax",
             "SwiGLU", "ScaledSiLU", "GatedAdd", "GroupNorm", "SkipGroupNorm"}  # fmt: skip
"""Ops of which ONNX Runtime has no kernel for CPU, or none of this opset."""
REFUSED = ("INVALID_ARGUMENT", "NOT_IMPLEMENTED", "INVALID_GRAPH", "FAIL")
"""What it says of attributes that its kernel for CPU does not take."""


CASES = [case for case in (*NETS, *EXPERTS) if case.op_type not in NO_KERNEL]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_oracle_agrees_with_onnx_runtime(case: Case) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = build_model(case)
    feeds = {v.name or "": case.operands[int((v.name or "x0")[1:])] for v in model.graph.inputs}
    given = {name: array for name, array in feeds.items() if array is not None}
    (wanted,) = interpret([model], [given])
    for out in model.graph.outputs:
        out.dtype = ir.DataType.from_numpy(wanted[out.name or ""].dtype)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        results = session.run(None, given)
    except Exception as error:
        refusal = next((text for text in REFUSED if text in str(error)), None)
        if refusal is None:
            raise
        pytest.skip(f"{refusal}: {case.op_type}")
    for got, want in zip(results, wanted.values(), strict=True):
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * scale)
