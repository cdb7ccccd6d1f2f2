"""The ways to exchange through the host's memory, which any backend can use: MPI and gloo.

Libraries are looked for here and imported only when used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from graph.errors import BackendUnavailable, PlanError

from .base import Availability, Communicator, RankLauncher
from .launcher import find_launcher
from .spawn import OwnLauncher


@dataclass(frozen=True)
class Exchange:
    """Who exchanges, and what starts the ranks."""

    probe: Callable[[], Availability]
    """Says whether it can run here."""
    joining: Callable[[Communicator], Communicator]
    """Makes the communicator from the one through which the ranks have met."""
    launcher: Callable[[], RankLauncher]
    """Finds what starts ranks that can use it."""


def probe_module(module: str, install: str) -> Availability:
    """Whether a module is installed."""
    if find_spec(module) is None:
        return Availability(False, f"{module} is not installed", f"Install it with {install}.")
    return Availability(True)


def probe_torch() -> Availability:
    """Whether torch is installed."""
    return probe_module("torch", "pip install 'tpcore[torch]'")


def first_refusal(*probes: Callable[[], Availability]) -> Availability:
    """Why the first of several things that are needed cannot run here, if any."""
    for probe in probes:
        found = probe()
        if not found.ok:
            return found
    return Availability(True)


def _probe_mpi() -> Availability:
    found = probe_module("mpi4py", "pip install 'tpcore[mpi]'")
    if not found.ok:
        return found
    try:
        find_launcher()
    except BackendUnavailable as error:
        reason, _, hint = str(error).partition(". ")
        return Availability(False, reason, hint)
    return Availability(True)


def _mpi_ranks(meeting: Communicator) -> Communicator:
    from .comm_mpi import MpiCommunicator
    from .comm_window import through_shared_memory

    if isinstance(meeting, MpiCommunicator):
        return through_shared_memory(meeting, meeting.fence)
    raise BackendUnavailable(
        "the ranks are to exchange with MPI, but no MPI launcher started them. Start them with "
        "mpirun or let tpcore run start them, or exchange with --collectives gloo."
    )


def _gloo_ranks(meeting: Communicator) -> Communicator:
    from .torch_groups import gloo_ranks

    return gloo_ranks(meeting)


EXCHANGES = {
    "mpi": Exchange(_probe_mpi, _mpi_ranks, find_launcher),
    "gloo": Exchange(probe_torch, _gloo_ranks, OwnLauncher),
}
"""By their names for --collectives."""


def exchange_named(name: str) -> Exchange:
    """The way of this name. Raises PlanError if there is none."""
    if name not in EXCHANGES:
        raise PlanError(
            f"ranks cannot exchange by '{name}'. Choose one of {', '.join(EXCHANGES)}, or leave it "
            "out for the library of the backend."
        )
    return EXCHANGES[name]
