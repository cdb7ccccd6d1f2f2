"""Where this process stands in its job, by the launcher's environment, before any library loads."""

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
    """Family of the launcher: 'mpich' (Intel's too), 'openmpi', 'pmix', 'torchrun', 'tpcore' (our
    own, without MPI), or '' without one."""
    local_rank: int = 0
    """Number of this process among those of its host; which device is its own."""

    @property
    def speaks_mpi(self) -> bool:
        """Whether the launcher is MPI's, so that the ranks meet through MPI."""
        return self.launcher in ("mpich", "openmpi", "pmix")


_FAMILIES = (
    ("tpcore", "TPCORE_RANK", "TPCORE_SIZE", "TPCORE_SIZE", "TPCORE_RANK"),
    (
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    ("mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    ("pmix", "PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_SIZE", "PMIX_LOCAL_RANK"),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
)
_ALSO_NEEDED = {"torchrun": "MASTER_ADDR"}
"""RANK alone is a name that anybody may have set."""


def detect_environment(environ: Mapping[str, str] = os.environ) -> Placement:
    """Rank and size as the launcher set them; a process without a launcher is rank 0 of 1."""

    def number(name: str) -> int | None:
        text = environ.get(name, "")
        return int(text) if text.isdigit() else None

    for launcher, *names in _FAMILIES:
        rank, size, local_size, local_rank = map(number, names)
        if rank is None or size is None or _ALSO_NEEDED.get(launcher, names[0]) not in environ:
            continue
        here = size if local_size is None else local_size
        mine = rank % here if local_rank is None else local_rank
        return Placement(rank, size, here, launcher, mine)
    return Placement(0, 1, 1, "")


def local_ranks() -> int:
    """Number of ranks that share this host."""
    return detect_environment().local_size


def core_numbers() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Number of cores this process may run on."""
    return len(core_numbers())


def threads_per_rank(ranks_here: int | None = None) -> int:
    """Cores divided by the ranks of this host, at least 1."""
    return max(1, usable_cores() // (local_ranks() if ranks_here is None else ranks_here))
