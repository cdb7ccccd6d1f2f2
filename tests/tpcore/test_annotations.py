"""Device annotations are followed, and a plan that is written as annotations is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graph.errors import PlanError
from tests.graph.small import small_model, weight
from tests.models import GENAI, model_path
from tests.tpcore.command import save, tpcore, tpcore_here
from tests.tpcore.random_plans import randomised
from tests.tpcore.small_models import decoder, mlp
from tpcore.annotate import annotated_model
from tpcore.partition import Options, plan_model, plan_models
from tpcore.plan import Plan
from tpcore.shard import Split, split_model, split_plan
from tpcore.verify import verify_ranks

NET = """(float[n, 64] x) => (float[n, 64] y) {
    [up] h = MatMul (x, w1)
    [act] a = Relu (h)
    [down] y = MatMul (a, w2)
}"""
Says = dict[str, int | None]
"""Tensor -> axis that is split, or None where it is whole."""


def net(text: str = NET) -> ir.Model:
    """A net that the planner splits by columns, then by rows."""
    model = small_model(text, w1=weight(64, 128) / 8, w2=weight(128, 64) / 8)
    model.ir_version = 11
    return model


def by_hand(model: ir.Model, path: Path, said: dict[str, Says], ranks: int = 2) -> Path:
    """Write a model with what some nodes say of their tensors, in ONNX's own fields."""
    save(model, path)
    proto = onnx.load(path, load_external_data=False)
    proto.configuration.add(name="mine", num_devices=ranks)
    for node in proto.graph.node:
        for tensor, axis in said.get(node.name, {}).items():
            annotate(node, tensor, axis, ranks)
    path.write_bytes(proto.SerializeToString())
    return path


def annotate(
    node: onnx.NodeProto, tensor: str, axis: int | None, ranks: int = 2, name: str = "mine"
) -> onnx.ShardingSpecProto:
    """Say that a node's tensor is split along an axis, or whole."""
    if not node.device_configurations:
        node.device_configurations.add(configuration_id=name)
    spec = node.device_configurations[0].sharding_spec.add(tensor_name=tensor)
    if axis is None:
        spec.device.append(-1)
        spec.index_to_device_group_map.add(key=-1, value=range(ranks))
    else:
        spec.device.extend(range(ranks))
        spec.sharded_dim.add(axis=axis).simple_sharding.add(num_shards=ranks)
    return spec


def dims(plan: Plan) -> dict[str, str]:
    """`R`, `P(sum)` or `S(1)` of every value."""
    return {name: text.split(" ")[0] for name, text in plan.to_json()["values"].items()}


def check_equal(split: Split, path: Path) -> None:
    result = verify_ranks(split.ranks, split.shardings, path)
    assert result.equal, result.first_divergence


# --- followed -------------------------------------------------------------------------------------

ROWS_FIRST: dict[str, Says] = {
    "up": {"x": 1, "w1": 0, "h": None},
    "down": {"a": None, "w2": 1, "y": 1},
}
"""Rows of the first weight, columns of the second: twice the exchange of what the planner does."""


def by_onnx_ir(model: ir.Model, path: Path, said: dict[str, Says]) -> Path:
    """The same by the API of onnx-ir, which cannot say that a tensor is whole."""
    configuration = model.add_device_configuration("mine", device_names=("left", "right"))
    for node in model.graph:
        for value in [*node.inputs, *node.outputs]:
            axis = said.get(node.name or "", {}).get(value.name or "") if value else None
            if value is not None and axis is not None:
                node.shard(value, configuration=configuration, axis=axis, num_shards=2)
    return save(model, path)


@pytest.mark.parametrize("write", [by_hand, by_onnx_ir])
def test_a_split_that_the_planner_would_not_choose(
    write: Callable[[ir.Model, Path, dict[str, Says]], Path], tmp_path: Path
) -> None:
    free = plan_model(save(net(), tmp_path / "free.onnx"), Options(2))
    assert (dims(free)["w1"], dims(free)["w2"]) == ("S(1)", "S(0)")
    path = write(net(), tmp_path / "m.onnx", ROWS_FIRST)
    split = split_model(path, Options(2))
    plan = split.sharded.plan
    assert (dims(plan)["w1"], dims(plan)["w2"]) == ("S(0)", "S(1)")
    assert split.report["collectives"] == {"AllReduce": 1, "AllGather": 1}
    assert split.report["annotations"]["configuration"] == "mine"
    assert split.report["annotations"]["without_effect"] == []
    check_equal(split, path)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_uneven_parts(ranks: int, tmp_path: Path) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", ROWS_FIRST, ranks)
    split = split_model(path, Options(ranks))
    assert dims(split.sharded.plan)["w1"] == "S(0)"
    check_equal(split, path)


