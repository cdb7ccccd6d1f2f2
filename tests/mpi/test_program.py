"""A rank program on real ranks: equal to the whole model and to lockstep, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from backends.comm_mpi import MpiCommunicator
from backends.exec_ort import OrtExecutor
from backends.handshake import RankInfo, collective_sequence, handshake
from backends.run import RankProgram, run_lockstep
from graph.dialect import AllReduce
from graph.errors import BundleError, ExecutionError, TpcoreError
from tests.backends.toys import HIDDEN, Maker, mlp_rank, mlp_reference, mlp_weights

COMMUNICATOR = MpiCommunicator()
RANK, SIZE = COMMUNICATOR.rank, COMMUNICATOR.size
X = np.random.default_rng(1).normal(size=(3, HIDDEN)).astype(np.float32)


def test_ranks_equal_the_whole_mlp_and_lockstep() -> None:
    program = RankProgram(mlp_rank(RANK, SIZE), OrtExecutor(), COMMUNICATOR)
    models = [mlp_rank(rank, SIZE) for rank in range(SIZE)]
    expected = run_lockstep(models, [{"x": X}] * SIZE, OrtExecutor())[RANK]
    for _ in range(3):
        result = program.run({"x": X})
        for name, array in mlp_reference(X, mlp_weights()).items():
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5)
            assert result[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_values_pass(dtype: type) -> None:
    maker = Maker(dtype)
    total = maker.collective(AllReduce("tp"), maker.op("Identity", maker.input("x", ("n",))), "sum")
    program = RankProgram(
        maker.model([maker.op("Identity", total, name="y")]), OrtExecutor(), COMMUNICATOR
    )
    result = program.run({"x": np.array([RANK, 1], dtype)})["y"]
    assert result.dtype == dtype
    assert result.astype(np.float32).tolist() == [SIZE * (SIZE - 1) / 2, SIZE]


def test_ranks_that_agree_shake_hands() -> None:
    model = mlp_rank(RANK, SIZE)
    handshake(COMMUNICATOR, RankInfo("b", "1", SIZE), collective_sequence(model))


def two_reductions(swap: bool, reduce: str = "sum") -> ir.Model:
    maker = Maker()
    x = maker.input("x", (2,))
    parts = [maker.op("Neg", x), maker.op("Abs", x)]
    order = [1, 0] if swap else [0, 1]
    names = ["neg", "abs"]
    return maker.model(
        [maker.collective(AllReduce("tp", reduce), parts[i], names[i]) for i in order]
    )


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (two_reductions(swap=RANK == 1), "rank 1 .* position 0: rank 1 has #0 .*'abs'"),
        (two_reductions(False, "max" if RANK == 1 else "sum"), "reduce=max.*reduce=sum"),
    ],
    ids=["order", "reduction"],
)
def test_ranks_that_differ_are_refused(model: ir.Model, text: str) -> None:
    with pytest.raises(BundleError, match=text) as caught:
        handshake(COMMUNICATOR, RankInfo("b", "1", SIZE), collective_sequence(model))
    assert caught.value.agreed
    messages = COMMUNICATOR.exchange(str(caught.value).encode())
    assert len(set(messages)) == 1


@pytest.mark.parametrize(
    ("info", "kind", "text"),
    [
        (RankInfo("a" if RANK else "b", "1", SIZE), BundleError, "the bundle 'a|the bundle 'b"),
        (RankInfo("b", "1", SIZE + 1), BundleError, f"split for {SIZE + 1} ranks but {SIZE} were"),
        (
            RankInfo("b", "1", SIZE, error="disk full" if RANK == 1 else "", error_status=3),
            ExecutionError,
            "rank 1 cannot run: disk full",
        ),
        (RankInfo("b", "1", SIZE, error="no such file"), BundleError, "^no such file$"),
    ],
    ids=["bundle", "world", "one-error", "all-error"],
)
def test_what_ranks_refuse_together(info: RankInfo, kind: type[TpcoreError], text: str) -> None:
    with pytest.raises(kind, match=text):
        handshake(COMMUNICATOR, info)
