"""Ops in the forms that later opsets changed: every way to split them is right in these as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graph.small import weight
from tpcore.partition import Options
from tpcore.shard import split_model
from tpcore.trial import Array, Case, Trial
from tpcore.verify import verify_ranks

X, IMAGE = weight(4, 6, 8), weight(2, 4, 6, 6)
STATS = [weight(4), weight(4), weight(4), np.abs(weight(4)) + 1]
CODES = np.arange(24, dtype=np.int8).reshape(4, 6)


def _ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


REDUCTIONS = "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare".split()
CASES = [
    *(Case(op, (X,), {"axes": [1]}, opset=15) for op in REDUCTIONS),
    Case("ReduceMean", (X,), {"axes": [0, 2], "keepdims": 0}, opset=17),
    Case("ReduceMean", (X,), opset=15),
    Case("ReduceLogSumExp", (X,), {"axes": [-1]}, opset=17),
    Case("Split", (X,), {"axis": 1}, outputs=3, opset=15),
    Case("Split", (X, _ints(2, 4)), {"axis": 1}, outputs=2, constants=(1,), opset=15),
    Case("Pad", (IMAGE, _ints(0, 0, 1, 1, 0, 0, 1, 2)), constants=(1,), opset=15),
    Case("Resize", (IMAGE, None, np.array([1, 1, 2, 2], np.float32)), constants=(2,), opset=15),
    Case("Resize", (IMAGE, None, None, _ints(2, 4, 3, 9)), constants=(3,), opset=15),
    Case("BatchNormalization", (IMAGE, *STATS), opset=15),
    Case("LayerNormalization", (X, weight(8), weight(8)), opset=17),
    Case("QuantizeLinear", (X, np.array(0.1, np.float32), np.array(3, np.uint8)), opset=15),
    Case("DequantizeLinear", (CODES, np.array(0.1, np.float32)), opset=19),
    Case("CumSum", (X, np.array(1)), constants=(1,), opset=15),
    Case("Reshape", (X, _ints(0, 2, 3, -1)), constants=(1,), opset=15),
    Case("Softmax", (X,), {"axis": 1}, opset=15),
    Case("Cast", (X,), {"to": onnx.TensorProto.INT32}, opset=15),
    Case("ScatterElements", (X, np.zeros((4, 6, 1), np.int64), weight(4, 6, 1)), {"axis": 2},
         constants=(1,), opset=15),
    Case("LpPool", (IMAGE,), {"kernel_shape": [2, 2]}, opset=15),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2]}, opset=15),
]  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_split_of_an_older_form_is_right(case: Case, ranks: int) -> None:
    trial = Trial.of(case, ranks)
    whole, *split = trial.space.strategies(trial.node)
    found = {trial.text(trial.shardings_of(s)): trial.problem_with(s) for s in [whole, *split]}
    assert not {text: problem for text, problem in found.items() if problem}
    assert split


@pytest.mark.parametrize(("opset", "scales"), [(18, 2), (21, 8)])
def test_group_normalization_scales_groups_or_channels(
    opset: int, scales: int, tmp_path: Path
) -> None:
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": {opset}]>
    net (float[2, 4, 6] x) => (float[2, 8, 6] y) {{
        h = Conv(x, w)
        y = GroupNormalization<num_groups = 2>(h, scale, bias)
    }}""")
    shapes = {"w": (8, 4, 1), "scale": (scales,), "bias": (scales,)}
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(weight(*shape), name))
    onnx.save(proto, tmp_path / "net.onnx")
    split = split_model(tmp_path / "net.onnx", Options(tp=2))
    assert split.report["split_fraction"] > 0.5
    assert verify_ranks(split.ranks, split.shardings, tmp_path / "net.onnx").equal
