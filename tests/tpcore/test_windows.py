"""Plans of graphs whose cost tables do not fit: window by window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import PlanError
from tests.tpcore.test_elimination import SEEDS, least_cost, random_graph
from tests.tpcore.test_exact_plans import MIDDLE, MIDDLE_OPS, cost_graph
from tpcore.partition import Options
from tpcore.planner import elimination, windows
from tpcore.planner.elimination import CostGraph, eliminate
from tpcore.shard import split_model
from tpcore.verify import verify_ranks

GROWTH, CHANNELS, SIZE = 8, 16, 6


def dense_net(layers: int) -> onnx.ModelProto:
    """As torch.onnx writes DenseNet: every layer reads a Concat of all earlier ones."""
    random = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []

    def weight(*dims: int) -> str:
        array = random.standard_normal(dims, np.float32) / np.sqrt(np.prod(dims[1:]))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(weights)}"))
        return str(weights[-1].name)

    nodes = [helper.make_node("Conv", ["x", weight(CHANNELS, 3, 3, 3)], ["f0"], pads=[1] * 4)]
    for i in range(layers):
        wide = CHANNELS + i * GROWTH
        made = [f"f{j}" for j in range(i + 1)]
        nodes += [
            helper.make_node("Concat", made, [f"c{i}"], axis=1),
            helper.make_node("Conv", [f"c{i}", weight(4 * GROWTH, wide, 1, 1)], [f"n{i}"]),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"]),
            helper.make_node(
                "Conv", [f"r{i}", weight(GROWTH, 4 * GROWTH, 3, 3)], [f"f{i + 1}"], pads=[1] * 4
            ),
        ]
    nodes.append(helper.make_node("Concat", [f"f{i}" for i in range(layers + 1)], ["y"], axis=1))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "dense", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_dense_net_is_split(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(dense_net(16), path)
    split = split_model(path, Options(2))
    assert split.sharded.plan.to_json()["proven_cheapest"] is False
    assert split.report["split_fraction"] > 0.95
    assert split.report["collectives"] == {"AllReduce": 16}
    assert verify_ranks(split.ranks, split.shardings, path).equal


@pytest.mark.parametrize("seed", range(MIDDLE))
def test_windows_come_near_what_is_best(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows of 12 of about 47 variables."""
    graph = cost_graph(1000 + seed, MIDDLE_OPS, 2)
    best = graph.cost(eliminate(graph))
    monkeypatch.setattr(windows, "WINDOW", 12)
    assert best * (1 - 1e-9) <= graph.cost(windows.by_windows(graph)) <= 1.5 * best


def test_windows_as_large_as_the_graph_are_exact() -> None:
    for seed in range(0, SEEDS, 5):
        graph = random_graph(seed)
        best = least_cost(graph)
        if np.isfinite(best):
            assert graph.cost(windows.by_windows(graph)) == pytest.approx(best)
        else:
            with pytest.raises(PlanError, match="no plan satisfies all pins at once"):
                windows.by_windows(graph)


def test_windows_are_halved_until_their_tables_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "MAX_TABLE", 64)
    graph: CostGraph[int] = CostGraph()
    random = np.random.default_rng(0)
    for i in range(12):
        graph.add_variable(i, random.random(4))
    for i in range(12):
        for j in range(i):
            graph.add_pair(j, i, random.random((4, 4)))
    chosen, proven = windows.minimise(graph)
    assert not proven and set(chosen) == set(range(12))
    assert graph.cost(chosen) < graph.cost(dict.fromkeys(range(12), 0))
