"""Changes of a value's sharding, and the one collective each becomes.

| from \\ to  | Replicate      | Shard                       | Partial               |
|------------|----------------|-----------------------------|-----------------------|
| Replicate  | nothing        | slice of what is held       | root keeps it, rest 0 |
| Shard      | AllGather      | nothing if equal, AllToAll  | AllGather, root keeps |
| Partial    | AllReduce      | ReduceScatter               | nothing               |

Shard to a different Shard is an AllToAll where one dim each is split and the dims differ, else an
AllGather and a slice. The table is total but for splits whose index ranges are no constants (a
symbolic factor lies before the split one): those can only be kept, and the planner knows it.
"""

from __future__ import annotations

from enum import Enum

from tpcore.sharding import Sharding


class ReshardKind(Enum):
    """What a reshard becomes."""

    NONE = "nothing"
    SLICE = "Slice"
    KEEP_ON_ROOT = "KeepOnRoot"
    ALL_REDUCE = "AllReduce"
    ALL_GATHER = "AllGather"
    REDUCE_SCATTER = "ReduceScatter"
    ALL_TO_ALL = "AllToAll"
    IMPOSSIBLE = "impossible"

    def bytes_factor(self, ranks: int) -> float:
        """Bytes a rank sends over bytes of the full tensor; lower bounds, as in `graph.dialect`."""
        share = (ranks - 1) / ranks
        factors = {"AllReduce": 2 * share, "AllToAll": share / ranks}
        return factors.get(self.value, share)


def reshard_kind(have: Sharding, want: Sharding) -> ReshardKind:
    """The step that turns `have` into `want` (a local step may follow an AllGather)."""
    if have.same_as(want):
        return ReshardKind.NONE
    for side in (have, want):
        if side.splits and not side.layouts:
            return ReshardKind.IMPOSSIBLE
    if have.is_replicated:
        return ReshardKind.KEEP_ON_ROOT if want.is_partial else ReshardKind.SLICE
    if have.is_partial:
        return ReshardKind.ALL_REDUCE if want.is_replicated else ReshardKind.REDUCE_SCATTER
    if want.splits and len(have.dims) == len(want.dims) == 1 and have.dims != want.dims:
        return ReshardKind.ALL_TO_ALL
    return ReshardKind.ALL_GATHER
