"""Write a big Llama as ONNX, op by op as torch.onnx does at opset 18 with static shapes.

Exporting 800 MB through torch takes minutes and gigabytes; this streams random weights to the disk.

    python -m tests.big_model FOLDER     model.onnx and model.onnx.data, 214 M parameters
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.big_weights import Weights, cache_names, typed

OPSET = 18
SMALL = {
    "layers": 2, "hidden": 128, "intermediate": 96, "heads": 8, "kv_heads": 4, "vocabulary": 128,
}  # fmt: skip
"""Sizes for tests: fields of LlamaShape."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama and of the one input shape it accepts."""

    layers: int = 16
    hidden: int = 1024
    intermediate: int = 2816
    heads: int = 16
    kv_heads: int = 4
    vocabulary: int = 16384
    batch: int = 1
    sequence: int = 8
    cache: int = 0
    """Positions in a KV cache, which fused attention reads and extends."""
    in_place: bool = False
    """Whether the cache that is read has room for the new positions, so that they can be written
    into it."""
    fused: bool = False
    """Whether attention is one op without a cache too; else it is written out there."""

    @property
    def head_size(self) -> int:
        """Features per head."""
        return self.hidden // self.heads

    @property
    def has_cache(self) -> bool:
        """Whether there are cached keys and values among the inputs, if only of no positions."""
        return self.fused or self.cache > 0

    @property
    def cache_dims(self) -> tuple[int, int, int, int]:
        """Shape of one layer's cached keys or values."""
        room = self.sequence if self.in_place else 0
        return self.batch, self.kv_heads, self.cache + room, self.head_size


def make(path: Path, *, seed: int | None = 0, **sizes: Any) -> Path:
    """Write `path` and `path`.data beside it; `sizes` are fields of LlamaShape. Returns `path`.

    Without a seed the data file is a hole of the right size, for what never reads weights.
    """
    file = path.with_name(path.name + ".data")
    random = None if seed is None else np.random.default_rng(seed)
    with file.open("wb") as data:
        return _save(path, LlamaShape(**sizes), Weights(file, data, random))


def make_sharing(path: Path, data: str, sizes: Mapping[str, Any]) -> Path:
    """Write `path`, whose weights are in the file `data` beside it; the first one writes them.

    They are a few random numbers again and again: quick to write, and as good to compute with.
    """
    file, shape = path.with_name(data), LlamaShape(**sizes)
    if file.exists():
        return _save(path, shape, Weights(file, None, None))
    with file.open("wb") as stream:
        random = np.random.default_rng(0)
        return _save(path, shape, Weights(file, stream, random, repeat=True))


def _save(path: Path, shape: LlamaShape, weights: Weights) -> Path:
    model = ir.Model(_Builder(shape, weights).graph(), ir_version=10)
    model.producer_name = "tests.big_model"
    ir.save(model, path)
    return path


def make_inputs(seed: int = 0, **sizes: Any) -> dict[str, np.ndarray]:
    """Inputs for a model made with the same `sizes`."""
    shape = LlamaShape(**sizes)
    size = (shape.batch, shape.sequence)
    random = np.random.default_rng(seed)
    ids = {"input_ids": random.integers(0, shape.vocabulary, size)}
    if shape.has_cache:
        names = (name for layer in range(shape.layers) for name in cache_names(layer, "past"))
        past = {name: random.standard_normal(shape.cache_dims, np.float32) for name in names}
        return ids | past
    return ids | {
        "attention_mask": np.ones(size, np.int64),
        "position_ids": np.broadcast_to(np.arange(shape.sequence), size).copy(),
    }


