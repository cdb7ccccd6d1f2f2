"""`tpcore calibrate`: it measures through a backend, and what it writes can be planned with.

Figures depend on the machine and on what else it does: only their order of magnitude is looked at.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backends import registry
from backends.comm_local import SingleCommunicator, run_together
from backends.handshake import collective_sequence
from graph.errors import PlanError
from tests.tpcore.command import check_sentence, tpcore, tpcore_here
from tpcore import calibrate, measure
from tpcore.measure import SIZES, Bench, Found
from tpcore.measure_graphs import activations, chain, collective, exchanges, matmuls
from tpcore.planner.topology import COLLECTIVES, Rates
from tpcore.planner.topology_files import load_topology, topology_to_json
from tpcore.reshard import ReshardKind

RATES = Rates({"f32": 1e11}, 1e10, 5e10, 1e-6)


def times(latency: float) -> list[tuple[float, float]]:
    """Times of a link that sends 1 GB per second."""
    return [(float(size), latency + size / 1e9) for size in SIZES]


def found(ranks: int, latency: float = 1e-5) -> Found:
    """What a job on that many ranks might measure."""
    kinds = {kind: times(latency) for kind in COLLECTIVES} if ranks > 1 else {}
    return Found(ranks, 1, RATES, kinds)


def test_a_topology_is_made_of_what_was_measured(tmp_path: Path) -> None:
    topology = calibrate.topology_of("cpu", [found(1), found(2, 1e-5), found(4, 1.5e-5)])
    (link,) = topology.links
    assert link.ranks is None and topology.device.rates[4] == RATES
    assert link.hop_seconds == pytest.approx(5e-6)
    size = SIZES[3]
    for ranks, latency in ((2, 1e-5), (4, 1.5e-5)):
        seconds = topology.collective_seconds(ReshardKind.ALL_GATHER, size, ranks)
        assert seconds == pytest.approx(latency + size / 1e9)
    # Sixteen ranks were not measured: two more doublings, and bytes at the rate of the largest.
    seconds = topology.collective_seconds(ReshardKind.ALL_REDUCE, 0, 16)
    assert seconds == pytest.approx(2.5e-5, rel=0.05)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(topology_to_json(topology, "a test")))
    assert load_topology(str(path)).device == topology.device


def test_what_a_job_finds_is_read_back() -> None:
    text = json.dumps(found(2).to_json())
    again = Found.from_json(json.loads(text))
    assert again.rates == RATES and again.ranks == 2
    assert [tuple(p) for p in again.collectives[ReshardKind.ALL_REDUCE]] == times(1e-5)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_every_rank_exchanges_its_part_of_the_size_that_is_meant(
    kind: ReshardKind, ranks: int
) -> None:
    pairs = [collective(kind, SIZES[1], ranks, rank) for rank in range(ranks)]
    operands = [np.zeros(shape, np.float32) for _, shape in pairs]
    results = run_together(pairs[0][0], operands)
    whole = {ReshardKind.ALL_REDUCE: ranks, ReshardKind.REDUCE_SCATTER: ranks}
    assert sum(x.nbytes for x in operands) == SIZES[1] * whole.get(kind, 1)
    assert pairs[0][0].op_type == kind.value and len(results) == ranks


def test_the_graphs_are_what_is_timed() -> None:
    assert len(matmuls(3, 4, 8).graph) == 3 and len(chain(["Add"] * 5, (1, 4)).graph) == 5
    model, values = activations(4, 8)
    operands = sum(len(node.inputs) + len(node.outputs) for node in model.graph)
    assert values == operands
    assert len(collective_sequence(exchanges(3, (4, 4)))) == 3


def test_one_rank_measures_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WIDTH", 64)
    monkeypatch.setattr(measure, "GEMM_WIDTH", 64)
    said: list[str] = []
    executor = registry.get("simulate").executor()
    bench = Bench(executor, SingleCommunicator(), 1, 1 << 20, said.append)
    result = bench.measure()
    assert result.collectives == {} and result.ranks == 1
    assert 1e7 < result.rates.flops("f32") < 1e13
    assert 1e7 < result.rates.memory_bytes_per_second < 1e12
    assert 1e-8 < result.rates.op_seconds < 1e-2
    assert "GFLOP/s" in said[0]


@pytest.mark.parametrize(
    ("backend", "ranks", "what"),
    [
        ("simulate", [1, 2], "backend 'simulate' runs all ranks in one process"),
        ("cpu", [1], "--ranks 1 has no number above 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(backend: str, ranks: list[int], what: str) -> None:
    with pytest.raises(PlanError) as error:
        calibrate.calibrate(registry.get(backend), ranks)
    check_sentence(str(error.value))
    assert what in str(error.value)


def test_bad_requests_get_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for argv, what in (
        (("-o", tmp_path / "no" / "t.json"), "is no directory"),
        (("-o", tmp_path / "t.json", "--ranks", "1,x"), "'x' is no number of ranks"),
        (("-o", tmp_path / "t.json", "--backend", "nope"), "backend 'nope' is unknown"),
    ):
        done = tpcore_here(capfd, "calibrate", *argv)
        assert done.status != 0 and what in done.error


def test_the_command_writes_a_topology(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    done = tpcore("calibrate", "-o", path, "--ranks", "2", "--threads", "1")
    assert done.status == 0, done.err
    topology = load_topology(str(path))
    assert set(topology.device.rates) == {2}
    seconds = topology.collective_seconds(ReshardKind.ALL_REDUCE, 1024, 2)
    assert 1e-6 < seconds < 1.0
    assert "2 ranks of 1 thread" in done.err and str(path) in done.out