def test_an_activation_is_held_as_its_producer_says_and_read_as_its_consumer_says(
    tmp_path: Path,
) -> None:
    said: dict[str, Says] = {"up": {"w1": 1, "h": None}, "act": {"h": 1, "a": 1}}
    path = by_hand(net(), tmp_path / "m.onnx", said)
    split = split_model(path, Options(2))
    values = dims(split.sharded.plan)
    assert (values["h"], values["a"], values["w1"]) == ("R", "S(1)", "S(1)")
    assert split.report["collectives"]["AllGather"] == 1
    check_equal(split, path)


def test_weights_kept_whole(tmp_path: Path) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", {"up": {"w1": None}})
    split = split_model(path, Options(2))
    assert dims(split.sharded.plan)["w1"] == "R"
    (whole,) = split.report["unsplit"]
    assert whole["reason"] == "a device annotation of the model keeps it whole"
    check_equal(split, path)


GEMM = """(float[n, 64] x) => (float[n, 64] y) {
    [up] h = Gemm <transB = 1> (x, w1)
    [act] a = Relu (h)
    [down] y = MatMul (a, w2)
}"""


def test_the_axes_of_a_transposed_weight(tmp_path: Path) -> None:
    """Gemm's weight is transposed when it is read: what is axis 1 in the file is axis 0 then."""
    model = small_model(GEMM, w1=weight(128, 64) / 8, w2=weight(128, 64) / 8)
    model.ir_version = 11
    path = by_hand(model, tmp_path / "m.onnx", {"up": {"x": 1, "w1": 1, "h": None}})
    split = split_model(path, Options(2))
    values = dims(split.sharded.plan)
    assert values["w1.T"] == "S(0)" and values["h"] == "R"
    assert split.report["annotations"]["without_effect"] == []
    check_equal(split, path)


