"""Write indexing as the ops whose rules let a split pass.

A packed value is taken apart by `Slice`, or so written: `x[:, :, [2]]` is a Gather of a constant
list, `x[[0, 1]]` may be a GatherND.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph.shapes import Shapes
from graph.weights import add_initializer


def slice_lookups(graph: ir.Graph, shapes: Shapes) -> None:
    """`GatherND` along one dim is `Gather`, and a lookup of a constant range is `Slice`."""
    for node in list(graph):
        if node.domain != "" or len(node.inputs) != 2 or None in node.inputs:
            continue
        lookup = _Lookup(graph, shapes, node)
        if node.op_type == "GatherND":
            lookup.rewrite_gather_nd()
        elif node.op_type == "Gather":
            lookup.rewrite_gather()


class _Lookup:
    """One node that looks rows up."""

    def __init__(self, graph: ir.Graph, shapes: Shapes, node: ir.Node) -> None:
        self.graph = graph
        self.shapes = shapes
        self.node = node
        rows, index = node.inputs
        assert rows is not None and index is not None
        self.rows, self.index = rows, index

    def rewrite_gather_nd(self) -> None:
        """One index per looked-up row: the last dim of the index is 1 and drops out."""
        dims = self.shapes.dims.get(self.index, ())
        if dims[-1:] != (1,) or self.attribute("batch_dims"):
            return
        found = self.constant_range(0) if len(dims) == 2 else None
        self.become(self.slice(0, *found) if found else self.gather())

    def rewrite_gather(self) -> None:
        """Take a packed value apart.

        A lookup in weights stays, as a table may be split by rows, and so does shape arithmetic.
        """
        rank = len(self.shapes.dims.get(self.rows, ()))
        is_list = len(self.shapes.dims.get(self.index, ())) == 1
        if self.rows.const_value is None and rank > 1 and is_list:
            axis = self.attribute("axis") % rank
            found = self.constant_range(axis)
            if found is not None:
                self.become(self.slice(axis, *found))

    def attribute(self, name: str) -> int:
        """An attribute whose default is 0."""
        given = self.node.attributes.get(name)
        return 0 if given is None else given.as_int()

    def constant_range(self, axis: int) -> tuple[int, int] | None:
        """The looked-up indices as a range, None where they are no constants or have gaps."""
        places, dims = self.shapes.ints(self.index), self.shapes.dims.get(self.rows, ())
        size = dims[axis] if axis < len(dims) else None
        if not places or not isinstance(size, int):
            return None
        start = places[0] % size if size else 0
        wanted = list(range(start, start + len(places)))
        is_range = [place % size for place in places] == wanted if size else False
        return (start, start + len(places)) if is_range else None

    def slice(self, axis: int, start: int, stop: int) -> list[ir.Node]:
        """The rows of a range."""
        bounds = [
            self.constant([number], label)
            for label, number in (("start", start), ("stop", stop), ("axis", axis))
        ]
        return [ir.node("Slice", [self.rows, *bounds], name=f"{self.node.name}/Slice")]

    def gather(self) -> list[ir.Node]:
        """The rows of an index without its last dim."""
        name, last = self.node.name, self.constant([-1], "last")
        squeeze = ir.node("Squeeze", [self.index, last], name=f"{name}/Squeeze")
        flat = squeeze.outputs[0]
        flat.name, flat.type = f"{name}/index", self.index.type
        self.shapes.dims[flat] = self.shapes.dims[self.index][:-1]
        return [squeeze, ir.node("Gather", [self.rows, flat], {"axis": 0}, name=f"{name}/Gather")]

    def constant(self, entries: list[int], label: str) -> ir.Value:
        """A constant of int64[n] whose contents are known."""
        array = np.array(entries, np.int64)
        value = add_initializer(self.graph, f"{self.node.name}/{label}", ir.tensor(array))
        self.shapes.dims[value], self.shapes.contents[value] = array.shape, array.astype(object)
        return value

    def become(self, made: list[ir.Node]) -> None:
        """Put these nodes in the node's place."""
        old, result = self.node.outputs[0], made[-1].outputs[0]
        result.type, self.shapes.dims[result] = old.type, self.shapes.dims[old]
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], made, [old], [result]
        )