class _Builder:
    """Builds the graph; the methods follow the modules of the torch model."""

    def __init__(self, shape: LlamaShape, weights: Weights) -> None:
        self.shape = shape
        self.weights = weights
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        """What a cache adds to the logits."""
        self.constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append a node with one output; return the output."""
        node = ir.node(op_type, inputs, attributes, name=f"node_{len(self.nodes)}")
        node.outputs[0].name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """An inline constant; equal ones are one value, as the exporter's are."""
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.constants:
            tensor = ir.tensor(array, name=f"constant_{len(self.constants)}")
            self.constants[key] = ir.Value(
                name=tensor.name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self.constants[key]

    def norm_weight(self, name: str) -> ir.Value:
        """f32[hidden] around one."""
        self.initializers.append(self.weights.normal(name, [self.shape.hidden], 0.2, 1.0))
        return self.initializers[-1]

    def linear(self, value: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        """MatMul with a weight f32[inputs, outputs] of unit gain."""
        weight = self.weights.normal(name, [inputs, outputs], inputs**-0.5)
        self.initializers.append(weight)
        return self.op("MatMul", value, weight)

    def norm(self, value: ir.Value, name: str) -> ir.Value:
        """RMS norm over the hidden dim."""
        squares = self.op("Pow", value, self.constant(2.0, np.float32))
        mean = self.op("ReduceMean", squares, self.constant([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(1e-6, np.float32)))
        normal = self.op("Mul", value, self.op("Reciprocal", root))
        return self.op("Mul", self.norm_weight(name), normal)

    def allowed(self, mask: ir.Value) -> ir.Value:
        """bool[batch, 1, sequence, sequence]: the causal mask and the attention mask."""
        batch, sequence = self.shape.batch, self.shape.sequence
        rows, columns = np.meshgrid(np.arange(batch), np.arange(sequence), indexing="ij")
        places = np.stack([rows, columns], -1).reshape(batch, 1, 1, sequence, 2)
        held = self.op("Cast", mask, to=ir.DataType.BOOL)
        seen = self.op("GatherND", held, self.constant(places))
        causal = np.tril(np.ones((1, 1, sequence, sequence), bool))
        return self.op("And", self.constant(causal, bool), seen)

    def rotation(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines, f32[batch, 1, sequence, head_size]."""
        half = self.shape.head_size // 2
        frequencies = self.constant(10000.0 ** (-np.arange(half) / half), np.float32)
        column = self.op("Unsqueeze", positions, self.constant([2]))
        angles = self.op("Mul", self.op("Cast", column, to=ir.DataType.FLOAT), frequencies)
        both = self.op("Concat", angles, angles, axis=-1)
        cosines, sines = self.op("Cos", both), self.op("Sin", both)
        head_dim = self.constant([1])
        return self.op("Unsqueeze", cosines, head_dim), self.op("Unsqueeze", sines, head_dim)

    def rotate(self, heads: ir.Value, rotation: tuple[ir.Value, ir.Value]) -> ir.Value:
        """Rotary embedding of f32[batch, heads, sequence, head_size]."""
        half, last, one = (self.constant([n]) for n in (self.shape.head_size // 2, 3, 1))
        end = self.constant([np.iinfo(np.int64).max])
        straight = self.op("Mul", heads, rotation[0])
        first = self.op("Slice", heads, self.constant([0]), half, last, one)
        second = self.op("Slice", heads, half, end, last, one)
        turned = self.op("Concat", self.op("Neg", second), first, axis=-1)
        return self.op("Add", straight, self.op("Mul", turned, rotation[1]))

    def project(self, value: ir.Value, name: str, heads: int) -> ir.Value:
        """A projection cut into heads: f32[batch, heads, sequence, head_size]."""
        s = self.shape
        flat = self.linear(value, name, s.hidden, heads * s.head_size)
        view = self.constant([s.batch, s.sequence, -1, s.head_size])
        return self.op("Transpose", self.op("Reshape", flat, view), perm=[0, 2, 1, 3])

    def repeat(self, heads: ir.Value) -> ir.Value:
        """Key or value heads, each repeated for the query heads that share it."""
        s = self.shape
        group = s.heads // s.kv_heads
        wide = self.constant([s.batch, s.kv_heads, group, s.sequence, s.head_size])
        return self.op("Expand", self.op("Unsqueeze", heads, self.constant([2])), wide)

    def transposed_keys(self, keys: ir.Value) -> ir.Value:
        """f32[batch, heads, head_size, sequence], by way of three dims."""
        s = self.shape
        flat = self.constant([s.batch * s.heads, s.sequence, s.head_size])
        turned = self.op("Transpose", self.op("Reshape", keys, flat), perm=[0, 2, 1])
        view = self.constant([s.batch, s.heads, s.head_size, s.sequence])
        return self.op("Reshape", turned, view)

    def weights_of(self, queries: ir.Value, keys: ir.Value, allowed: ir.Value) -> ir.Value:
        """Softmax of the scaled, masked scores; rows that see nothing become zeros."""
        scale = self.constant(self.shape.head_size**-0.25, np.float32)
        queries, keys = self.op("Mul", queries, scale), self.op("Mul", keys, scale)
        zero = self.constant(0.0, np.float32)
        lowest = self.constant(np.finfo(np.float32).min, np.float32)
        bias = self.op("Where", allowed, zero, lowest)
        scores = self.op("Add", self.op("MatMul", queries, keys), bias)
        shares = self.op("Softmax", scores, axis=-1)
        return self.op("Where", self.op("IsNaN", shares), zero, shares)

    def attention(
        self, value: ir.Value, name: str, allowed: ir.Value, rotation: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        """Grouped-query attention."""
        s = self.shape
        queries = self.rotate(self.project(value, f"{name}.q_proj", s.heads), rotation)
        keys = self.rotate(self.project(value, f"{name}.k_proj", s.kv_heads), rotation)
        values = self.repeat(self.project(value, f"{name}.v_proj", s.kv_heads))
        four = self.constant([s.batch, s.heads, s.sequence, s.head_size])
        values = self.op("Reshape", values, four)
        shares = self.weights_of(queries, self.transposed_keys(self.repeat(keys)), allowed)
        mixed = self.op("Transpose", self.op("MatMul", shares, values), perm=[0, 2, 1, 3])
        flat = self.op("Reshape", mixed, self.constant([s.batch, s.sequence, -1]))
        return self.linear(flat, f"{name}.o_proj", s.hidden, s.hidden)

    def plain_attention(self) -> Callable[[ir.Value, int], ir.Value]:
        """Attention written out, with what all layers share."""
        allowed, rotation = self.allowed(self.inputs[1]), self.rotation(self.inputs[2])
        return lambda value, layer: self.attention(value, f"layers.{layer}", allowed, rotation)

    def cached_attention(self, value: ir.Value, layer: int) -> ir.Value:
        """Grouped-query attention as one op, which appends to the cache."""
        s, name = self.shape, f"layers.{layer}"
        wide, narrow = s.heads * s.head_size, s.kv_heads * s.head_size
        queries = self.linear(value, f"{name}.q_proj", s.hidden, wide)
        keys = self.linear(value, f"{name}.k_proj", s.hidden, narrow)
        values = self.linear(value, f"{name}.v_proj", s.hidden, narrow)
        past = [typed(n, ir.DataType.FLOAT, s.cache_dims) for n in cache_names(layer, "past")]
        total = s.cache + s.sequence
        lengths = self.constant([total - 1] * s.batch, np.int32), self.constant(total, np.int32)
        attributes = {"num_heads": s.heads, "kv_num_heads": s.kv_heads, "do_rotary": 1}
        node = ir.node(
            "GroupQueryAttention",
            [queries, keys, values, *past, *lengths, *self.rotary_tables()],
            attributes,
            domain="com.microsoft",
            num_outputs=3,
            name=f"node_{len(self.nodes)}",
        )
        self.nodes.append(node)
        node.outputs[0].name = f"attention_{layer}"
        longer = (s.batch, s.kv_heads, total, s.head_size)
        for output, output_name in zip(node.outputs[1:], cache_names(layer, "present")):
            output.name, output.type = output_name, ir.TensorType(ir.DataType.FLOAT)
            output.shape = ir.Shape(longer)
        self.inputs += past
        self.outputs += node.outputs[1:]
        return self.linear(node.outputs[0], f"{name}.o_proj", wide, s.hidden)

    def rotary_tables(self) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of all positions, f32[positions, head_size / 2]."""
        half = self.shape.head_size // 2
        positions = np.arange(self.shape.cache + self.shape.sequence)
        angles = np.outer(positions, 10000.0 ** (-np.arange(half) / half))
        return self.constant(np.cos(angles), np.float32), self.constant(np.sin(angles), np.float32)

    def feed_forward(self, value: ir.Value, name: str) -> ir.Value:
        """SwiGLU."""
        hidden, wide = self.shape.hidden, self.shape.intermediate
        gate = self.linear(value, f"{name}.gate_proj", hidden, wide)
        gate = self.op("Mul", gate, self.op("Sigmoid", gate))
        up = self.linear(value, f"{name}.up_proj", hidden, wide)
        return self.linear(self.op("Mul", gate, up), f"{name}.down_proj", wide, hidden)

    def graph(self) -> ir.Graph:
        """The whole model."""
        s = self.shape
        names = ["input_ids"] if s.has_cache else ["input_ids", "attention_mask", "position_ids"]
        self.inputs = [typed(n, ir.DataType.INT64, (s.batch, s.sequence)) for n in names]
        scale = s.hidden**-0.5
        table = self.weights.normal("embed_tokens", [s.vocabulary, s.hidden], scale)
        self.initializers.append(table)
        hidden = self.op("Gather", table, self.inputs[0], axis=0)
        attention = self.cached_attention if s.has_cache else self.plain_attention()
        for layer in range(s.layers):
            normal = self.norm(hidden, f"layers.{layer}.input_norm")
            hidden = self.op("Add", hidden, attention(normal, layer))
            normal = self.norm(hidden, f"layers.{layer}.post_attention_norm")
            hidden = self.op("Add", hidden, self.feed_forward(normal, f"layers.{layer}"))
        logits = self.linear(self.norm(hidden, "norm"), "lm_head", s.hidden, s.vocabulary)
        logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape([s.batch, s.sequence, s.vocabulary])
        initializers = [*self.initializers, *self.constants.values()]
        return ir.Graph(
            self.inputs,
            [logits, *self.outputs],
            nodes=self.nodes,
            initializers=initializers,
            opset_imports={"": OPSET, **({"com.microsoft": 1} if s.has_cache else {})},
            name="big_llama",
        )


def main() -> None:
    """Write the model into the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print(make(folder / "model.onnx"))


if __name__ == "__main__":
    main()
