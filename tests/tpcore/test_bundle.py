"""A bundle gives back what was written, and refuses every change to any of its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.dialect import AllReduce, make_node
from graph.errors import BundleError, GraphError
from graph.interpret import interpret
from graph.layout import Box
from graph.reader import read_model
from graph.weights import ShardTensor
from graph.writer import write_models
from tpcore.bundle import Bundle, open_bundle, write_bundle
from tpcore.manifest import encode, field, file_digests, source_digest

EXTERNAL = onnx.TensorProto.EXTERNAL
FIELDS = {"mesh": {"tp": 2}, "source": {"sha256": "0" * 64}}
PLAN = {"values": {"w": "S(0)"}}
NUMBERS = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
DTYPES = [
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.INT64,
    ir.DataType.INT8,
    ir.DataType.UINT16,
    ir.DataType.BOOL,
    ir.DataType.INT4,
    ir.DataType.UINT4,
]


def model_of(tensors: dict[str, ir.TensorProtocol], nodes: bool = False) -> ir.Model:
    """A graph with these initializers and, on request, x -> MatMul w -> AllReduce -> y."""
    values = {name: ir.val(name, const_value=tensor) for name, tensor in tensors.items()}
    x = ir.val("x", ir.DataType.FLOAT, [None, None])
    y, made = x, []
    if nodes:
        product = ir.node("MatMul", [x, values["w"]])
        made = [product, make_node(AllReduce("tp"), product.outputs[0])]
        y = made[-1].outputs[0]
        y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        [y],
        nodes=made,
        initializers=list(values.values()),
        opset_imports={"": 21},
        name="rank",
    )
    return ir.Model(graph, ir_version=14)


def two_ranks() -> list[ir.Model]:
    source = ir.tensor(NUMBERS, name="w")
    boxes: list[Box] = [(((0, 15),), None), (((15, 40),), None)]
    return [model_of({"w": ShardTensor(source, box)}, nodes=True) for box in boxes]


def offset(value: ir.Value) -> int:
    assert isinstance(value.const_value, ir.ExternalTensor)
    return value.const_value.offset or 0


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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_in_uneven_packed_and_zero_parts(tmp_path: Path, dtype: ir.DataType) -> None:
    numbers = (NUMBERS * 3).clip(-7, 7) if dtype != ir.DataType.UINT4 else NUMBERS.clip(0, 7)
    source = ir.Tensor(numbers.astype(dtype.numpy()), dtype=dtype, name="s")
    boxes: dict[str, Box] = {
        "rows": (((3, 20),), None),
        "columns": (None, ((1, 48),)),
        "packed": (((0, 9), (30, 37)), ((5, 50),)),
        "whole": (None, None),
        "none": (((4, 4),), None),
    }
    shards: dict[str, ir.TensorProtocol] = {n: ShardTensor(source, b) for n, b in boxes.items()}
    shards["zero"] = ShardTensor(source, (None, None), zero=True)
    shards["tied"] = ShardTensor(source, boxes["columns"])
    shards["small"] = ShardTensor(source, (((0, 1),), ((0, 2),)))
    want = {name: tensor.numpy() for name, tensor in shards.items()}
    write_models([tmp_path], [model_of(shards)])
    loaded = read_model(tmp_path / "model.onnx").graph.initializers
    assert set(loaded) == set(want)
    for name, array in want.items():
        tensor = loaded[name].const_value
        assert tensor is not None and tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert offset(loaded["tied"]) == offset(loaded["columns"])
    onnx.load(tmp_path / "model.onnx")
    if dtype.bitwidth > 8:
        stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(stored["packed"], want["packed"])
        assert "tied" not in stored


def test_weights_are_aligned_and_onnxruntime_reads_them(tmp_path: Path) -> None:
    big = np.random.default_rng(1).standard_normal((512, 513)).astype(np.float32)
    tensors: dict[str, ir.TensorProtocol] = {
        "odd": ir.tensor(np.ones(77, np.float32)),
        "big": ir.tensor(big),
    }
    model = model_of(tensors)
    product = ir.node("MatMul", [model.graph.inputs[0], model.graph.initializers["big"]])
    product.outputs[0].name, product.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(product)
    model.graph.outputs[0] = product.outputs[0]
    write_models([tmp_path], [model])
    loaded = read_model(tmp_path / "model.onnx").graph.initializers
    assert offset(loaded["odd"]) % 64 == offset(loaded["big"]) % 4096 == 0
    x = np.ones((2, 512), np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ big, rtol=1e-4, atol=1e-4)


def test_weights_of_subgraphs_and_attributes_travel_along(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "w.bin").write_bytes(NUMBERS.tobytes())
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (bool keep, float[40, 50] x) => (float[40, 50] y) {
      y = If (keep) <then_branch = t () => (float[40, 50] t1) { t1 = Add (w, x) },
                     else_branch = f () => (float[40, 50] f1) { f1 = Identity (x) }>
    }
    """
    proto = onnx.parser.parse_model(text)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[40, 50], data_location=EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    branch = proto.graph.node[0].attribute[0].g
    branch.initializer.append(tensor)
    constant = onnx.helper.make_node("Constant", [], ["c"])
    attribute = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(tensor)
    proto.graph.node.insert(0, constant)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    write_models([tmp_path], [read_model(folder / "m.onnx")])
    shutil.rmtree(folder)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    got = session.run(None, {"keep": np.array(True), "x": NUMBERS})[0]
    np.testing.assert_array_equal(got, NUMBERS * 2)


