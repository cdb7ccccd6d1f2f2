"""Ops that move elements and compute nothing: reshape, transpose, slice, split, gather, …"""

from __future__ import annotations

import onnx_ir as ir

from graph.dims import Dim, Dims, divide
from graph.shape_rules import slice_bounds
from graph.shapes import Context
from tpcore import localizers
from tpcore.rule import Rule
from tpcore.rules.spec import (
    ALL,
    OpSpec,
    axes_of,
    broadcast_text,
    make,
    mark,
    names,
    ones_as_1,
)

MIN_CACHE_DIMS = 3
"""A cache has batch, length and features; what grows with fewer dims is a mask or a list."""


def transpose(c: Context) -> Rule:
    """`d0 d1 d2 -> d2 d0 d1`."""
    labels = names(len(c.dims(0)))
    perm = c.attribute("perm", range(len(labels))[::-1])
    if sorted(perm) != list(range(len(labels))):
        raise KeyError("perm")
    return make(f"{' '.join(labels)} -> {' '.join(labels[i] for i in perm)}")


def unsqueeze(c: Context) -> Rule:
    """`d0 d1 -> d0 1 d1`."""
    labels = names(len(c.dims(0)))
    rank = len(c.shapes.dims[c.node.outputs[0]])
    axes = axes_of(c, 1, rank) or []
    rest = iter(labels)
    out = ["1" if i in axes else next(rest) for i in range(rank)]
    return make(f"{' '.join(labels)}{_others(c)} -> {' '.join(out)}")


def squeeze(c: Context) -> Rule:
    """`d0 1 d1 -> d0 d1`."""
    dims = c.dims(0)
    labels = names(len(dims))
    axes = axes_of(c, 1, len(dims))
    gone = [i for i, size in enumerate(dims) if size == 1] if axes is None else axes
    kept = [name for i, name in enumerate(labels) if i not in gone]
    operand = ["1" if i in gone else name for i, name in enumerate(labels)]
    return make(f"{' '.join(operand)}{_others(c)} -> {' '.join(kept)}")


def expand(c: Context) -> Rule:
    """`d0 1 d2, * -> d0 d1 d2`; the shape operand must be understood to be scaled per rank."""
    c.contents(1)
    out = c.shapes.dims[c.node.outputs[0]]
    labels = names(len(out))
    return make(f"{broadcast_text(labels, c.dims(0))}, * -> {ones_as_1(labels, out)}")


def reshape(c: Context) -> Rule:
    """`b s (h d), * -> b s h d`: dims are matched by size, major first, then from the end."""
    c.contents(1)
    have, want = c.dims(0), c.shapes.dims[c.node.outputs[0]]
    sizes: dict[str, Dim] = {}
    left, right = factorise(have, want, sizes)
    return make(f"{compound(left)}, * -> {compound(right)}", sizes)


def factorise(have: Dims, want: Dims, sizes: dict[str, Dim]) -> tuple[list[list[str]], ...]:
    """Common factors of two shapes of equal product, per dim; `!` marks what matches nothing."""
    shapes = (list(have), list(want))
    parts: tuple[list[list[str]], ...] = ([[] for _ in have], [[] for _ in want])
    tails: tuple[list[list[str]], ...] = ([[] for _ in have], [[] for _ in want])
    _match_dims(shapes, parts, sizes, 0)
    _match_dims(shapes, tails, sizes, -1)
    for side in (0, 1):
        for i, rest in enumerate(shapes[side]):
            if rest != 1:
                sizes[f"x{side}{i}"] = rest
                parts[side][i].append(f"x{side}{i}!")
            parts[side][i] += tails[side][i]
    return parts


def _match_dims(
    shapes: tuple[list[Dim], list[Dim]],
    parts: tuple[list[list[str]], ...],
    sizes: dict[str, Dim],
    end: int,
) -> None:
    """Match factors from one end (0: major, -1: minor), dividing the matched sizes off `shapes`."""
    open_dims = [[i for i, size in enumerate(shape) if size != 1] for shape in shapes]
    while open_dims[0] and open_dims[1]:
        i, j = open_dims[0][end], open_dims[1][end]
        a, b = shapes[0][i], shapes[1][j]
        if (rest := divide(a, b)) is not None:
            factor, shapes[0][i], shapes[1][j] = b, rest, 1
        elif (rest := divide(b, a)) is not None:
            factor, shapes[0][i], shapes[1][j] = a, 1, rest
        else:
            return
        name = f"f{len(sizes)}"
        sizes[name] = factor
        for part in (parts[0][i], parts[1][j]):
            part.insert(0, name) if end else part.append(name)
        open_dims = [[i for i in dims if shapes[s][i] != 1] for s, dims in enumerate(open_dims)]


def compound(dims: list[list[str]]) -> str:
    """Text of a tensor whose dims are products of factors."""
    return " ".join("(" + " ".join(f or ["1"]) + ")" for f in dims)


