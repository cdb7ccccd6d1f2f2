"""Small models whose splits are known, and ways to plan and run them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graph.canonicalize import canonicalize
from graph.dialect import AllGather
from graph.interpret import interpret
from tests.graph.small import Array, small_model, weight
from tpcore.insert_reshards import ShardedGraph
from tpcore.partition import Options, rank_models, shard_plan
from tpcore.plan import Plan
from tpcore.planner.options import placement_text
from tpcore.planner.plans import make_plan

BATCH, LENGTH, HEAD = 2, 5, 4


def mlp(hidden: int = 12, width: int = 8, activation: str = "Relu") -> ir.Model:
    """Two biased layers with an activation between."""
    text = f"""(float[3, {width}] x) => (float[3, {width}] y) {{
        h = MatMul(x, w1)
        hb = Add(h, b1)
        a = {activation}(hb)
        p = MatMul(a, w2)
        y = Add(p, b2)
    }}"""
    return small_model(
        text,
        w1=weight(width, hidden),
        b1=weight(hidden),
        w2=weight(hidden, width),
        b2=weight(width, seed=1),
    )


def shapes_of(**entries: list[int]) -> dict[str, Array]:
    """Contents of shape operands."""
    return {name: np.array(sizes, np.int64) for name, sizes in entries.items()}


ATTENTION_END = """
        s = MatMul(qt, kt)
        pr = Softmax <axis = -1> (s)
        o = MatMul(pr, vt)
        ot = Transpose <perm = [0, 2, 1, 3]> (o)
        om = Reshape(ot, merged)
        y = MatMul(om, wo)
    }"""


def packed_attention(heads: int = 4) -> ir.Model:
    """Attention as in GPT-2: one weight for q, k and v, taken apart by a Split."""
    width = heads * HEAD
    text = f"""(float[{BATCH}, {LENGTH}, {width}] x) => (float[{BATCH}, {LENGTH}, {width}] y) {{
        packed = MatMul(x, wqkv)
        biased = Add(packed, bqkv)
        q, k, v = Split <axis = 2> (biased, parts)
        qh = Reshape(q, split)
        kh = Reshape(k, split)
        vh = Reshape(v, split)
        qt = Transpose <perm = [0, 2, 1, 3]> (qh)
        kt = Transpose <perm = [0, 2, 3, 1]> (kh)
        vt = Transpose <perm = [0, 2, 1, 3]> (vh)
    {ATTENTION_END}"""
    constants = shapes_of(
        parts=[width] * 3, split=[BATCH, LENGTH, heads, HEAD], merged=[BATCH, LENGTH, width]
    )
    weights = {"wqkv": weight(width, 3 * width), "bqkv": weight(3 * width)}
    return small_model(text, **weights, wo=weight(width, width), **constants)


def grouped_attention(heads: int = 8, kv_heads: int = 4) -> ir.Model:
    """Attention as in Llama: every kv head is repeated for the query heads that share it."""
    width, kv_width, group = heads * HEAD, kv_heads * HEAD, heads // kv_heads
    text = f"""(float[{BATCH}, {LENGTH}, 6] x) => (float[{BATCH}, {LENGTH}, 6] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        qh = Reshape(q, q_split)
        kh = Reshape(k, kv_split)
        vh = Reshape(v, kv_split)
        qt = Transpose <perm = [0, 2, 1, 3]> (qh)
        k1 = Transpose <perm = [0, 2, 1, 3]> (kh)
        v1 = Transpose <perm = [0, 2, 1, 3]> (vh)
        k2 = Unsqueeze(k1, two)
        v2 = Unsqueeze(v1, two)
        k3 = Expand(k2, repeated)
        v3 = Expand(v2, repeated)
        k4 = Reshape(k3, all_heads)
        vt = Reshape(v3, all_heads)
        kt = Transpose <perm = [0, 1, 3, 2]> (k4)
    {ATTENTION_END}"""
    constants = shapes_of(
        q_split=[BATCH, LENGTH, heads, HEAD],
        kv_split=[BATCH, LENGTH, kv_heads, HEAD],
        two=[2],
        repeated=[BATCH, kv_heads, group, LENGTH, HEAD],
        all_heads=[BATCH, heads, LENGTH, HEAD],
        merged=[BATCH, LENGTH, width],
    )
    weights = {"wq": weight(6, width), "wk": weight(6, kv_width), "wv": weight(6, kv_width, seed=1)}
    return small_model(text, **weights, wo=weight(width, 6), **constants)


def planned(model: ir.Model, ranks: int) -> Plan:
    """The plan of a model; the model itself stays as it is."""
    canonical, shapes = canonicalize(model.clone())
    return make_plan(canonical, shapes, ranks)


def placements(plan: Plan) -> dict[str, str]:
    """Placement text of every value, by name."""
    return {value.name or "": placement_text(plan.held(value)) for value in plan.choices.hub}


def random_inputs(model: ir.Model) -> dict[str, Array]:
    """Normal numbers for every graph input."""
    random = np.random.default_rng(3)
    return {
        value.name or "": random.standard_normal(value.shape.numpy()).astype(np.float32)  # type: ignore[union-attr]
        for value in model.graph.inputs
    }


def run_sharded(sharded: ShardedGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Global outputs of all ranks; what every rank gets as input is whole."""
    models = rank_models(sharded)
    results = interpret(models, [inputs] * len(models))
    whole = {}
    for value in sharded.model.graph.outputs:
        name, held = value.name or "", sharded.held(value)
        parts = [result[name] for result in results]
        gather = AllGather("tp", held.dims, held.layouts)
        whole[name] = gather.assemble(parts) if held.splits else parts[0]
    return whole


def error_of(model: ir.Model, plan: Plan) -> float:
    """Largest difference between the split and the whole model, as a share of the largest value."""
    inputs = random_inputs(model)
    (want,) = interpret([model], [inputs])
    got = run_sharded(shard_plan(plan, Options(plan.mesh.size)), inputs)
    return max(
        float(np.abs(got[name] - array).max() / np.abs(array).max()) for name, array in want.items()
    )
