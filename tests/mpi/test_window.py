"""Exchanges through shared memory on real ranks: every case, with slots far too small as well."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, cast

import ml_dtypes
import numpy as np
import pytest

from backends import comm_window, window
from backends.base import Communicator
from backends.comm_window import WindowCommunicator, through_shared_memory
from backends.conformance import check_between
from backends.conformance_cases import collective_cases
from backends.exec_ort import OrtExecutor
from backends.job import meet
from backends.placement import detect_environment
from backends.shared_memory import SharedMemory, map_memory
from graph.dialect import AllReduce

if TYPE_CHECKING:
    from backends.comm_mpi import MpiCommunicator

PLACEMENT = detect_environment()
MEETING = meet(PLACEMENT)
RANK, SIZE = MEETING.rank, MEETING.size
SMALL_SLOTS = 4096
CASES = [case for case in collective_cases(SIZE) if "64 MiB" not in case.name]


def shared(slot_bytes: int = window.SLOT_BYTES) -> WindowCommunicator:
    """These ranks, through shared memory."""
    made = through_shared_memory(MEETING, slot_bytes=slot_bytes)
    assert isinstance(made, WindowCommunicator)
    return made


def check_all(communicator: Communicator) -> None:
    """Compare every collective with its meaning, bit for bit."""
    for case in CASES:
        check_between(case, communicator, OrtExecutor())


def test_every_collective_where_operands_are_larger_than_a_slot() -> None:
    assert sum(case.name.endswith(" 1 MiB") for case in CASES) > 30
    check_all(shared(SMALL_SLOTS))


def test_every_collective_of_ranks_that_share_no_memory() -> None:
    check_all(MEETING)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
@pytest.mark.parametrize("count", [0, 1, 7, 8191, 65537, 524_287, 2_000_003])
def test_sums_are_the_same_bits_on_every_run(count: int, dtype: type) -> None:
    communicator, op = shared(), AllReduce("tp")
    random = np.random.default_rng(0)
    parts: list[np.ndarray] = [
        (random.standard_normal(count) * 100).astype(dtype) for _ in range(SIZE)
    ]
    (expected,) = {total.tobytes() for total in op.meaning(parts)}
    for repeat in range(50 if count < 1_000_000 else 5):
        if (repeat + RANK) % 3 == 0:
            sum(range(1000 * RANK))  # ranks come late by turns
        assert communicator.run(op, parts[RANK].copy()).tobytes() == expected


def test_a_kept_operand_is_not_written() -> None:
    communicator, operand = shared(), np.full(5, RANK, np.float32)
    total = communicator.run(AllReduce("tp"), operand, keep=True)
    assert operand.tolist() == [RANK] * 5 and total.tolist() == [SIZE * (SIZE - 1) / 2] * 5


def test_as_many_plans_as_there_are_shapes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm_window, "_MAX_PLANS", 3)
    communicator = shared()
    for count in range(1, 9):
        total = communicator.run(AllReduce("tp"), np.ones(count, np.float32))
        assert total.tolist() == [SIZE] * count


def test_ranks_of_a_processor_that_needs_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm_window, "needs_fence", lambda: True)
    assert through_shared_memory(MEETING) is MEETING
    fences = []
    made = through_shared_memory(MEETING, lambda: lambda: fences.append(1))
    made.run(AllReduce("tp"), np.ones(1, np.int64))
    assert len(fences) == 2  # before the flag is set, and after the others' are seen


if PLACEMENT.speaks_mpi:

    def test_the_fence_of_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(comm_window, "needs_fence", lambda: True)
        made = through_shared_memory(MEETING, cast("MpiCommunicator", MEETING).fence)
        for _ in range(50):
            assert made.run(AllReduce("tp"), np.ones(3, np.int64)).tolist() == [SIZE] * 3


def test_where_one_rank_cannot_map_the_memory_all_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(address: str, size_bytes: int) -> mmap.mmap:
        raise PermissionError(address)

    if RANK == 1:
        monkeypatch.setattr(comm_window, "map_memory", refuse)
    assert through_shared_memory(MEETING) is MEETING


def test_where_there_is_no_memory_to_share_all_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size_bytes: int) -> SharedMemory:
        raise OSError

    monkeypatch.setattr(comm_window, "SharedMemory", refuse)
    assert through_shared_memory(MEETING) is MEETING


def test_memory_of_another_host_is_not_mapped() -> None:
    offered = SharedMemory(SMALL_SLOTS)
    path = offered.address.partition(":")[0]
    with pytest.raises(OSError):
        map_memory(f"{path}:tpcore-other", SMALL_SLOTS)
    offered.close()
    with pytest.raises(OSError):
        map_memory(offered.address, SMALL_SLOTS)