def slice_(c: Context) -> Rule:
    """`d0 (x|y|z) -> d0 y`: a slice of a static dim keeps one segment of it.

    `d0 (y s!) -> d0 y` where it steps through the whole dim, as from gate, up, gate, up, …
    """
    dims = c.dims(0)
    operand, result = names(len(dims)), names(len(dims))
    sizes: dict[str, Dim] = {}
    constant = c.shapes.ints(c.operand(1)) is not None and c.shapes.ints(c.operand(2)) is not None
    for dim, start, stop, step in slice_bounds(c):
        size = dims[dim]
        if (start, stop, step) == (0, size, 1):
            continue
        if (
            not (isinstance(start, int) and isinstance(stop, int) and isinstance(size, int))
            or not constant  # the bounds of all dims are one tensor, which could not be rewritten
            or stop <= start
            or (step != 1 and len(range(start, stop, step)) * step != size)
        ):
            operand[dim], result[dim] = f"d{dim}!", f"out{dim}!"
            continue
        extents = {f"x{dim}": start, f"y{dim}": stop - start, f"z{dim}": size - stop}
        kept = {name: extent for name, extent in extents.items() if extent}
        text = "(" + "|".join(kept) + ")"
        if step != 1:
            kept, text = {f"y{dim}": size // step, f"s{dim}": step}, f"(y{dim} s{dim}!)"
        sizes |= kept
        operand[dim], result[dim] = text, f"y{dim}"
    return make(f"{' '.join(operand)}{_others(c)} -> {' '.join(result)}", sizes)


def concat(c: Context) -> Rule:
    """`d0 x, d0 y -> d0 (x|y)`."""
    operands = [c.dims(i) for i in range(len(c.node.inputs))]
    rank = len(operands[0])
    axis = c.attribute("axis", 0) % rank
    extents = [dims[axis] for dims in operands]
    static = all(isinstance(extent, int) for extent in extents)
    labels = names(len(operands), "x")
    sizes = dict(zip(labels, extents, strict=True)) if static else {}
    texts = []
    for label in labels:
        text = names(rank)
        text[axis] = label if static else label + "!"
        texts.append(" ".join(text))
    out = names(rank)
    out[axis] = f"({'|'.join(labels)})" if static else "joined!"
    return make(f"{', '.join(texts)} -> {' '.join(out)}", sizes)


def grows(node: ir.Node) -> bool:
    """Whether a Concat makes its first operand longer where that has any length, as a cache has."""
    past, axis = node.inputs[0], node.attributes.get("axis")
    if past is None or past.shape is None or axis is None or len(past.shape) < MIN_CACHE_DIMS:
        return False
    return not isinstance(past.shape[axis.as_int()], int)


def split(c: Context) -> Rule:
    """`d0 (x|y|z) -> d0 x, d0 y, d0 z`."""
    dims = c.dims(0)
    axis = c.attribute("axis", 0) % len(dims)
    extents = [c.shapes.dims[out][axis] for out in c.node.outputs]
    labels = names(len(extents), "x")
    static = all(isinstance(extent, int) for extent in extents)
    operand, results = names(len(dims)), []
    operand[axis] = f"({'|'.join(labels)})" if static else "whole!"
    for label in labels:
        result = names(len(dims))
        result[axis] = label if static else label + "!"
        results.append(" ".join(result))
    sizes = dict(zip(labels, extents, strict=True)) if static else {}
    return make(f"{' '.join(operand)}{_others(c)} -> {', '.join(results)}", sizes)


def gather(c: Context) -> Rule:
    """`v+ h, i0 i1 -> i0 i1 h`: split rows are looked up where they are, other ranks add zero."""
    data, index = c.dims(0), c.dims(1)
    axis = c.attribute("axis", 0) % len(data)
    rows, positions = names(len(data)), names(len(index), "i")
    out = [*rows[:axis], *positions, *rows[axis + 1 :]]
    return make(f"{' '.join(mark(rows, [axis], '+'))}, {' '.join(positions)} -> {' '.join(out)}")


def shape_only(c: Context) -> Rule:
    """`d0 d1 -> *`: any split of the operand, and a replicated result."""
    return make(f"{' '.join(names(len(c.dims(0))))} -> *")


def _others(c: Context) -> str:
    return ", *" * (len(c.node.inputs) - 1)


SHAPE_OPS: dict[tuple[str, str], OpSpec] = {
    ("", "Transpose"): OpSpec(transpose, linear=((0,),)),
    ("", "Unsqueeze"): OpSpec(unsqueeze, linear=((0,),)),
    ("", "Squeeze"): OpSpec(squeeze, linear=((0,),), localize=localizers.squeezed_axes),
    ("", "Expand"): OpSpec(expand, linear=((0,),), localize=localizers.shape_operand),
    ("", "Reshape"): OpSpec(reshape, linear=((0,),), localize=localizers.shape_operand),
    ("", "Slice"): OpSpec(slice_, linear=((0,),), localize=localizers.slice_bounds),
    ("", "Concat"): OpSpec(concat, linear=(ALL,), states=((0, 0),), carries=grows),
    ("", "Split"): OpSpec(split, linear=((0,),), localize=localizers.split_sizes),
    ("", "Gather"): OpSpec(gather, linear=((0,),), localize=localizers.masked_gather),
    ("", "Shape"): OpSpec(
        shape_only, linear=(ALL,), reads_shape_only=True, localize=localizers.global_shape
    ),
}
