"""A decoder as onnxruntime-genai writes it, with open lengths and weights that are never read."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.big_model import LlamaShape

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
POSITIONS = 4096


class _Builder:
    def __init__(self, data: str) -> None:
        self.data = data
        self.size = 0
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        """Append a node; names of its results."""
        ours = op_type in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization")
        domain = "com.microsoft" if ours else ""
        made = [f"{op_type}_{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"node_{len(self.nodes)}"
        node = helper.make_node(op_type, inputs, made, name, domain=domain, **attributes)
        self.nodes.append(node)
        return made

    def weight(self, name: str, *dims: int) -> str:
        """A weight that is a hole in the data file."""
        tensor = TensorProto(name=name, data_type=FLOAT, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        nbytes = 4
        for size in dims:
            nbytes *= size
        for key, value in (("location", self.data), ("offset", self.size), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.size += -(-nbytes // 4096) * 4096
        self.weights.append(tensor)
        return name

    def linear(self, value: str, name: str, inputs: int, outputs: int) -> str:
        return self.op("MatMul", value, self.weight(f"{name}.weight", inputs, outputs))[0]


def make(path: Path, s: LlamaShape) -> Path:
    """Write the model; batch and sequence of `s` are left open."""
    b = _Builder(path.name + ".data")
    axis, last = (helper.make_tensor(n, INT64, d, [1]) for n, d in (("axis", [1]), ("last", [])))
    counts = b.op("ReduceSum", "attention_mask", "axis", keepdims=0)[0]
    lengths = b.op("Cast", b.op("Sub", counts, "axis")[0], to=INT32)[0]
    total = b.op("Gather", b.op("Shape", "attention_mask")[0], "last", axis=0)[0]
    common = [lengths, b.op("Cast", total, to=INT32)[0]]
    common += [b.weight(n, POSITIONS, s.head_size // 2) for n in ("cos_cache", "sin_cache")]
    hidden = b.op("Gather", b.weight("embed_tokens.weight", s.vocabulary, s.hidden), "input_ids")[0]
    normal = b.op(
        "SimplifiedLayerNormalization", hidden, b.weight("norm.weight", s.hidden), axis=-1
    )[0]
    caches = []
    for layer in range(s.layers):
        mixed = _attention(b, s, layer, normal, common)
        caches += [
            (f"{layer}.key", b.nodes[-2].output[1]),
            (f"{layer}.value", b.nodes[-2].output[2]),
        ]
        normal, hidden = _add(b, s, f"layers.{layer}.post_norm", hidden, mixed)
        fed = _feed_forward(b, s, f"layers.{layer}.mlp", normal)
        normal, hidden = _add(b, s, f"layers.{layer}.next_norm", hidden, fed)
    logits = b.linear(normal, "lm_head", s.hidden, s.vocabulary)
    _save(path, s, b, [axis, last], caches, logits)
    return path


def _attention(b: _Builder, s: LlamaShape, layer: int, value: str, common: list[str]) -> str:
    wide = (s.heads + 2 * s.kv_heads) * s.head_size
    packed = b.linear(value, f"layers.{layer}.qkv_proj", s.hidden, wide)
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    mixed = b.op(
        "GroupQueryAttention", packed, "", "", *past, *common, outputs=3,
        num_heads=s.heads, kv_num_heads=s.kv_heads, do_rotary=1,
    )[0]  # fmt: skip
    return b.linear(mixed, f"layers.{layer}.o_proj", s.heads * s.head_size, s.hidden)


def _add(b: _Builder, s: LlamaShape, name: str, hidden: str, more: str) -> tuple[str, str]:
    scale = b.weight(f"{name}.weight", s.hidden)
    made = b.op("SkipSimplifiedLayerNormalization", hidden, more, scale, outputs=4)
    b.nodes[-1].output[1] = b.nodes[-1].output[2] = ""
    return made[0], made[3]


def _feed_forward(b: _Builder, s: LlamaShape, name: str, value: str) -> str:
    gate = b.linear(value, f"{name}.gate_proj", s.hidden, s.intermediate)
    up = b.linear(value, f"{name}.up_proj", s.hidden, s.intermediate)
    active = b.op("Mul", gate, b.op("Sigmoid", gate)[0])[0]
    return b.linear(b.op("Mul", active, up)[0], f"{name}.down_proj", s.intermediate, s.hidden)


def _save(
    path: Path,
    s: LlamaShape,
    b: _Builder,
    constants: list[onnx.TensorProto],
    caches: list[tuple[str, str]],
    logits: str,
) -> None:
    def cache(name: str, length: str) -> onnx.ValueInfoProto:
        dims = ["batch", s.kv_heads, length, s.head_size]
        return helper.make_tensor_value_info(name, FLOAT, dims)

    ids = helper.make_tensor_value_info("input_ids", INT64, ["batch", "sequence"])
    mask = helper.make_tensor_value_info("attention_mask", INT64, ["batch", "total"])
    past = [cache(f"past_key_values.{name}", "past") for name, _ in caches]
    outputs = [helper.make_tensor_value_info(logits, FLOAT, ["batch", "sequence", s.vocabulary])]
    outputs += [cache(value, "total") for _, value in caches]
    graph = helper.make_graph(
        b.nodes, "open_decoder", [ids, mask, *past], outputs, [*b.weights, *constants]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    with path.with_name(b.data).open("wb") as file:
        file.truncate(b.size)
