"""A bundle gives back what was written, and refuses every change to any of its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.dialect import AllReduce, make_node
from graph.errors import BundleError, GraphError
from graph.interpret import interpret
from graph.layout import Box
from graph.weights import ShardTensor
from tpcore.bundle import Bundle, open_bundle, write_bundle
from tpcore.manifest import encode, field, file_digests, source_digest

EXTERNAL = onnx.TensorProto.EXTERNAL
PROGRAMS = {"programs": [{"name": "main", "sizes": {}, "sample": {}, "shardings": {}}]}
FIELDS = {"mesh": {"tp": 2}, "source": {"sha256": "0" * 64}, **PROGRAMS}
PLAN = {"values": {"w": "S(0)"}}
NUMBERS = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)


def rank_model(weight: ir.TensorProtocol) -> ir.Model:
    """x -> MatMul w -> AllReduce -> y, as on one rank."""
    x = ir.val("x", ir.DataType.FLOAT, [None, None])
    w = ir.val("w", const_value=weight)
    product = ir.node("MatMul", [x, w])
    reduced = make_node(AllReduce("tp"), product.outputs[0])
    y = reduced.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    nodes, opsets = [product, reduced], {"": 21}
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[w], opset_imports=opsets, name="rank")
    return ir.Model(graph, ir_version=14)


def two_ranks() -> list[dict[str, ir.Model]]:
    source = ir.tensor(NUMBERS, name="w")
    boxes: list[Box] = [(((0, 15),), None), (((15, 40),), None)]
    return [{"main": rank_model(ShardTensor(source, box))} for box in boxes]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "small", two_ranks(), manifest=FIELDS, plan=PLAN)


def load_all(path: Path) -> Bundle:
    bundle = open_bundle(path)
    for rank in range(bundle.world_size):
        bundle.load_rank(rank)
    return bundle


def refused(action: Callable[[], object], *words: str) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def test_gives_back_what_was_written(small: Path) -> None:
    bundle = load_all(small)
    assert sorted(p.name for p in small.parent.iterdir()) == ["small"]
    assert (bundle.world_size, bundle.manifest["mesh"], bundle.plan()) == (2, {"tp": 2}, PLAN)
    assert bundle.manifest["source"] == FIELDS["source"] and len(bundle.id) == 64
    bundle.check_hashes()
    x = np.ones((3, 40), np.float32)
    models = [bundle.load_rank(rank) for rank in range(2)]
    results = interpret(models, [{"x": x[:, :15]}, {"x": x[:, 15:]}])
    np.testing.assert_allclose(results[1]["y"], x @ NUMBERS, rtol=1e-4, atol=1e-4)
    assert all(m.ir_version == 13 and m.graph.opset_imports["tpcore"] == 1 for m in models)
    weight = models[0].graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)


def test_same_contents_have_the_same_id(tmp_path: Path, small: Path) -> None:
    again = write_bundle(tmp_path / "again", two_ranks(), manifest=FIELDS, plan=PLAN)
    other = write_bundle(tmp_path / "other", two_ranks(), manifest=FIELDS, plan={})
    assert open_bundle(again).id == open_bundle(small).id != open_bundle(other).id


def test_any_flipped_byte_is_refused(small: Path) -> None:
    files = sorted(path for path in small.rglob("*") if path.is_file())

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def flip(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(files))
        contents = path.read_bytes()
        at = data.draw(st.integers(0, len(contents) - 1))
        mask = data.draw(st.integers(1, 255))
        changed = bytearray(contents)
        changed[at] ^= mask
        path.write_bytes(changed)
        try:
            text = refused(lambda: load_all(small), str(path.relative_to(small)))
            assert "crc32" in text or "sha256" in text
        finally:
            path.write_bytes(contents)

    flip()
    load_all(small).check_hashes()


def test_every_byte_of_the_manifest_counts(small: Path) -> None:
    path = small / "manifest.json"
    contents = path.read_bytes()
    for at in range(len(contents)):
        for mask in (1, 32, 128):
            path.write_bytes(contents[:at] + bytes([contents[at] ^ mask]) + contents[at + 1 :])
            refused(lambda: open_bundle(small), "manifest.json", "sha256")


@pytest.mark.parametrize(
    "name", ["plan.json", "rank-00001/model.onnx", "rank-00000/model.safetensors"]
)
def test_damaged_files_are_named(small: Path, name: str) -> None:
    path = small / name
    contents = path.read_bytes()
    path.write_bytes(contents[:-1])
    refused(lambda: open_bundle(small), f"{name} has {len(contents) - 1} bytes", "states")
    path.write_bytes(contents + b"\0")
    refused(lambda: open_bundle(small), f"{name} has {len(contents) + 1} bytes")
    path.unlink()
    refused(lambda: open_bundle(small), f"no usable file {name} (no such file")
    os.mkfifo(path)
    refused(lambda: open_bundle(small), f"{name} is not a regular file")
    path.unlink()
    (small.parent / "copy").write_bytes(contents)
    path.symlink_to(small.parent / "copy")
    refused(lambda: open_bundle(small), name, "links are refused")


def test_a_linked_rank_folder_is_refused_and_a_linked_bundle_is_not(small: Path) -> None:
    (small.parent / "link").symlink_to(small)
    load_all(small.parent / "link")
    shutil.move(small / "rank-00001", small.parent / "moved")
    (small / "rank-00001").symlink_to(small.parent / "moved")
    refused(lambda: open_bundle(small), "rank-00001/model.onnx", "links are refused")


def test_sha256_finds_what_a_forged_crc32_hides(small: Path) -> None:
    bundle = open_bundle(small)
    for name in ("rank-00000/model.onnx", "plan.json"):
        (small / name).write_bytes(bytes(bundle.files[name].size))
    text = refused(bundle.check_hashes, "rank-00000/model.onnx has sha256", "plan.json has sha256")
    assert bundle.files["plan.json"].sha256 in text


def test_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    refused(lambda: open_bundle(tmp_path / "absent"), "does not exist")
    refused(lambda: open_bundle(tmp_path), "is not a bundle: it has no manifest.json")
    (tmp_path / "manifest.json").write_text('{"hello": 1}')
    refused(lambda: open_bundle(tmp_path), "damaged or no manifest", "bundle_id")
    refused(lambda: open_bundle(tmp_path / "manifest.json"), "is a file, not a bundle")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("format"), ("no field 'format'",)),
        (lambda m: m.update(format="zip"), ("format 'zip'",)),
        (lambda m: m.update(format_version=2), ("format version 2", "Update tpcore")),
        (lambda m: m.update(format_version="1"), ("type str, expected int",)),
        (lambda m: m.update(world_size=True), ("type bool, expected int",)),
        (lambda m: m.update(world_size=10**9), ("lists 5 files for a world_size of 1000000000",)),
        (lambda m: m.update(world_size=-1), ("world_size of -1",)),
        (lambda m: m.update(files=[]), ("'files' of type list, expected dict",)),
        (lambda m: _rename(m, "../../etc"), ("does not list the file plan.json",)),
        (lambda m: m["files"].update({"plan.json": 3}), ("file plan.json, is a int",)),
        (lambda m: m["files"]["plan.json"].update(size=-1), ("size -1",)),
        (lambda m: m["files"]["plan.json"].update(crc32="12"), ("crc32 '12'",)),
        (lambda m: m["files"]["plan.json"].pop("sha256"), ("no field 'sha256'",)),
    ],
)
def test_refuses_malformed_manifests(small: Path, change: Change, words: tuple[str, ...]) -> None:
    manifest = json.loads((small / "manifest.json").read_text())
    change(manifest)
    forge(small, json.dumps(manifest, indent=2).encode())
    refused(lambda: open_bundle(small), "manifest.json", *words)


def _rename(manifest: dict[str, Any], name: str) -> None:
    manifest["files"][name] = manifest["files"].pop("plan.json")


def forge(bundle: Path, contents: bytes) -> None:
    """Write a manifest whose bundle_id is right whatever else it says."""
    start = contents.index(b'"bundle_id": "') + len(b'"bundle_id": "')
    zeroed = contents[:start] + b"0" * 64 + contents[start + 64 :]
    digits = hashlib.sha256(zeroed).hexdigest().encode()
    (bundle / "manifest.json").write_bytes(zeroed.replace(b"0" * 64, digits, 1))


def test_refuses_hostile_json(small: Path) -> None:
    head = b'{\n  "bundle_id": "' + b"0" * 64 + b'",\n'
    forge(small, head + b'"a": ' + b"[" * 100_000)
    refused(lambda: open_bundle(small), "not valid JSON")
    forge(small, head + b"\xff")
    refused(lambda: open_bundle(small), "not valid JSON")


def test_fields_of_the_format_are_not_the_callers() -> None:
    with pytest.raises(ValueError, match="world_size"):
        encode({"world_size": 3}, {}, 2)
    refused(lambda: field({"mesh": 3}, "mesh", dict, "it"), "'mesh' of type int, expected dict")
    refused(lambda: file_digests({"files": {}}, "it"), "no field 'world_size'")


def test_world_size_and_rank(small: Path) -> None:
    bundle = open_bundle(small)
    refused(lambda: bundle.load_rank(2), "has ranks 0 to 1, but rank 2 was asked for")


def test_force_replaces_bundles_only(tmp_path: Path, small: Path) -> None:
    def write(path: Path, force: bool) -> Path:
        return write_bundle(path, two_ranks(), manifest=PROGRAMS, plan={}, force=force)

    before = open_bundle(small).id
    refused(lambda: write(small, False), "exists already", "--force")
    assert open_bundle(small).id == before
    write(small, True)
    assert load_all(small).id != before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years of work")
    refused(lambda: write(precious, True), "is not a bundle, so --force does not replace it either")
    refused(lambda: write(precious / "thesis", True), "is not a bundle")
    refused(lambda: write(precious / "thesis" / "bundle", False), "cannot write bundle")
    assert (precious / "thesis").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "small"]
    write(tmp_path / "new" / "parent" / "bundle", False)


@pytest.mark.parametrize("force", [False, True])
def test_a_failed_write_leaves_nothing(tmp_path: Path, small: Path, force: bool) -> None:
    def fail() -> ir.Tensor[Any]:
        raise GraphError("cannot read")

    bad = ir.LazyTensor(fail, ir.DataType.FLOAT, ir.Shape([40, 50]), name="bad")
    before = open_bundle(small).id
    with pytest.raises(GraphError):
        target = small if force else tmp_path / "new"
        write_bundle(target, [{"main": rank_model(bad)}], manifest=PROGRAMS, plan={}, force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert load_all(small).id == before


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(
        lambda: write_bundle(tmp_path / "b", two_ranks(), manifest=PROGRAMS, plan={}),
        "No space left on device",
    )
    assert not list(tmp_path.iterdir())


def test_source_digest_follows_the_model_and_its_data(tmp_path: Path) -> None:
    def digest(data: bytes, name: str = "m") -> str:
        tensor = onnx.TensorProto(name="w", data_type=2, dims=[4], data_location=EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        graph = onnx.helper.make_graph([], name, [], [], [tensor])
        onnx.save_model(onnx.helper.make_model(graph), tmp_path / "m.onnx")
        (tmp_path / "w.bin").write_bytes(data)
        return source_digest(tmp_path / "m.onnx")

    assert digest(bytes(4)) == digest(bytes(4)) != digest(bytes(5))
    assert digest(bytes(4)) != digest(bytes(4), "n")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(GraphError, match="'w.bin' cannot be opened"):
        source_digest(tmp_path / "m.onnx")
