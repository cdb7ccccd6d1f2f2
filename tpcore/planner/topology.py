"""Devices and the links between them, as far as costs depend on them.

A topology is one kind of device and the links that join its ranks, from the inside out: NVLink
between the eight cards of a node, InfiniBand between nodes. Ranks fill a node before the next one.

A collective over n = n1 · n2 · … ranks, n1 of them within the first link, costs the sum over links

    alpha + hop · log2(nl) + factor(kind, nl) · Nl / bytes_per_second

where Nl is the part of the tensor that the groups of this link work on: each rank of a node has
reduced or will gather 1/n1 of it when the exchange between nodes runs. A link whose times were
measured is asked for them instead.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graph.errors import PlanError
from tpcore.reshard import ReshardKind

COLLECTIVES = (
    ReshardKind.ALL_REDUCE,
    ReshardKind.ALL_GATHER,
    ReshardKind.REDUCE_SCATTER,
    ReshardKind.ALL_TO_ALL,
)
Points = Sequence[tuple[float, float]]
"""(bytes of the full tensor, seconds), by rising bytes."""


@dataclass(frozen=True)
class Rates:
    """What a rank's device does in a second."""

    flops_per_second: Mapping[str, float]
    """Per element type as in `graph.text`; multiply-adds count twice."""
    memory_bytes_per_second: float
    """For weights and states, which no cache holds from one run to the next."""
    cache_bytes_per_second: float
    """For what another op has just written."""
    op_seconds: float = 0.0
    """Added for every op, however small."""

    def flops(self, dtype: str) -> float:
        """Operations per second on `dtype`; on one that is not listed as many as on the slowest."""
        return self.flops_per_second.get(dtype) or min(self.flops_per_second.values())


@dataclass(frozen=True)
class Device:
    """What one rank computes with."""

    name: str
    memory_bytes: float
    """What a rank may hold."""
    cache_bytes: float
    """Activations up to this size are read back at the cache's speed."""
    rates: Mapping[int, Rates]
    """By the number of ranks that share the device's memory and cores; those of cards share none
    and have one entry."""

    def at(self, ranks: int) -> Rates:
        """Rates while `ranks` ranks work: those of the largest number known up to it."""
        known = [count for count in self.rates if count <= ranks]
        return self.rates[max(known) if known else min(self.rates)]


@dataclass(frozen=True)
class Link:
    """What joins ranks, or groups of them that inner links join."""

    name: str
    ranks: int | None
    """How many members it can join; None for any number."""
    bytes_per_second: float
    """What one rank sends."""
    alpha_seconds: Mapping[ReshardKind, float]
    """Latency of a collective."""
    hop_seconds: float = 0.0
    """Added to it per doubling of the group."""
    measured: Mapping[ReshardKind, Mapping[int, Points]] = field(default_factory=dict)
    """Times by kind and number of ranks."""

    def seconds(self, kind: ReshardKind, full_bytes: float, ranks: int) -> float:
        """Time of one collective among `ranks` members, for a tensor of `full_bytes`."""
        points = self.measured.get(kind, {}).get(ranks)
        if points:
            return interpolate(points, full_bytes)
        sent = full_bytes * kind.bytes_factor(ranks)
        latency = self.alpha_seconds[kind] + self.hop_seconds * math.log2(ranks)
        return latency + sent / self.bytes_per_second


@dataclass(frozen=True)
class Topology:
    """One kind of device, and the links between ranks from the inside out."""

    name: str
    device: Device
    links: Sequence[Link]

    def groups(self, ranks: int) -> list[int]:
        """How many members each link joins when `ranks` ranks fill it from the inside.

        Raises:
            PlanError: the links cannot join as many.
        """
        sizes, left = [], ranks
        for link in self.links:
            sizes.append(left if link.ranks is None else min(left, link.ranks))
            left = math.ceil(left / sizes[-1])
        if left > 1:
            most = math.prod(link.ranks for link in self.links if link.ranks is not None)
            raise PlanError(
                f"topology '{self.name}' joins up to {most} ranks, the request is for {ranks}. "
                f"Choose tp up to {most}, or a topology with a link between nodes."
            )
        return sizes

    def rates(self, ranks: int) -> Rates:
        """Rates of a rank while all ranks of its node work."""
        return self.device.at(self.groups(ranks)[0])

    def collective_seconds(self, kind: ReshardKind, full_bytes: float, ranks: int) -> float:
        """Time of one collective over `ranks` ranks, for a tensor of `full_bytes` in all."""
        total, inner = 0.0, 1
        for link, members in zip(self.links, self.groups(ranks)):
            if members > 1:
                # A rank of an AllToAll has 1/n of the tensor whatever it exchanges it with.
                share = members / ranks if kind is ReshardKind.ALL_TO_ALL else 1 / inner
                total += link.seconds(kind, full_bytes * share, members)
            inner *= members
        return total


def interpolate(points: Points, size: float) -> float:
    """Seconds at `size`, linear between the logarithms; beyond the last point by the last slope.

    Below the first point they stay as they are there: a latency.
    """
    sizes = [x for x, _ in points]
    if size <= sizes[0] or len(points) == 1:
        return points[0][1] * max(1.0, size / sizes[0])
    place = min(max(bisect_left(sizes, size), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return float(y1 * (size / x1) ** slope)
