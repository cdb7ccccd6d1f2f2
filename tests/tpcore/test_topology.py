"""Topologies: what collectives cost on them, and that files are read strictly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from graph.errors import PlanError
from tests.tpcore.command import check_sentence
from tpcore.planner.topology import COLLECTIVES, Device, Link, Rates, Topology, interpolate
from tpcore.planner.topology_files import (
    load_topology,
    parse_topology,
    topology_names,
    topology_to_json,
)
from tpcore.reshard import ReshardKind

RATES = Rates({"f32": 1e12, "f16": 2e12}, 1e11, 2e11, 1e-6)
DEVICE = Device("box", 1e10, 1e6, {1: RATES, 4: Rates({"f32": 5e11}, 5e10, 1e11, 2e-6)})
FAST = Link("fast", 4, 1e10, dict.fromkeys(COLLECTIVES, 1e-6), 2e-6)
SLOW = Link("slow", None, 1e9, dict.fromkeys(COLLECTIVES, 1e-5), 0.0)
NODE = Topology("node", DEVICE, (FAST,))
CLUSTER = Topology("cluster", DEVICE, (FAST, SLOW))
SIZE = 8 << 20


def test_a_collective_within_a_node_costs_latency_hops_and_bytes() -> None:
    found = NODE.collective_seconds(ReshardKind.ALL_REDUCE, SIZE, 4)
    assert found == pytest.approx(1e-6 + 2 * 2e-6 + 2 * 3 / 4 * SIZE / 1e10)
    assert CLUSTER.collective_seconds(ReshardKind.ALL_REDUCE, SIZE, 4) == found


@pytest.mark.parametrize(
    ("kind", "within", "between"),
    [
        (ReshardKind.ALL_REDUCE, 2 * 3 / 4, 2 * 1 / 2 / 4),
        (ReshardKind.ALL_GATHER, 3 / 4, 1 / 2 / 4),
        (ReshardKind.REDUCE_SCATTER, 3 / 4, 1 / 2 / 4),
        (ReshardKind.ALL_TO_ALL, 3 / 4 / 8, 1 / 2 / 8),
    ],
)
def test_the_link_between_nodes_is_seen(kind: ReshardKind, within: float, between: float) -> None:
    """Two nodes of four ranks: shares of the tensor that a rank sends over each link."""
    expected = 5e-6 + within * SIZE / 1e10 + 1e-5 + between * SIZE / 1e9
    assert CLUSTER.collective_seconds(kind, SIZE, 8) == pytest.approx(expected)


def test_more_ranks_than_the_links_join_are_refused() -> None:
    with pytest.raises(PlanError) as error:
        NODE.collective_seconds(ReshardKind.ALL_REDUCE, SIZE, 5)
    check_sentence(str(error.value))
    assert "joins up to 4 ranks, the request is for 5" in str(error.value)
    assert CLUSTER.groups(9) == [4, 3] and CLUSTER.groups(1) == [1, 1]


def test_ranks_that_share_a_device_slow_each_other() -> None:
    assert NODE.rates(2) is DEVICE.rates[1]
    assert NODE.rates(4) is CLUSTER.rates(16) is DEVICE.rates[4]


def test_a_type_without_a_rate_has_the_slowest() -> None:
    assert (RATES.flops("f16"), RATES.flops("i8")) == (2e12, 1e12)


def test_measured_times_go_before_the_formula() -> None:
    points = ((1e3, 1e-5), (1e5, 1e-4), (1e6, 2e-3))
    link = Link("l", None, 1e9, FAST.alpha_seconds, 0.0, {ReshardKind.ALL_REDUCE: {2: points}})
    assert link.seconds(ReshardKind.ALL_REDUCE, 1e5, 2) == pytest.approx(1e-4)
    assert link.seconds(ReshardKind.ALL_REDUCE, 1e5, 4) == pytest.approx(1e-6 + 1.5e-4)


def test_interpolation_is_a_line_between_logarithms() -> None:
    points = ((1e3, 1e-5), (1e5, 1e-4), (1e6, 1e-3))
    assert interpolate(points, 0) == interpolate(points, 1e3) == 1e-5
    assert interpolate(points, 1e4) == pytest.approx(math.sqrt(1e-5 * 1e-4))
    assert interpolate(points, 1e7) == pytest.approx(1e-2)
    assert interpolate(points[:1], 2e3) == pytest.approx(2e-5)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", topology_names())
def test_a_shipped_topology_is_plausible(name: str) -> None:
    """Units are easily mistaken: a thousand too much or too little would show here."""
    topology = load_topology(name)
    rates = topology.rates(8)
    assert 1e10 < rates.flops("f32") < 1e15 and 1e10 < rates.flops("f16") < 1e16
    assert 5e9 < rates.memory_bytes_per_second < 1e13
    assert 1e-7 < topology.collective_seconds(ReshardKind.ALL_REDUCE, 1, 8) < 1e-3
    for inner, outer in zip(topology.links, topology.links[1:], strict=False):
        assert inner.alpha_seconds[ReshardKind.ALL_REDUCE] > 0
        assert inner.ranks is not None and outer.bytes_per_second > 0


def test_two_nodes_of_cards_pay_for_what_joins_them() -> None:
    topology = load_topology("h100-nvlink-ndr")
    one, two = (topology.collective_seconds(ReshardKind.ALL_REDUCE, SIZE, n) for n in (8, 16))
    assert two > one + SIZE / 8 / 50e9
    slow = load_topology("cpu-ethernet-10g")
    assert slow.collective_seconds(ReshardKind.ALL_REDUCE, SIZE, 16) > two


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    points = ((1024.0, 1e-5), (4096.0, 2e-5))
    measured = {kind: {2: points} for kind in COLLECTIVES}
    link = Link("l", None, 1e9, FAST.alpha_seconds, 1e-6, measured)
    topology = Topology("box", DEVICE, (FAST, link))
    path = tmp_path / "t.json"
    path.write_text(json.dumps(topology_to_json(topology, "a test")))
    assert load_topology(str(path)) == topology


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(PlanError) as error:
        load_topology("h100-nvlin")
    check_sentence(str(error.value))
    assert "Nearest: 'h100-nvlink'" in str(error.value)


def _whole() -> dict[str, Any]:
    return topology_to_json(Topology("box", DEVICE, (FAST,)), "a test")


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("version",), 2, "its version is not 1"),
        (("links",), [], "it has no link"),
        (("nonsense",), 1, "has a field 'nonsense', which means nothing here"),
        (("device",), "h1000", "'h1000' is none of the devices"),
        (("device", "memory_bytes"), -1, "'memory_bytes' of the device is no number above 0"),
        (("device", "memory_bytes"), True, "'memory_bytes' of the device is no number above 0"),
        (("device", "rates"), {}, "the device has no rates"),
        (("device", "rates", "two"), {}, "the rates of two ranks has no field"),
        (("device", "rates", "1", "flops_per_second"), {}, "is empty"),
        (("device", "sources", "cache_bytes"), "", "'cache_bytes' of the device has no source"),
        (("device", "efficiency"), {"flops": 2, "memory": 1}, "each up to 1"),
        (("links", 0, "ranks"), 0, "a link for 0 ranks joins nobody"),
        (("links", 0, "link", "alpha_seconds"), {"AllReduce": 1}, "must name AllReduce"),
        (("links", 0, "link", "measured"), {"Gather": {}}, "'Gather' in its measured times"),
        (
            ("links", 0, "link", "measured"),
            {"AllReduce": {"2": [[2, 1], [1, 1]]}},
            "the times of AllReduce on 2 ranks are no list",
        ),
    ],
)
def test_a_malformed_file_is_refused(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, what: str
) -> None:
    data: Any = _whole()
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file = tmp_path / "t.json"
    file.write_text(json.dumps(data))
    with pytest.raises(PlanError) as error:
        load_topology(str(file))
    check_sentence(str(error.value))
    assert what in str(error.value) and "tpcore calibrate -o" in str(error.value)


def test_only_the_last_link_joins_any_number() -> None:
    data = topology_to_json(Topology("box", DEVICE, (SLOW, FAST)), "a test")
    with pytest.raises(ValueError, match="only the last may"):
        parse_topology(data)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"version": 1}'])
def test_what_is_no_topology_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(PlanError, match="is not a topology file"):
        load_topology(str(file))
