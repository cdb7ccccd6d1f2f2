"""The caches of a decoder: each rank holds its own part, from one run to the next.

Where attention can write into its operand (GroupQueryAttention), the caches are buffers of the
length that is needed in the end, or that the model or its window has, and a step adds to them in
place; else what a run returns is handed to the next run as it is. Neither is copied by us or seen
by another rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from backends.base import Tensor
from tpcore.decoder import BY_PLACE, CACHES, GROUPED, LENGTH_DIM, Decoder
from tpcore.distribute import read_held
from tpcore.inputs import InputSpec
from tpcore.ranks import Ranks


class Caches:
    """What every rank of this process holds of the caches."""

    def __init__(self, ranks: Ranks, decoder: Decoder, batch: int, room: int) -> None:
        self._names = [(spec.name, present) for spec, present in decoder.caches]
        shardings = ranks.target.programs[0].shardings
        held = {spec: read_held(shardings.get(spec.name, "R")) for spec, _ in decoder.caches}
        empty = [
            {spec.name: part.cut(_empty(spec, decoder, batch), rank) for spec, part in held.items()}
            for rank in ranks.here
        ]
        self.in_place = False
        """Whether steps write into the caches they read."""
        rooms = {decoder.rooms.get(spec.name, room) for spec in held}
        self.room = max(rooms) if len(rooms) == 1 and not decoder.slides else 0
        """Positions that each of them has, 0 where they differ or slide."""
        if decoder.form == BY_PLACE and all(map(self._fits, ranks.models.values())):
            longer = [
                {
                    name: ranks.to_cache(_resized(array, decoder.rooms.get(name, room)))
                    for name, array in rank.items()
                }
                for rank in empty
            ]
            self.in_place = ranks.write_into(
                [{present: rank[past] for past, present in self._names} for rank in longer]
            )
        self.held: list[dict[str, Tensor]] = (
            longer
            if self.in_place
            else [{n: ranks.to_tensor(array) for n, array in rank.items()} for rank in empty]
        )
        """Per rank of this process the inputs of the next run."""

    def keep(self, outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over what a run has made."""
        if not self.in_place:
            self.held = [{past: made[now] for past, now in self._names} for made in outputs]

    def _fits(self, model: ir.Model) -> bool:
        """Whether every cache goes into an attention that can write into it, and nowhere else."""
        inputs = {value.name: value for value in model.graph.inputs}
        return all(_grows_in_place(inputs[past], present) for past, present in self._names)


def _grows_in_place(past: ir.Value, present: str) -> bool:
    uses = list(past.uses())
    if len(uses) != 1 or uses[0].idx not in CACHES or uses[0].node.op_type != GROUPED:
        return False
    node, operand = uses[0]
    result = node.outputs[CACHES[operand]]
    return result.name == present and not list(result.uses())


def _empty(spec: InputSpec, decoder: Decoder, batch: int) -> np.ndarray:
    """A cache of no positions; a state of constant size, or a window, is zeros."""
    rows = (decoder.tokens.shape or ("",))[0]
    shape = [
        size if isinstance(size, int) else batch if size == rows or dim == 0 else 0
        for dim, size in enumerate(spec.shape or ())
    ]
    dtype: Any = ir.DataType[spec.dtype].numpy()
    cache = np.zeros(shape, dtype)
    return _resized(cache, decoder.rooms[spec.name]) if spec.name in decoder.rooms else cache


def _resized(cache: np.ndarray, room: int) -> np.ndarray:
    """An empty cache with room for so many positions."""
    shape = list(cache.shape)
    shape[LENGTH_DIM] = room
    return np.zeros(shape, cache.dtype)