def test_annotations_of_a_function_are_those_of_every_call(tmp_path: Path) -> None:
    text = """(float[n, 64] x) => (float[n, 64] y) {
        h = local.Layer (x, w1)
        y = local.Layer (h, w2)
    }
    <domain: "local", opset_import: ["" : 18]>
    Layer (a, w) => (b) {
        [mul] m = MatMul (a, w)
        [act] b = Relu (m)
    }"""
    model = small_model(text, w1=weight(64, 64) / 8, w2=weight(64, 64, seed=1) / 8)
    model.ir_version = 11
    path = save(model, tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    proto.configuration.add(name="mine", num_devices=2)
    annotate(proto.functions[0].node[0], "w", 0)
    path.write_bytes(proto.SerializeToString())
    split = split_model(path, Options(2))
    values = dims(split.sharded.plan)
    assert (values["w1"], values["w2"]) == ("S(0)", "S(0)")
    check_equal(split, path)


def test_rank_graphs_have_no_annotations(tmp_path: Path) -> None:
    for model in split_model(by_hand(net(), tmp_path / "m.onnx", ROWS_FIRST), Options(2)).ranks:
        assert not model.device_configurations
        assert not any(node.device_configurations for node in model.graph)


def test_what_has_no_effect_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = NET.replace("Relu (h)", "Relu (g)").replace(
        "[act]", "[same] g = Identity (h)\n    [act]"
    )
    said: dict[str, Says] = {"same": {"h": 1, "g": 1}, "up": {"w1": 1}}
    path = by_hand(net(text), tmp_path / "m.onnx", said)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.node[0].device_configurations[0].pipeline_stage = 0
    path.write_bytes(proto.SerializeToString())
    done = tpcore_here(capfd, "plan", path, "--tp", 2)
    gone = "it is computed otherwise, or not at all, in the canonical form of the model"
    assert done.out.splitlines()[7:] == [
        "pins           from the model's device configuration 'mine': 1 values",
        f"  ignored      what node 'same' (Identity) says of 'h' has no effect: {gone}",
        f"  ignored      what node 'same' (Identity) says of 'g' has no effect: {gone}",
        "  ignored      pipeline stages have no effect: every rank runs all nodes",
        "whole          nothing",
    ]


# --- which configuration, and when ----------------------------------------------------------------


def test_a_plan_that_is_given_goes_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", ROWS_FIRST)
    done = tpcore_here(capfd, "plan", path, "--tp", 2, "--plan", "auto", "-o", tmp_path / "p.json")
    told = "pins           not those of the model's device configurations 'mine': --plan auto was"
    assert told in done.out
    assert json.loads((tmp_path / "p.json").read_text())["values"]["w1"] == "S(1) 0:64 64:128"
    plan = plan_model(path, Options(2, plan=str(tmp_path / "p.json")))
    assert dims(plan)["w1"] == "S(1)"


def refused(path: Path, ranks: int = 2) -> str:
    with pytest.raises(PlanError) as caught:
        plan_model(path, Options(ranks))
    return str(caught.value)


def test_no_configuration_for_so_many_ranks(tmp_path: Path) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", ROWS_FIRST)
    assert f"'{path}' is annotated for other numbers of devices than --tp 4: 'mine' for 2" in (
        refused(path, 4)
    )
    plan_model(path, Options(4, plan="auto"))
    plan_model(path, Options(1))


def test_two_configurations_for_as_many_ranks(tmp_path: Path) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", ROWS_FIRST)
    proto = onnx.load(path, load_external_data=False)
    proto.configuration.add(name="other", num_devices=2)
    path.write_bytes(proto.SerializeToString())
    plan_model(path, Options(2))  # no node refers to it
    annotate(proto.graph.node[1], "a", None, name="other")
    path.write_bytes(proto.SerializeToString())
    assert "more than once: 'mine' for 2 devices, 'other' for 2 devices" in refused(path)


# --- what cannot be done --------------------------------------------------------------------------


def edited(tmp_path: Path, edit: Callable[[onnx.ShardingSpecProto], None], ranks: int = 2) -> Path:
    """A model whose first node splits its weight, but for an edit."""
    path = by_hand(net(), tmp_path / "m.onnx", {"up": {"w1": 1}}, ranks)
    proto = onnx.load(path, load_external_data=False)
    edit(proto.graph.node[0].device_configurations[0].sharding_spec[0])
    path.write_bytes(proto.SerializeToString())
    return path


def on_two_axes(spec: onnx.ShardingSpecProto) -> None:
    spec.sharded_dim[0].simple_sharding[0].num_shards = 2
    spec.sharded_dim.add(axis=0).simple_sharding.add(num_shards=2)


def in_another_order(spec: onnx.ShardingSpecProto) -> None:
    spec.device[:] = [3, 2, 1, 0]


def on_some_devices(spec: onnx.ShardingSpecProto) -> None:
    spec.device[:] = [0, 1]
    spec.sharded_dim[0].simple_sharding[0].num_shards = 2


def all_but_one(spec: onnx.ShardingSpecProto) -> None:
    spec.device[:] = [0, 1, 2, 3, 0]
    spec.sharded_dim[0].simple_sharding[0].num_shards = 5


BEYOND = [
    (on_two_axes, "splits 'w1' on axes 1, 0 at once, it can be one axis only"),
    (in_another_order, "gives the parts of 'w1' to devices [3, 2, 1, 0], they can only go in the"),
    (on_some_devices, "leaves devices 2, 3 without a part of 'w1'"),
    (all_but_one, "gives one device several parts of 'w1'"),
]


@pytest.mark.parametrize(("edit", "text"), BEYOND)
def test_what_onnx_allows_and_one_mesh_axis_does_not(
    edit: Callable[[onnx.ShardingSpecProto], None], text: str, tmp_path: Path
) -> None:
    path = edited(tmp_path, edit, ranks=4)
    said = refused(path, 4)
    assert f"node 'up' (MatMul) {text}" in said and said.endswith("by --plan auto.")


def test_what_no_op_can_do_is_told_of_all_nodes(tmp_path: Path) -> None:
    said: dict[str, Says] = {"up": {"x": 1, "w1": 1}, "act": {"h": 0}}
    assert refused(by_hand(net(), tmp_path / "m.onnx", said)) == (
        "node 'up' (MatMul), by its annotation for 'mine', asks for (x S(1), w1 S(1)), which "
        "MatMul cannot do over 2 ranks. Choose one of: (x R, w1 R), (x S(1), w1 S(0)), "
        "(x R, w1 S(1)). node 'act' (Relu), by its annotation for 'mine', asks for (h S(0)), "
        "which Relu cannot do over 2 ranks. Choose one of: (h R), (h S(1))."
    )


def test_a_value_that_cannot_be_held_so(tmp_path: Path) -> None:
    said = refused(by_hand(net(), tmp_path / "m.onnx", {"up": {"h": 0}}))
    assert said.startswith(
        "node 'up' (MatMul), by its annotation for 'mine', pins value 'h' to S(0), which is none "
        "of its placements. Choose one of: R; "
    )


def test_a_pin_of_the_user_that_contradicts_an_annotation(tmp_path: Path) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", ROWS_FIRST)
    with pytest.raises(PlanError) as caught:
        plan_model(path, Options(2, pins={"w1": "S(1)"}))
    assert str(caught.value) == (
        "node 'up' (MatMul), by its annotation for 'mine', contradicts what is asked for "
        "elsewhere: no plan does both. Change it, or plan without annotations by --plan auto."
    )


def test_bad_annotations_are_one_message_of_every_command(tmp_path: Path) -> None:
    path = by_hand(net(), tmp_path / "m.onnx", {"up": {"nobody": 1, "w1": 7}})
    want = (
        f"'{path}' has bad device annotations: node 'up' (MatMul) shards 'nobody', which is none "
        "of its inputs and outputs; node 'up' (MatMul) splits axis 7 of 'w1', which has 2 axes. "
        "Correct them, or plan without them by --plan auto."
    )
    for request in (["inspect", path], ["plan", path, "--tp", 2], ["plan", path, "--tp", "2,4"]):
        done = tpcore(*request)
        assert (done.status, done.error) == (2, want)


BODY = """(float[n, 64] x, bool c) => (float[n, 64] y) {
    [choice] h = If (c) <
        then_branch = t () => (float[n, 128] a) { [inner] a = MatMul (x, w1) },
        else_branch = e () => (float[n, 128] b) { [other] b = MatMul (x, w1) }
    >
    [down] y = MatMul (h, w2)
}"""


def test_bodies_are_not_split_and_it_is_told(tmp_path: Path) -> None:
    path = save(net(BODY), tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    proto.configuration.add(name="mine", num_devices=2)
    inner = next(a.g.node[0] for a in proto.graph.node[0].attribute if a.name == "then_branch")
    annotate(inner, "w1", 1)
    annotate(proto.graph.node[1], "w2", 1)
    path.write_bytes(proto.SerializeToString())
    plan = plan_model(path, Options(2))
    assert (dims(plan)["w1"], dims(plan)["w2"]) == ("R", "S(1)")
    assert plan.annotated.without_effect == (
        "node 'inner' (MatMul) is inside the body of an If, Loop or Scan, which is not split",
    )


# --- written and read back ------------------------------------------------------------------------


def write_back(model: Path, plan: Plan, output: Path) -> onnx.ModelProto:
    """A model with its plan as annotations, beside the model."""
    proto = annotated_model(model, plan, output)
    output.write_bytes(proto.SerializeToString())
    return proto


def beside(model: Path, folder: Path) -> Path:
    """A copy of a model and its weights that others may be written beside."""
    for file in model.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / model.name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models to write beside."""
    found = {}
    for name, make in {"mlp": mlp, "decoder": decoder}.items():
        found[name] = save(make(), tmp_path_factory.mktemp(name) / "model.onnx")
    for name in (GENAI, "gpt2-opset18"):
        found[name] = beside(model_path(name), tmp_path_factory.mktemp(name))
    return found


NAMES = ["mlp", "decoder", GENAI, "gpt2-opset18"]


@pytest.mark.parametrize("preset", ["auto", "megatron", "rowwise", "replicate"])
@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_read_back_as_it_was(
    name: str, ranks: int, preset: str, models: dict[str, Path]
) -> None:
    model = models[name]
    plan = plan_model(model, Options(ranks, plan=preset))
    output = model.with_name(f"{preset}{ranks}.onnx")
    write_back(model, plan, output)
    again = plan_model(output, Options(ranks))
    assert again.to_json() == plan.to_json() and again.annotated.without_effect == ()


def said_in(proto: onnx.ModelProto) -> dict[tuple[str, str], bytes]:
    """(node, tensor) -> what the node says of it."""
    return {
        (node.name, spec.tensor_name): spec.SerializeToString(deterministic=True)
        for node in proto.graph.node
        for entry in node.device_configurations
        for spec in entry.sharding_spec
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_said_of_any_plan_is_followed(
    name: str, ranks: int, seed: int, models: dict[str, Path]
) -> None:
    """Of a plan nobody would choose the partial sums are lost, and all else is read back."""
    model = models[name]
    output = model.with_name(f"random{ranks}-{seed}.onnx")
    plan = randomised(plan_model(model, Options(ranks)), seed)
    said = said_in(write_back(model, plan, output))
    again = plan_model(output, Options(ranks))
    heard = said_in(annotated_model(output, again, model.with_name("again.onnx")))
    assert said and said.items() <= heard.items()
    free = said_in(annotated_model(model, plan_model(model, Options(ranks)), output))
    assert name == "mlp" or not said.items() <= free.items()  # the planner's own is another
    if name in ("mlp", "decoder") and seed == 0:
        check_equal(split_plan(again, Options(ranks)), output)


def test_the_file_is_onnx_and_uses_the_same_weights(models: dict[str, Path]) -> None:
    model = models["mlp"]
    output = model.with_name("checked.onnx")
    before = {file.name: file.read_bytes() for file in model.parent.iterdir()}
    proto = write_back(model, plan_model(model, Options(2)), output)
    onnx.checker.check_model(output, full_check=True)
    assert proto.ir_version == 11
    after = {file.name: file.read_bytes() for file in model.parent.iterdir()}
    assert after.items() - before.items() == {("checked.onnx", output.read_bytes())}
    (configuration,) = proto.configuration
    assert (configuration.name, configuration.num_devices) == ("tp2", 2)
    x = {"x": np.ones((2, 8), np.float32)}
    assert verify_ranks(*_ranks(output), model, x).equal


def _ranks(path: Path) -> tuple[list[ir.Model], dict[str, str]]:
    split = split_model(path, Options(2))
    return list(split.ranks), dict(split.shardings)


def test_annotations_for_other_numbers_of_devices_stay(models: dict[str, Path]) -> None:
    model = models["mlp"]
    two, four, again = (model.with_name(f"{name}.onnx") for name in ("two", "four", "again"))
    write_back(model, plan_model(model, Options(2)), two)
    write_back(two, plan_model(two, Options(4, plan="auto")), four)
    write_back(four, plan_model(four, Options(2, plan="rowwise")), again)
    proto = onnx.load(again, load_external_data=False)
    assert [c.num_devices for c in proto.configuration] == [4, 2]
    assert dims(plan_model(again, Options(2)))["w1"] == "S(0)"
    assert dims(plan_model(again, Options(4)))["w1"] == "S(1)"


def test_where_it_cannot_be_written(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["mlp"]
    plan = plan_model(model, Options(2))
    with pytest.raises(PlanError, match="would replace the model"):
        annotated_model(model, plan, model)
    with pytest.raises(PlanError, match="weights of .* lie in 'model.onnx.data' beside it"):
        annotated_model(model, plan, tmp_path / "m.onnx")
    with pytest.raises(PlanError, match="one rank has nothing to annotate"):
        annotated_model(model, plan_model(model, Options(1)), tmp_path / "m.onnx")


def test_two_workloads_follow_the_same_annotations(models: dict[str, Path]) -> None:
    model = models[GENAI]
    output = model.with_name("workloads.onnx")
    write_back(model, plan_model(model, Options(2, plan="rowwise")), output)
    tokens = {"prefill": 256, "decode": 16}
    plans = plan_models(output, Options(2, tokens=tokens))
    heads = [name for name in dims(plans[0]) if name.endswith("o_proj.MatMul.weight")]
    assert heads and {dims(plan)[name] for plan in plans for name in heads} == {"S(0)"}
    values = {plan.annotated.values for plan in plans}
    assert len(plans) == 2 and len(values) == 1 and values != {0}


def test_kv_heads_that_ranks_share_are_groups_of_devices(models: dict[str, Path]) -> None:
    model = models[GENAI]
    plan = plan_model(model, Options(8))
    proto = annotated_model(model, plan, model.with_name("groups.onnx"))
    specs = [
        spec
        for node in proto.graph.node
        for entry in node.device_configurations
        for spec in entry.sharding_spec
        if spec.tensor_name == "past_key_values.0.key"
    ]
    (spec,) = specs
    assert list(spec.device) == [-1, -2, -3, -4]
    groups = [list(entry.value) for entry in spec.index_to_device_group_map]
    assert groups == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert spec.sharded_dim[0].simple_sharding[0].num_shards == 4


def test_the_command(models: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    model = models["mlp"]
    output = model.with_name("command.onnx")
    done = tpcore_here(capfd, "plan", model, "--tp", 2, "--plan", "rowwise", "--annotate", output)
    assert done.status == 0 and done.out.endswith(f"annotated      {output}\n")
    done = tpcore_here(capfd, "plan", output, "--tp", 2, "--json")
    found = json.loads(done.out)
    assert found["plan"]["values"]["w1"].startswith("S(0)")
    assert found["annotations"] == {
        "configuration": "tp2", "values": 7, "without_effect": [], "overridden_by": None
    }  # fmt: skip
    several = tpcore_here(capfd, "plan", model, "--tp", "2,4", "--annotate", output)
    assert several.status == 2 and "--annotate is for one plan" in several.error