def test_each_source_is_read_once_and_one_is_held(tmp_path: Path) -> None:
    reads: list[str] = []
    ranks: list[dict[str, ir.TensorProtocol]] = [{} for _ in range(4)]
    for name in ("a", "b", "c", "d"):

        def read(name: str = name) -> ir.Tensor[Any]:
            reads.append(name)
            return ir.Tensor(np.full((1024, 1024), ord(name), np.float32), name=name)

        source = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([1024, 1024]), name=name)
        for rank in range(4):
            box: Box = (None, ((rank * 256, rank * 256 + 256),))
            ranks[rank][name] = ShardTensor(source, box)
    done: list[tuple[int, int]] = []
    folders = [tmp_path / str(rank) for rank in range(4)]
    for folder in folders:
        folder.mkdir()
    tracemalloc.start()
    models = [model_of(tensors) for tensors in ranks]
    write_models(folders, models, lambda now, total: done.append((now, total)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reads == ["a", "b", "c", "d"]
    assert done == [((i + 1) << 22, 4 << 22) for i in range(4)]
    assert peak < 10 << 20  # of 16 MB in all: one source of 4, one block of at most 4


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
    bundle.require_world_size(2)
    refused(lambda: bundle.require_world_size(4), "is for 2 ranks but 4 were started")
    refused(lambda: bundle.load_rank(2), "has ranks 0 to 1, but rank 2 was asked for")


def test_force_replaces_bundles_only(tmp_path: Path, small: Path) -> None:
    def write(path: Path, force: bool) -> Path:
        return write_bundle(path, two_ranks(), manifest={}, plan={}, force=force)

    before = open_bundle(small).id
    refused(lambda: write(small, False), "exists already", "--force")
    assert open_bundle(small).id == before
    write(small, True)
    assert load_all(small).id != before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years of work")
    refused(lambda: write(precious, True), "is not a bundle, so --force does not replace it")
    refused(lambda: write(precious / "thesis", True), "is not a bundle")
    refused(lambda: write(precious / "thesis" / "bundle", False), "cannot write bundle")
    assert (precious / "thesis").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "small"]
    write(tmp_path / "new" / "parent" / "bundle", False)


@pytest.mark.parametrize("force", [False, True])
def test_a_failed_write_leaves_nothing(tmp_path: Path, small: Path, force: bool) -> None:
    def fail() -> ir.Tensor[Any]:
        raise GraphError("cannot read")

    bad = ir.LazyTensor(fail, ir.DataType.FLOAT, ir.Shape([1000]), name="bad")
    before = open_bundle(small).id
    with pytest.raises(GraphError):
        target = small if force else tmp_path / "new"
        write_bundle(target, [model_of({"bad": bad})], manifest={}, plan={}, force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert load_all(small).id == before


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(
        lambda: write_bundle(tmp_path / "b", two_ranks(), manifest={}, plan={}),
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


def test_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    write_models([tmp_path], [model_of({"w": ir.tensor(bits.view(ml_dtypes.bfloat16))})])
    tensor = read_model(tmp_path / "model.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy().view(np.uint16), bits)
