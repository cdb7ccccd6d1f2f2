"""Inputs for a model nobody gave any for: the right shapes, and values the graph can work with.

Floats are normal, booleans true. Integers that look something up (a token id) stay below the size
of the table; a mask is all ones, positions count up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graph.dims import Dim, Dims, Expr, bind, from_text
from graph.errors import PlanError
from graph.shapes import Shapes
from graph.weights import has_type

DEFAULT_SIZE = 8
LOOKUP_AXES = {"Gather": "axis", "GatherBlockQuantized": "gather_axis"}
"""Attribute that names the axis along which an op looks rows up."""
KEEPS_VALUES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand"}


@dataclass(frozen=True)
class InputSpec:
    """What an input or output looks like; a manifest holds one of each."""

    name: str
    dtype: str
    """ONNX name of the element type, `INT64`."""
    shape: tuple[int | str, ...] | None
    """Global shape, symbolic dims by name; None where the model does not declare it."""
    rows: int | None = None
    """Integers must stay below this: the rows of the table they look up."""

    @property
    def text(self) -> str:
        """`int64[batch, 8]`."""
        shape = "" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{ir.DataType[self.dtype].numpy()}{shape}"


def input_spec(entry: Mapping[str, Any]) -> InputSpec:
    """One entry of the manifest's `inputs` or `outputs`."""
    shape = entry["shape"]
    return InputSpec(
        entry["name"], entry["dtype"], None if shape is None else tuple(shape), entry["rows"]
    )


def describe_inputs(graph: ir.Graph, shapes: Shapes) -> list[InputSpec]:
    """What every input of `graph` must look like."""
    return [
        replace(
            _described(value, shapes),
            rows=_table_rows(value, shapes) if value.dtype and value.dtype.is_integer() else None,
        )
        for value in graph.inputs
    ]


def describe_outputs(graph: ir.Graph, shapes: Shapes) -> list[InputSpec]:
    """What every output of `graph` looks like."""
    return [_described(value, shapes) for value in graph.outputs]


def _described(value: ir.Value, shapes: Shapes) -> InputSpec:
    return InputSpec(
        value.name or "",
        (value.dtype or ir.DataType.FLOAT).name,
        _known_shape(shapes.dims[value], shapes) if value in shapes.dims else None,
    )


def _known_shape(dims: Dims, shapes: Shapes) -> tuple[int | str, ...]:
    return tuple(
        size if isinstance(size, int) else shapes.equal.get(str(size), str(size)) for size in dims
    )


def make_inputs(
    specs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs; `sizes` binds symbolic dims, those missing get a small size.

    Raises:
        PlanError: an input has no declared shape, or `sizes` names a dim that no input has.
    """
    random = np.random.default_rng(seed)
    bound = _bind_symbols(specs, sizes)
    return {spec.name: _contents(spec, _shape(spec, bound), random) for spec in specs}


def check_sizes(specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> set[str]:
    """The symbolic dims of all inputs. Raises PlanError if `sizes` names another one."""
    symbols = {name for spec in specs for size in spec.shape or () for name in _symbols(size)}
    unknown = [f"'{name}'" for name in sizes if name not in symbols]
    if unknown:
        raise PlanError(
            f"--shape names {' and '.join(unknown)}, which is no symbolic dim of any input. "
            f"Symbolic dims of this model: {', '.join(sorted(symbols)) or 'none'}."
        )
    return symbols


def sizes_of(specs: Sequence[InputSpec], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Sizes of the symbolic dims, as the shapes of `arrays` have them."""
    return {
        size: array.shape[dim]
        for spec in specs
        if (array := arrays.get(spec.name)) is not None
        for dim, size in enumerate(spec.shape or ())
        if isinstance(size, str) and {size} == _symbols(size)
    }


def violations(specs: Sequence[InputSpec], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Say where `arrays` are not inputs as `specs` describe them."""
    known = {spec.name: spec for spec in specs}
    wrong = [f"'{name}' is missing" for name in known if name not in arrays]
    wrong += [f"'{name}' is no input" for name in arrays if name not in known]
    wrong += [
        f"'{name}' is {array.dtype}{list(array.shape)} where the model has {known[name].text}"
        for name, array in arrays.items()
        if name in known and not _fits(known[name], array)
    ]
    return wrong


def _fits(spec: InputSpec, array: np.ndarray) -> bool:
    if not has_type(array, ir.DataType[spec.dtype]):
        return False
    return spec.shape is None or (
        len(spec.shape) == array.ndim
        and all(have == want for have, want in zip(array.shape, spec.shape) if type(want) is int)
    )


def _bind_symbols(specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> dict[str, int]:
    symbols = check_sizes(specs, sizes)
    bound = {name: sizes.get(name, _default(name)) for name in symbols}
    past = sum(bound[name] for name in symbols if "past" in name)
    fresh = [bound[n] for n in symbols if "seq" in n and "past" not in n and "total" not in n]
    for name in symbols - sizes.keys():
        if "total" in name:
            bound[name] = past + (fresh[0] if fresh else DEFAULT_SIZE)
    return bound


def _symbols(size: int | str) -> set[str]:
    dim = from_text(size) if isinstance(size, str) else size
    return dim.symbols if isinstance(dim, Expr) else set()


def _default(name: str) -> int:
    """One sequence, no past: what every decoder accepts."""
    if "past" in name:
        return 0
    return 1 if "batch" in name else DEFAULT_SIZE


def _shape(spec: InputSpec, bound: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise PlanError(
            f"cannot make up input '{spec.name}': the model does not declare its shape. "
            "Give the inputs with --inputs x.npz."
        )
    dims = [from_text(size) if isinstance(size, str) else size for size in spec.shape]
    return tuple(bind(size, bound, DEFAULT_SIZE) for size in dims)


def _contents(spec: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    dtype = ir.DataType[spec.dtype].numpy()
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind == "O":
        return random.integers(0, 10, shape).astype(str)
    if dtype.kind not in "iu":
        return random.standard_normal(shape).astype(dtype)
    if "position" in spec.name and shape:
        positions = np.broadcast_to(np.arange(shape[-1]), shape)
        return np.minimum(positions, (spec.rows or shape[-1]) - 1).astype(dtype)
    if spec.rows is None:
        return np.ones(shape, dtype)
    return random.integers(0, spec.rows, shape).astype(dtype)


def _table_rows(value: ir.Value, shapes: Shapes) -> int | None:
    """Rows of the smallest table that `value` is an index into, or None."""
    found: list[int] = []
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        for node, index in current.uses():
            data = node.inputs[0]
            if node.op_type in LOOKUP_AXES and index == 1 and data in shapes.dims:
                name = LOOKUP_AXES[node.op_type]
                axis = node.attributes[name].as_int() if name in node.attributes else 0
                rows: Dim = shapes.dims[data][axis]
                found += [rows] if isinstance(rows, int) else []
            elif node.op_type in KEEPS_VALUES and index == 0:
                fresh = [out for out in node.outputs if out not in seen]
                seen.update(fresh)
                pending += fresh
    return min(found, default=None)
