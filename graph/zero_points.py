"""Zero points that lie several to a byte are counted one by one, as their scales are."""

from __future__ import annotations

import onnx_ir as ir

from graph.packing import bytes_of_codes
from graph.weights import CodesTensor

FC1_ZERO_POINTS = 11
SCALES: dict[str, dict[int, int]] = {
    "MatMulNBits": {3: 2},
    "GatherBlockQuantized": {3: 2},
    "QMoE": {FC1_ZERO_POINTS: 3, 12: 6, 13: 9},
}
"""Op of com.microsoft -> operand that holds packed zero points -> operand with their scales."""


def count_zero_points(graph: ir.Graph) -> None:
    """Make a `CodesTensor` of every initializer that only such operands read."""
    for node in graph:
        for index in SCALES.get(node.op_type, ()) if node.domain == "com.microsoft" else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            found = None if value is None else _packing_of(node, index)
            if value is None or found is None or value.const_value is None:
                continue
            if all(_packing_of(user, place) == found for user, place in value.uses()):
                value.const_value = CodesTensor(value.const_value, *found)
                value.shape = value.const_value.shape


def is_counted(value: ir.Value | None) -> bool:
    """Whether the dims of `value` count codes, where its contents are bytes of several."""
    return value is not None and isinstance(value.const_value, CodesTensor)


def _packing_of(node: ir.Node, index: int) -> tuple[int, int] | None:
    """Bits of a code and codes per row of an operand, None where it is not packed."""
    value = node.inputs[index]
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.dtype != ir.DataType.UINT8:
        return None
    if node.domain != "com.microsoft" or index not in SCALES.get(node.op_type, ()):
        return None
    bits = _bits(node, index)
    count = _blocks(node, SCALES[node.op_type][index])
    row, sizes = bytes_of_codes(count, bits), tensor.shape.numpy()
    fits = count and (sizes[-1:] == (row,) or (len(sizes) == 1 and sizes[0] % row == 0))
    return (bits, count) if fits and bits < 8 and 8 % bits == 0 else None


def _bits(node: ir.Node, index: int) -> int:
    if node.op_type != "QMoE":
        return _attribute(node, "bits", 4)
    own = f"fc{index - FC1_ZERO_POINTS + 1}_expert_weight_bits"
    return _attribute(node, own) or _attribute(node, "expert_weight_bits", 4)


def _blocks(node: ir.Node, scales: int) -> int:
    """Blocks per row, 0 where there are none; scales may be flat where K says how long a row is."""
    if node.op_type == "MatMulNBits":
        return -(-_attribute(node, "K") // _attribute(node, "block_size", 1))
    value = node.inputs[scales]
    if value is None or not (_attribute(node, "block_size") or node.op_type != "QMoE"):
        return 0
    shape = value.shape if value.const_value is None else value.const_value.shape
    axis = _attribute(node, "quantize_axis", 1) if node.op_type != "QMoE" else -1
    last = shape is not None and len(shape) > 0 and axis % len(shape) == len(shape) - 1
    size = shape[-1] if last and shape is not None else 0
    return size if isinstance(size, int) else 0


def _attribute(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
