"""Where this process stands in its job, by the launcher's environment, without importing MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What the launcher says about this process."""

    rank: int
    size: int
    local_size: int
    """Ranks on this host."""
    launcher: str
    """Family of the launcher: 'mpich' (Intel's too), 'openmpi', 'pmix', or '' without one."""


_FAMILIES = (
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("pmix", "PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_SIZE"),
)


def detect_environment(environ: Mapping[str, str] = os.environ) -> Placement:
    """Rank and size as the launcher set them; a process without a launcher is rank 0 of 1."""
    for launcher, rank, size, local_size in _FAMILIES:
        if environ.get(rank, "").isdigit() and environ.get(size, "").isdigit():
            ranks = int(environ[size])
            here = environ.get(local_size, "")
            return Placement(
                int(environ[rank]), ranks, int(here) if here.isdigit() else ranks, launcher
            )
    return Placement(0, 1, 1, "")


def local_ranks() -> int:
    """Number of ranks that share this host."""
    return detect_environment().local_size


def usable_cores() -> int:
    """Number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_rank(ranks_here: int | None = None) -> int:
    """Cores divided by the ranks of this host, at least 1."""
    return max(1, usable_cores() // (local_ranks() if ranks_here is None else ranks_here))
