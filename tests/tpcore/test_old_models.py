"""Models of opsets 6 to 12 that onnx ships, split on two ranks and verified as they were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tpcore.compare import compare
from tpcore.partition import Options
from tpcore.shard import split_model
from tpcore.verify import run_ranks, verify_ranks

SHIPPED = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")
FILLED = ("light_squeezenet", "light_shufflenet")
NEVER_RUN = {"Gradient", "StringNormalizer"}
"""Ops of no CPU kernel, or whose kernel needs a locale that is not installed everywhere."""


def _shipped() -> list[Path]:
    return [p for folder in FOLDERS for p in sorted((SHIPPED / folder).glob("*/model.onnx"))]


def _read(path: Path) -> np.ndarray:
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    return numpy_helper.to_array(tensor)


def _arrays(folder: Path, kind: str) -> Iterator[np.ndarray] | None:
    """Inputs or outputs beside a model; None where they are sequences."""
    try:
        count = len(list(folder.glob(f"{kind}_*.pb")))
        return iter([_read(folder / f"{kind}_{i}.pb") for i in range(count)])
    except Exception:  # protobuf's error class cannot be named without depending on protobuf
        return None


def _names(proto: onnx.ModelProto) -> list[str]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value.name for value in proto.graph.input if value.name not in weights]


def _runs(path: Path) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:  # whatever a runtime says of a model it does not know
        return False
    return True


def _outcome(path: Path) -> str:
    """What came of a model: against ONNX Runtime, or what is shipped where that cannot run it."""
    proto, data = onnx.load(path), path.parent / "test_data_set_0"
    inputs, wanted = _arrays(data, "input"), _arrays(data, "output")
    if inputs is None or wanted is None:
        return "sequences"
    given = dict(zip(_names(proto), inputs, strict=True))
    split = split_model(path, Options(tp=2))
    kind = "split" if split.report["collectives"] else "whole"
    if _runs(path):
        found = verify_ranks(split.ranks, split.shardings, path, given)
        return f"equal, {kind}" if found.equal else f"differs: {found.first_divergence}"
    if {node.op_type for node in proto.graph.node} & NEVER_RUN:
        return "no runtime"
    got = run_ranks(split.ranks, split.shardings, given)
    outputs = [compare(o.name, got[o.name], w) for o, w in zip(proto.graph.output, wanted)]
    equal = all(output.max_rel_diff < 1e-3 for output in outputs)
    return f"as shipped, {kind}" if equal else f"not as shipped: {outputs}"


def test_models_that_onnx_ships_are_split_as_they_are(
    record_property: Callable[[str, object], None],
) -> None:
    outcomes = {path.parent.name: _outcome(path) for path in _shipped()}
    counts = Counter(outcomes.values())
    for label, count in counts.items():
        record_property(label, count)
    print(f"{len(outcomes)} models: {dict(counts)}")
    right = ("equal, ", "as shipped, ", "sequences", "no runtime")
    wrong = [f"{name}: {text}" for name, text in outcomes.items() if not text.startswith(right)]
    assert not wrong, "\n".join(wrong)
    assert counts["equal, split"] > 20


def _filled(name: str, path: Path) -> None:
    """A shipped net of opset 9 with random weights, which it makes up with ConstantOfShape."""
    proto, random = onnx.load(SHIPPED / "light" / f"{name}.onnx"), np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    fills = [n for n in proto.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]
    for node in fills:
        shape = [int(size) for size in shapes[node.input[0]]]
        spread = np.sqrt(2 / np.prod(shape[1:]))  # keeps the size of activations
        array = (
            np.abs(random.standard_normal(shape))
            if len(shape) == 1
            else (random.standard_normal(shape) * spread)
        )
        weight = numpy_helper.from_array(np.asarray(array, np.float32), node.output[0])
        proto.graph.initializer.append(weight)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, 1, shape))
        proto.graph.node.remove(node)
    assert len(fills) > 20
    onnx.save(proto, path)


@pytest.mark.parametrize("name", FILLED)
def test_a_net_of_opset_9_is_split(name: str, tmp_path: Path) -> None:
    _filled(name, tmp_path / "net.onnx")
    split = split_model(tmp_path / "net.onnx", Options(tp=2))
    assert split.report["split_fraction"] > 0.8
    assert verify_ranks(split.ranks, split.shardings, tmp_path / "net.onnx").equal
