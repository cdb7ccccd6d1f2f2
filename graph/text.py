"""Our own text form of a graph, for dumps, golden tests and errors. It has no weight data.

graph mlp on mesh(tp=4)
  input x: f32[batch, 64]
  const w1: f32[64, 256@tp]
  h = MatMul(x, w1): f32[batch, 256@tp]
  y = AllReduce(h, axis=tp, reduce=sum, tag=0): f32[batch, 256]
  output y
# collectives: 1 AllReduce
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir

from graph.dialect import is_collective

DTYPES = {
    "FLOAT": "f32",
    "DOUBLE": "f64",
    "FLOAT16": "f16",
    "BFLOAT16": "bf16",
    "BOOL": "bool",
    "INT64": "i64",
    "INT32": "i32",
    "INT8": "i8",
    "UINT8": "u8",
}
MAX_SHOWN = 8
"""Integer constants of up to this many elements are shown with their contents."""

Describe = Callable[[ir.Value], str]


def describe_type(value: ir.Value, marks: dict[int, str] | None = None, note: str = "") -> str:
    """`f32[batch, 64@tp] partial(sum)`: dtype, dims with a mark behind the split ones, a note."""
    dtype = value.dtype.name if value.dtype is not None else "?"
    name = DTYPES.get(dtype, dtype.lower())
    if value.shape is None:
        return f"{name}[?]" + note
    dims = [
        str(size if isinstance(size, int) else size.value or "?") + (marks or {}).get(i, "")
        for i, size in enumerate(value.shape)
    ]
    return f"{name}[{', '.join(dims)}]" + note


def graph_text(
    model: ir.Model, describe: Describe = describe_type, header: str = "", footer: str = ""
) -> str:
    """Text of the main graph; `describe` writes the type of a value."""
    graph = model.graph
    lines = [f"graph {graph.name or 'main'}" + (f" on {header}" if header else "")]
    lines += [f"  input {value.name}: {describe(value)}" for value in graph.inputs]
    for value in graph.initializers.values():
        lines.append(f"  const {value.name}: {describe(value)}{_contents(value)}")
    lines += [f"  {_node_text(node, describe)}" for node in graph]
    lines += [f"  output {value.name}" for value in graph.outputs]
    counts = Counter(node.op_type for node in graph if is_collective(node))
    if counts or footer:
        found = ", ".join(f"{count} {op}" for op, count in sorted(counts.items())) or "none"
        lines.append(f"# collectives: {found}{footer}")
    return "\n".join(lines) + "\n"


def _contents(value: ir.Value) -> str:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_integer() or tensor.size > MAX_SHOWN:
        return ""
    return f" = {tensor.numpy().tolist()}"


def _node_text(node: ir.Node, describe: Describe) -> str:
    results = ", ".join(value.name or "_" for value in node.outputs)
    operands = [("-" if value is None else value.name or "_") for value in node.inputs]
    attributes = [f"{name}={_attribute(attribute)}" for name, attribute in node.attributes.items()]
    op = node.op_type if node.domain in ("", "tpcore") else f"{node.domain}.{node.op_type}"
    types = ", ".join(describe(value) for value in node.outputs)
    return f"{results} = {op}({', '.join(operands + sorted(attributes))}): {types}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "{…}"
    if attribute.type == ir.AttributeType.TENSOR:
        return f"tensor{list(attribute.as_tensor().shape.numpy())}"
    value = attribute.value
    if isinstance(value, tuple | list):
        return "[" + ", ".join(str(entry) for entry in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
