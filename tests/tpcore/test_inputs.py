"""Inputs: described from a graph, made up where there are none, checked where there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graph.canonicalize import canonicalize
from graph.errors import ExecutionError, PlanError
from graph.reader import read_model
from tests.graph.small import Arrays
from tests.models import GENAI, model_path, run_reference
from tests.tpcore.command import load_arrays
from tests.tpcore.small_models import decoder
from tpcore.inputs import InputSpec, check_sizes, describe_inputs, make_inputs, violations
from tpcore.run import check_writable, read_npz, write_npz

IDS = InputSpec("input_ids", "INT64", ("batch", "sequence"), 512)
MASK = InputSpec("attention_mask", "INT64", ("batch", "total_sequence"))
PAST = InputSpec("past.key", "FLOAT", ("batch", 4, "past_sequence", 16))
POSITIONS = InputSpec("position_ids", "INT64", ("batch", "sequence"), 6)
FLAG = InputSpec("flag", "BOOL", (2,))
SPECS = [IDS, MASK, PAST, POSITIONS, FLAG]


def test_symbolic_dims_get_sizes_that_belong_together() -> None:
    made = make_inputs(SPECS, {})
    assert {name: array.shape for name, array in made.items()} == {
        "input_ids": (1, 8),
        "attention_mask": (1, 8),
        "past.key": (1, 4, 0, 16),
        "position_ids": (1, 8),
        "flag": (2,),
    }
    longer = make_inputs(SPECS, {"batch": 3, "past_sequence": 5, "sequence": 2})
    assert longer["attention_mask"].shape == (3, 7) and longer["past.key"].shape == (3, 4, 5, 16)


def test_contents_are_what_a_graph_can_work_with() -> None:
    made = make_inputs(SPECS, {"sequence": 100, "past_sequence": 3})
    assert made["input_ids"].dtype == np.int64 and made["past.key"].dtype == np.float32
    assert made["input_ids"].min() >= 0 and made["input_ids"].max() < 512
    assert len(np.unique(made["input_ids"])) > 20
    assert made["position_ids"][0, :7].tolist() == [0, 1, 2, 3, 4, 5, 5]
    assert (made["attention_mask"] == 1).all() and made["flag"].all()
    assert made["past.key"].min() < 0 < made["past.key"].max()


def test_the_same_request_gives_the_same_inputs() -> None:
    one, two = make_inputs(SPECS, {}), make_inputs(SPECS, {})
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert make_inputs(SPECS, {}, seed=1)["input_ids"].tolist() != one["input_ids"].tolist()


def test_sums_and_products_of_dims_are_bound() -> None:
    spec = InputSpec("x", "FLOAT", ("2*a", "a + b"))
    assert make_inputs([spec], {"a": 3, "b": 4})["x"].shape == (6, 7)
    assert check_sizes([spec], {}) == {"a", "b"}


def test_a_shape_that_is_not_declared() -> None:
    with pytest.raises(PlanError, match="cannot make up input 'x': .* Give the inputs with --inpu"):
        make_inputs([InputSpec("x", "FLOAT", None)], {})


def test_unknown_dims_are_all_named() -> None:
    with pytest.raises(PlanError, match="names 'a' and 'b', which .* dims of this model: batch, "):
        check_sizes(SPECS, {"a": 1, "batch": 2, "b": 3})


def test_all_that_is_wrong_with_given_inputs_is_said() -> None:
    given: Arrays = {
        "input_ids": np.zeros((2, 3), np.int32),
        "past.key": np.zeros((2, 5, 0, 16), np.float32),
        "position_ids": np.zeros(3, np.int64),
        "flag": np.ones(2, bool),
        "z": np.zeros(1),
    }
    assert violations(SPECS, given) == [
        "'attention_mask' is missing",
        "'z' is no input",
        "'input_ids' is int32[2, 3] where the model has int64[batch, sequence]",
        "'past.key' is float32[2, 5, 0, 16] where the model has float32[batch, 4, past_sequence, "
        "16]",
        "'position_ids' is int64[3] where the model has int64[batch, sequence]",
    ]
    assert violations(SPECS, make_inputs(SPECS, {})) == []
    assert violations([InputSpec("x", "FLOAT", None)], {"x": np.zeros((1, 2), np.float32)}) == []


def test_a_token_id_stays_below_the_rows_of_its_table() -> None:
    model, shapes = canonicalize(decoder())
    (spec,) = describe_inputs(model.graph, shapes)
    assert spec == InputSpec("ids", "INT64", ("batch", "seq"), 32)
    assert spec.text == "int64[batch, seq]"


@pytest.mark.parametrize(
    "model_id", [GENAI, "llama-opset18-dynamic", "gpt2-opset18", "vit-opset23"]
)
def test_real_models_run_on_inputs_made_up(model_id: str) -> None:
    model, shapes = canonicalize(read_model(model_path(model_id)))
    inputs = make_inputs(describe_inputs(model.graph, shapes), {})
    for array in run_reference(model_path(model_id), inputs).values():
        assert np.isfinite(array).all()


NAMES = ["y", "file", "allow_pickle", "model/head.out", "a.npy.b", "größe"]


def test_arrays_come_back_whatever_they_are_called(tmp_path: Path) -> None:
    arrays = {name: np.full((2, 0 if name == "y" else 3), i) for i, name in enumerate(NAMES)}
    write_npz(tmp_path / "y.npz", arrays)
    for read in (read_npz, load_arrays):
        got = read(tmp_path / "y.npz")
        assert list(got) == NAMES
        assert all(np.array_equal(got[name], arrays[name]) for name in NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint64", "bool", ">f4"])
def test_every_type_of_number_passes(dtype: str, tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    write_npz(tmp_path / "y.npz", {"y": array, "scalar": array[0, 0]})
    got = read_npz(tmp_path / "y.npz")
    assert got["y"].dtype == array.dtype and np.array_equal(got["y"], array)
    assert got["scalar"].shape == ()


def test_the_same_arrays_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, {"y": np.arange(5)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_outputs_replace_a_file_and_leave_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    path.write_text("old")
    check_writable(path)
    write_npz(path, {"y": np.zeros(1)})
    assert read_npz(path)["y"].shape == (1,)
    with pytest.raises(ExecutionError, match="outputs cannot be written to .*No such file"):
        write_npz(tmp_path / "nope" / "y.npz", {})
    assert [p.name for p in tmp_path.iterdir()] == ["y.npz"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nope" / "y.npz"):
        with pytest.raises(PlanError, match="cannot be written to .*Choose another path."):
            check_writable(path)
