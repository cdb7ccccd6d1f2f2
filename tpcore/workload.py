"""The kinds of run that one plan serves: a decoder's prefill, and the decode steps after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graph.dims import Dim, Expr
from graph.errors import PlanError
from graph.shapes import Shapes
from tpcore.manifest import MAIN
from tpcore.planner.options import find_states

PREFILL, DECODE = "prefill", "decode"
SAMPLE = 8
"""Positions enough to prove a program."""


@dataclass(frozen=True)
class Work:
    """One kind of run."""

    name: str = MAIN
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of symbolic dims; those missing count as 1."""
    runs: float = 1.0
    """How often it is run, in proportion to the others."""
    sample: Mapping[str, int] = field(default_factory=dict)
    """Small sizes of the same kind, to prove the program with."""
    longest: Mapping[str, int] = field(default_factory=dict)
    """Sizes of its largest run, where runs grow: memory must suffice for that one."""

    @property
    def memory_sizes(self) -> Mapping[str, int]:
        """Sizes that memory is counted for."""
        return {**self.sizes, **self.longest}


ANY_WORK = Work()


@dataclass(frozen=True)
class _Decoder:
    """The symbolic dims of a decoder with a cache."""

    sequence: str
    past: str
    totals: frozenset[str]
    """Dims that count past and new positions together."""

    def sizes(self, sequence: int, past: int) -> dict[str, int]:
        total = dict.fromkeys(sorted(self.totals), past + sequence)
        return {self.sequence: sequence, self.past: past, **total}


def decoder_works(
    graph: ir.Graph, shapes: Shapes, tokens: Mapping[str, int], sizes: Mapping[str, int]
) -> list[Work]:
    """A prefill of `tokens["prefill"]` tokens, followed by `tokens["decode"]` steps of one token.

    `sizes` are those of other symbolic dims. A decode step sees the prefill and, on average, half
    of the steps; the last one sees all.

    Raises:
        PlanError: the graph is no decoder with a cache and open sequence lengths.
    """
    decoder = _find_decoder(graph, shapes)
    prompt, steps = tokens[PREFILL], tokens[DECODE]
    return [
        Work(
            PREFILL,
            {**sizes, **decoder.sizes(prompt, 0)},
            1.0,
            {**sizes, **decoder.sizes(min(prompt, SAMPLE), 0)},
        ),
        Work(
            DECODE,
            {**sizes, **decoder.sizes(1, prompt + steps // 2)},
            float(steps),
            {**sizes, **decoder.sizes(1, min(prompt, SAMPLE))},
            {**sizes, **decoder.sizes(1, prompt + steps - 1)},
        ),
    ]


def _find_decoder(graph: ir.Graph, shapes: Shapes) -> _Decoder:
    """Past and total lengths are where the dims of a cache grow; new ones where tokens come in."""
    past, totals = "", set()
    for before, after in find_states(graph).items():
        for old, new in zip(shapes.dims.get(before, ()), shapes.dims.get(after, ()), strict=False):
            if old != new and isinstance(new, Expr) and _symbol(old):
                past = _symbol(old)
                totals |= {_symbol(new)} - {""}
    lengths = [
        _symbol(dims[1])
        for value in graph.inputs
        if value.dtype is not None
        and value.dtype.is_integer()
        and len(dims := shapes.dims.get(value, ())) == 2
    ]
    fresh = [name for name in lengths if name and name not in {past, *totals}]
    if not past or not fresh:
        raise PlanError(
            "--workload is for a decoder with a KV cache of symbolic length, and this model has no "
            "such cache or no input of as many tokens as one wants. Export it with a cache and "
            "dynamic shapes, or give --shape instead."
        )
    return _Decoder(fresh[0], past, frozenset(totals))


def _symbol(size: Dim) -> str:
    """The name of a dim that is one symbol, else ''."""
    names = size.symbols if isinstance(size, Expr) else frozenset()
    return str(size) if len(names) == 1 and str(size) in names else ""
