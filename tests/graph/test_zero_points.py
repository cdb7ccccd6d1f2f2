"""Zero points of several to a byte: packed and unpacked, counted, and cut between two of a byte."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph.canonicalize import canonicalize
from graph.packing import bytes_of_codes, pack, unpack
from graph.weights import CodesTensor, ShardTensor, dims_of
from tests.graph.small import Array, small_model

RANDOM = np.random.default_rng(4)


def bytes_of(*shape: int) -> Array:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_packing_is_undone_by_unpacking(bits: int, count: int) -> None:
    codes = RANDOM.integers(0, 1 << bits, (3, count)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, bytes_of_codes(count, bits)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack(packed, bits)[:, :count], codes)
    assert not unpack(packed, bits)[:, count:].any()


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert unpack(np.array([0x21, 0x43], np.uint8), 4).tolist() == [1, 2, 3, 4]
    assert pack(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]


def test_a_part_is_cut_between_two_codes_of_a_byte() -> None:
    codes = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], np.uint8)
    whole = CodesTensor(ir.tensor(pack(codes, 4)), 4, 5)
    assert dims_of(whole) == (2, 5) and whole.shape.numpy() == (2, 3)
    parts = [ShardTensor(whole, (None, (held,))) for held in ((0, 3), (3, 5))]
    assert [part.shape.numpy() for part in parts] == [(2, 2), (2, 1)]
    assert parts[0].numpy().tolist() == [[0x21, 0x03], [0x76, 0x08]]
    assert parts[1].numpy().tolist() == [[0x54], [0xA9]]
    assert parts[0].nbytes + parts[1].nbytes == 6
    row = ShardTensor(whole, (((1, 2),), None))
    assert row.numpy().tolist() == pack(codes[1:], 4).tolist()


def test_rows_in_one_dim_become_a_matrix() -> None:
    flat = bytes_of(12)
    whole = CodesTensor(ir.tensor(flat), 4, 3)
    assert whole.shape.numpy() == (6, 2)
    np.testing.assert_array_equal(whole.numpy(), flat.reshape(6, 2))


PRODUCT = "com.microsoft.MatMulNBits <K = 48, N = 6, bits = {bits}, block_size = 16> (x, w, s, z)"


def product_model(bits: int = 4, also: str = "", **weights: Array) -> ir.Model:
    """Three blocks a row; `also` is one more node."""
    given = {
        **{"w": bytes_of(6, 3, 2 * bits), "s": np.ones((6, 3), np.float32)},
        **{"z": bytes_of(6, bytes_of_codes(3, bits))},
        **weights,
    }
    text = f"(float[2, 48] x) => (float[2, 6] y) {{ {also} y = {PRODUCT.format(bits=bits)} }}"
    return small_model(text, **given)


def counted(model: ir.Model) -> bool:
    canonical, shapes = canonicalize(model)
    value = next(node for node in canonical.graph if node.op_type == "MatMulNBits").inputs[3]
    assert value is not None
    found = isinstance(value.const_value, CodesTensor)
    assert not found or shapes.dims[value] == (6, 3)
    return found


def test_zero_points_of_several_to_a_byte_are_counted() -> None:
    assert counted(product_model())
    assert counted(product_model(bits=2))


def test_those_in_one_dim_are_counted_by_row() -> None:
    assert counted(product_model(z=bytes_of(12)))


def test_bytes_and_floats_stay_as_they_are() -> None:
    assert not counted(product_model(bits=8))
    assert not counted(product_model(z=np.ones((6, 3), np.float32)))


def test_what_another_op_reads_stays_bytes() -> None:
    assert not counted(product_model(also="other = Cast <to = 1> (z)\n"))


def test_a_size_that_does_not_fit_stays_bytes() -> None:
    assert not counted(product_model(z=bytes_of(6, 3)))


def test_a_canonical_model_still_holds_bytes() -> None:
    model = product_model()
    before = model.graph.initializers["z"].const_value
    assert before is not None
    canonical, _ = canonicalize(model.clone())
    after = canonical.graph.initializers["z"].const_value
    assert after is not None and after is not before
    np.testing.assert_array_equal(after.numpy(), before.numpy())
