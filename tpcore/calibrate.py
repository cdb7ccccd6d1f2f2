"""`tpcore calibrate`: measure this machine through a backend and write its topology.

The topology has rates per number of ranks that work at once, and times of every collective per
number of ranks, as the runtime sees them: with the end of a segment and the start of the next one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from backends import job, registry
from backends.base import Backend
from backends.placement import detect_environment, threads_per_rank, usable_cores
from graph.errors import ExecutionError, PlanError
from tpcore.manifest import tool_version
from tpcore.measure import Bench, Found, Say
from tpcore.planner.topology import COLLECTIVES, Device, Link, Points, Topology
from tpcore.planner.topology_files import topology_to_json
from tpcore.reshard import ReshardKind
from tpcore.run import check_writable, start_ranks

TIMEOUT_SECONDS = 300.0
LEAST_MEMORY_BYTES = 256 << 20
"""Weights that are read to measure the memory, unless the cache is larger still."""
USUAL_CACHE_BYTES = 32 << 20
"""Assumed of a machine that does not say how large its last cache is."""


def calibrate(
    backend: Backend, ranks: Sequence[int], threads: int | None = None, say: Say = lambda _: None
) -> Topology:
    """Measure with each number of ranks in turn, each rank with `threads` threads.

    Without `threads` a rank has as many as `tpcore run` gives it.

    Raises:
        PlanError: the backend has no ranks of its own, or no number of ranks above 1 is given.
        ExecutionError: a job failed.
    """
    if backend.communicator is None:
        raise PlanError(
            f"backend '{backend.name}' runs all ranks in one process, so that there is no exchange "
            "to measure. Calibrate a backend that starts ranks, such as cpu."
        )
    if max(ranks) < 2:
        raise PlanError(
            f"--ranks {','.join(map(str, ranks))} has no number above 1, so that there is no "
            "exchange to measure. Give --ranks 1,2."
        )
    found = []
    for count in sorted(set(ranks)):
        each = threads or threads_per_rank(count)
        say(f"{count} rank{'s' * (count > 1)} of {each} thread{'s' * (each > 1)}")
        found.append(_measure_job(backend, count, each))
    return topology_of(backend.name, found)


def _measure_job(backend: Backend, ranks: int, threads: int) -> Found:
    """Start the ranks of one job and read what its first rank writes."""
    with tempfile.TemporaryDirectory(prefix="tpcore-calibrate-") as folder:
        result = Path(folder, "found.json")
        arguments = ["calibrate", "-o", str(result), "--backend", backend.name]
        arguments += ["--as-rank", "--threads", str(threads)]
        status = start_ranks(arguments, backend, ranks, TIMEOUT_SECONDS)
        if status or not result.is_file():
            raise ExecutionError(
                f"measuring on {ranks} ranks ended with status {status}. What the ranks said "
                "stands above; tpcore doctor says what can run here."
            )
        return Found.from_json(json.loads(result.read_text()))


def measure_as_rank(backend: Backend, threads: int, result: Path) -> None:
    """Measure as one rank of a job; the first one writes the result."""
    ranks = job.join(TIMEOUT_SECONDS, backend.communicator)
    first = ranks.rank == 0
    bench = Bench(
        backend.executor(),
        ranks.communicator,
        threads,
        max(LEAST_MEMORY_BYTES, 4 * cache_bytes()),
        (lambda text: print(text, file=sys.stderr, flush=True)) if first else (lambda _: None),
    )
    found = bench.measure()
    if first:
        result.write_text(json.dumps(found.to_json()))


def cache_bytes() -> int:
    """Size of the machine's last cache, as Linux tells it."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.removesuffix("K")) << 10
    except (OSError, ValueError):
        return USUAL_CACHE_BYTES


def memory_bytes() -> int:
    """Size of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def topology_of(name: str, found: Sequence[Found]) -> Topology:
    """The topology of one machine from what jobs of several sizes have measured."""
    rates = {one.ranks: one.rates for one in found}
    share = memory_bytes() // max(rates)  # the ranks of one machine share what it has
    device = Device(f"{name}-calibrated", share, cache_bytes(), rates)
    measured: dict[ReshardKind, Mapping[int, Points]] = {
        kind: {one.ranks: one.collectives[kind] for one in found if one.ranks > 1}
        for kind in COLLECTIVES
    }
    hop = _hop_seconds(measured[ReshardKind.ALL_REDUCE])
    link = Link(
        f"{name}-calibrated",
        None,
        _bytes_per_second(measured[ReshardKind.ALL_REDUCE]),
        {kind: _alpha_seconds(by_ranks, hop) for kind, by_ranks in measured.items()},
        hop,
        measured,
    )
    return Topology(f"{name}-calibrated", device, (link,))


def _hop_seconds(by_ranks: Mapping[int, Points]) -> float:
    """What a doubling of the ranks adds to the latency, between the fewest and the most."""
    low, high = min(by_ranks), max(by_ranks)
    if low == high:
        return 0.0
    return max(by_ranks[high][0][1] - by_ranks[low][0][1], 0.0) / math.log2(high / low)


def _alpha_seconds(by_ranks: Mapping[int, Points], hop: float) -> float:
    low = min(by_ranks)
    return max(by_ranks[low][0][1] - hop * math.log2(low), 0.0)


def _bytes_per_second(by_ranks: Mapping[int, Points]) -> float:
    """What a rank sends per second in the largest AllReduce among the most ranks."""
    ranks = max(by_ranks)
    first, last = by_ranks[ranks][0], by_ranks[ranks][-1]
    sent = (last[0] - first[0]) * ReshardKind.ALL_REDUCE.bytes_factor(ranks)
    return sent / max(last[1] - first[1], 1e-9)


def default_ranks() -> list[int]:
    """1, 2, 4, … up to the number of cores, and 2 on a machine of one core."""
    cores = max(usable_cores(), 2)
    return [2**step for step in range(cores.bit_length()) if 2**step <= cores]


def calibrate_command(args: argparse.Namespace) -> int:
    """`tpcore calibrate`."""
    backend = registry.get(args.backend)
    if args.as_rank:
        measure_as_rank(backend, args.threads, args.output)
        return 0
    if detect_environment().size > 1:
        raise PlanError(
            "tpcore calibrate starts ranks of its own, but a launcher started this process as one "
            "of several. Run it without the launcher."
        )
    check_writable(args.output)
    ranks = args.ranks or default_ranks()
    if max(ranks) > max(default_ranks()):
        raise PlanError(
            f"{max(ranks)} ranks on {usable_cores()} cores would measure how they wait for each "
            f"other. Give --ranks up to {max(default_ranks())}."
        )
    topology = calibrate(
        backend,
        ranks,
        args.threads,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    source = f"measured by tpcore {tool_version()} calibrate, {platform.machine()}, {backend.name}"
    text = json.dumps(topology_to_json(topology, source), indent=2) + "\n"
    args.output.write_text(text)
    print(text if args.json else f"topology       {args.output}", end="" if args.json else "\n")
    return 0
