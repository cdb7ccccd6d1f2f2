"""Verification: equal is equal, a wrong bundle is found and its first wrong value named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from graph.weights import ShardTensor
from tests.graph.small import small_model, weight
from tests.models import GENAI, model_inputs, model_path
from tests.tpcore.command import save, save_arrays, tpcore_here
from tests.tpcore.small_models import INPUTS, decoder, mlp
from tpcore.bundle import open_bundle
from tpcore.compare import Difference, compare
from tpcore.partition import Options
from tpcore.precision import narrowest_floats
from tpcore.shard import Split, shard, split_model, write_splits
from tpcore.verify import Verification, verify

Break = Callable[[list[ir.Model]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verify")
    for name, model in {"mlp": mlp(), "decoder": decoder()}.items():
        save(model, made / f"{name}.onnx")
        save_arrays(made / f"{name}.npz", INPUTS[name])
    return made


def write(split: Split, model: Path, path: Path) -> Path:
    """Write a bundle whose digests are right, whatever its graphs compute."""
    return write_splits(path, [split], model).path


def wrong_slice(name: str) -> Break:
    """Rank 1 holds the slice of rank 0."""

    def break_it(ranks: list[ir.Model]) -> None:
        first, second = (model.graph.initializers[name] for model in ranks)
        assert isinstance(first.const_value, ShardTensor)
        second.const_value = first.const_value

    return break_it


def wrong_reduction(ranks: list[ir.Model]) -> None:
    """All ranks take the largest part in place of the sum."""
    for model in ranks:
        for node in model.graph:
            if node.op_type == "AllReduce":
                node.attributes["reduce"] = ir.AttrString("reduce", "max")


BROKEN = [
    ("mlp", wrong_slice("w1"), "up/MatMul_0_out", "MatMul"),
    ("mlp", wrong_slice("b1"), "h", "Add"),
    ("mlp", wrong_slice("w2"), "down/MatMul_0_out", "MatMul"),
    ("mlp", wrong_reduction, "y", "Add"),
    ("decoder", wrong_slice("w_gate"), "gate", "MatMul"),
    ("decoder", wrong_slice("w_o"), "o", "MatMul"),
]


@pytest.mark.parametrize(("model", "break_it", "value", "op"), BROKEN)
def test_a_wrong_bundle_is_found_and_its_first_wrong_value_named(
    model: str,
    break_it: Break,
    value: str,
    op: str,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = folder / f"{model}.onnx"
    split = split_model(path, Options(2))
    break_it(list(split.ranks))
    bundle = write(split, path, tmp_path / "b")
    request = ["verify", bundle, "--against", path, "--inputs", folder / f"{model}.npz"]
    done = tpcore_here(capfd, *request, "--json")
    assert (done.status, done.err) == (1, "")
    seen = json.loads(done.out)
    assert seen["equal"] is False and seen["max_rel_diff"] > 0.01
    found = seen["first_divergence"]
    assert (found["value"], found["op"], found["equal"]) == (value, op, False)
    assert found["max_abs_diff"] > 1e-3
    told = tpcore_here(capfd, *request)
    assert told.status == 1 and told.err == ""
    assert "WRONG" in told.out and f"first wrong value: '{value}' of node '" in told.out


def test_a_right_bundle_is_equal(folder: Path, tmp_path: Path) -> None:
    for model in ("mlp", "decoder"):
        path = folder / f"{model}.onnx"
        result = verify(
            open_bundle(write(split_model(path, Options(2)), path, tmp_path / model)), path
        )
        assert result.equal and result.first_divergence is None
        assert all(0 <= output.max_rel_diff <= 1e-5 for output in result.outputs)


def test_sharded_states_are_compared_whole(tmp_path: Path) -> None:
    """The cache goes in whole, is cut, comes out in parts and is joined."""
    path = model_path(GENAI)
    bundle = shard(path, tmp_path / "b", Options(2))
    result = verify(bundle, path, model_inputs(GENAI, "decode"))
    names = [output.name for output in result.outputs]
    assert result.equal and "logits" in names and "present.1.value" in names


def test_verify_checks_every_byte_first(folder: Path, tmp_path: Path) -> None:
    """Opening a bundle checks sizes only; verify reads all files and compares their sha256."""
    path = folder / "mlp.onnx"
    bundle = write(split_model(path, Options(2)), path, tmp_path / "b")
    opened = open_bundle(bundle)
    weights = bundle / "rank-00001" / "model.safetensors"
    contents = bytearray(weights.read_bytes())
    contents[0] ^= 1
    weights.write_bytes(contents)
    with pytest.raises(Exception, match="rank-00001/model.safetensors has sha256"):
        verify(opened, path)


NAN, INF = math.nan, math.inf
FLOAT8 = ml_dtypes.float8_e5m2


@pytest.mark.parametrize(
    ("got", "want", "equal", "largest"),
    [
        ([1.0, 2], [1.0, 2], True, 0),
        ([1.0, 2 + 1e-5], [1.0, 2], True, 1e-5),
        ([1.0, 2.001], [1.0, 2], False, 1e-3),
        ([1e-5, 100], [0, 100], True, 1e-5),
        ([0, 0], [0, 0], True, 0),
        ([1e-3, 0], [0, 0], False, 1e-3),
        ([NAN, 1], [NAN, 1], True, 0),
        ([NAN, 1], [0, 1], False, INF),
        ([0, 1], [NAN, 1], False, INF),
        ([INF, 1], [INF, 1], True, 0),
        ([INF, 1], [-INF, 1], False, INF),
        ([1, 1], [INF, 1], False, INF),
        ([INF, 1], [1, 1], False, INF),
        ([NAN, NAN], [NAN, NAN], True, 0),
        ([-INF, -INF], [-INF, 0], False, INF),
        ([], [], True, 0),
        ([1, 2], [1, 2, 3], False, INF),
    ],
)
def test_compare_floats(got: Any, want: Any, equal: bool, largest: float) -> None:
    found = compare("y", np.array(got, np.float32), np.array(want, np.float32))
    assert found.equal is equal and not math.isnan(found.max_rel_diff)
    assert found.max_abs_diff == pytest.approx(largest, rel=0.05)


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([1, 2]), np.array([1, 3]), False),
        (np.array([2**62]), np.array([2**62 + 1]), False),
        (np.array([True]), np.array([False]), False),
        (np.array([1], np.int32), np.array([1], np.int64), False),
        (np.zeros(3, np.float16), np.full(3, 1e-2, np.float16), False),
        (np.array([NAN, 1], FLOAT8), np.array([NAN, 1], FLOAT8), True),
        (np.array([NAN, 1], FLOAT8), np.array([1, 1], FLOAT8), False),
    ],
)
def test_compare_other_types(got: np.ndarray, want: np.ndarray, equal: bool) -> None:
    assert compare("y", got, want).equal is equal


HALF = """(float[batch, 64] x) => (float[batch, 64] y, float16[batch, 64] wide) {
    n = Neg (x)
    c = Cast <to = 10> (n)
    h = MatMul (c, w1)
    wide = MatMul (h, w2)
    y = Cast <to = 1> (wide)
}"""


def half_model(folder: Path, form: Callable[[np.ndarray], np.ndarray]) -> Path:
    weights = {name: form(weight(64, 64) / 8) for name in ("w1", "w2")}
    return save(small_model(HALF, **weights), folder / "half.onnx")


def test_outputs_are_judged_by_the_type_they_were_computed_in(folder: Path) -> None:
    """Cast up at the end, float16 is as coarse as it was; and no coarser."""
    model = half_model(folder, lambda array: array.astype(np.float16))
    inputs = {"x": weight(5, 64)}
    split = split_model(model, Options(2, "megatron"))
    found = verify(open_bundle(write(split, model, folder / "half")), model, inputs)
    assert {one.name: one.tolerance for one in found.outputs} == {"y": 1e-2, "wide": 1e-2}
    assert found.equal and found.outputs[0].max_rel_diff > 1e-4
    wrong_slice("w2")(list(split.ranks))
    broken = verify(open_bundle(write(split, model, folder / "broken_half")), model, inputs)
    assert not broken.equal and broken.first_divergence is not None


@pytest.mark.parametrize(
    ("body", "narrowest"),
    [
        ("y = Cast <to = 1> (x)", "float32"),  # an input is what it is
        ("a = Cast <to = 1> (x) b = Cast <to = 16> (a) y = Cast <to = 1> (b)", "bfloat16"),
        ("a = Abs (x) s = Shape (a) y = Cast <to = 1> (s)", None),
        ("a = Abs (x) y = Cast <to = 1> (a)", "float16"),
        ("a = Cast <to = 1> (x) c = Cast <to = 1> (w) y = Mul (a, c)", "float32"),
        ("a = Cast <to = 11> (x) y = Cast <to = 1> (a)", "float32"),
    ],
)
def test_the_narrowest_float_on_the_way(body: str, narrowest: str | None) -> None:
    text = f"(float16[n] x) => (float[n] y) {{ {body} }}"
    model = small_model(text, w=np.ones(1, np.float16))
    canonical, _ = canonicalize(model)
    assert narrowest_floats(canonical.graph).get("y") == narrowest


def test_json_has_no_infinity() -> None:
    wrong = Difference("y", False, INF, INF, 1e-4)
    right = Difference("z", True, 1e-6, 1e-7, 1e-4)
    place = {"value": "h", "op": "Add", "node": "n", "max_abs_diff": INF, "equal": False}
    seen = Verification([wrong, right], place).to_json()
    json.dumps(seen, allow_nan=False)
    assert seen["equal"] is False and seen["max_abs_diff"] is None
    assert seen["outputs"]["y"]["max_rel_diff"] is None
    assert seen["outputs"]["z"]["max_abs_diff"] == 1e-6
    assert seen["first_divergence"]["max_abs_diff"] is None
    assert Verification([right], None).to_json()["first_divergence"] is None


def test_a_mask_does_not_hide_what_differs() -> None:
    mask = float(np.finfo(np.float32).min)
    want = np.array([1, 2, 3, mask, 1e9], np.float32)
    got = np.array([1, 2, 4, mask, 1e9], np.float32)
    found = compare("y", got, want)
    assert not found.equal and found.max_rel_diff == pytest.approx(1 / 3)
    assert compare("y", want, want).equal


def test_an_output_far_above_the_others_is_compared_with_itself() -> None:
    want = np.array([1.0, 2.0, 1e9], np.float32)
    assert compare("y", want * np.array([1, 1, 1 + 1e-6], np.float32), want).equal
    assert not compare("y", want * np.array([1, 1, 1.01], np.float32), want).equal
