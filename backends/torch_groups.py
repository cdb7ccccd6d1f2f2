"""How ranks meet through torch.distributed, and the process groups that they then exchange in.

Ranks of torchrun and of our own launcher meet here: by torchrun's store, or by a file in the
directory of the run. Ranks of an MPI launcher have met through MPI, which tells them where the
first of them listens.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from graph.errors import BackendUnavailable

from .base import Communicator
from .comm_torch import TorchCommunicator
from .handshake import agree
from .placement import Placement, detect_environment

TIMEOUT = timedelta(days=1)
"""Of torch's own calls: the watcher ends a job sooner, and its message names the rank."""
STORE_FILE = "ranks.store"
MANY_RANKS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Lets NCCL and RCCL of new versions give several ranks one device."""
_CPU = torch.device("cpu")


def meet_by_store(placement: Placement, run_dir: str | None) -> TorchCommunicator:
    """The gloo group of all ranks that torchrun or our own launcher started."""
    if not dist.is_initialized():
        if placement.launcher == "torchrun":
            store, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        else:
            rank, size = placement.rank, placement.size
            store = dist.FileStore(str(Path(run_dir or ".") / STORE_FILE), size)
        _begin(store, rank, size)
    return TorchCommunicator(None, _CPU)


def gloo_ranks(meeting: Communicator) -> Communicator:
    """The ranks exchange by gloo, through the host's memory."""
    if isinstance(meeting, TorchCommunicator):
        return meeting
    _begin_through(meeting)
    return TorchCommunicator(None, _CPU, meeting)


def device_ranks(
    meeting: Communicator, kind: str, library: str, extensions: Sequence[str] = ()
) -> Communicator:
    """The ranks exchange between their devices of a kind.

    Raises BackendUnavailable, on all ranks, if one of them has no device of its own.
    """
    device = agree(meeting, lambda: _unshared(own_device(kind, extensions)))
    if not dist.is_initialized():
        _begin_through(meeting)
    group = dist.new_group(backend=library, timeout=TIMEOUT)
    return TorchCommunicator(group, device, meeting)


def own_device(kind: str, extensions: Sequence[str] = ()) -> torch.device:
    """This process's device, made the current one; ranks share devices where there are too few.

    Raises BackendUnavailable if torch finds none.
    """
    for module in extensions:
        import_module(module)
    known = getattr(torch, kind, None)
    if known is None or not known.is_available():
        raise BackendUnavailable(
            f"torch {torch.__version__} finds no {kind} device. See tpcore doctor for what "
            "it needs, or choose another backend with --backend."
        )
    device = torch.device(kind, detect_environment().local_rank % known.device_count())
    known.set_device(device)
    return device


def _unshared(device: torch.device) -> torch.device:
    """The device, if it is this rank's alone. Raises BackendUnavailable."""
    rank, count = detect_environment().local_rank, getattr(torch, device.type).device_count()
    if rank >= count and os.environ.get(MANY_RANKS) != "1":
        raise BackendUnavailable(
            f"rank {rank} of this host has no {device.type} device of its own: there are {count}. "
            f"Start {count} ranks per host, or let ranks share a device: with {MANY_RANKS}=1 if "
            "its library can, else with --collectives gloo."
        )
    return device


def _begin_through(meeting: Communicator) -> None:
    """Begin torch.distributed where the ranks have met otherwise."""
    hosts = [name.decode() for name in meeting.exchange(socket.gethostname().encode())]
    first = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0]
    store = None
    if meeting.rank == 0:
        store = dist.TCPStore(first, 0, meeting.size, is_master=True, wait_for_workers=False)
    port = int(meeting.exchange(str(store.port if store else 0).encode())[0])
    if store is None:
        store = dist.TCPStore(first, port, meeting.size, is_master=False)
    _begin(store, meeting.rank, meeting.size)


def _begin(store: dist.Store, rank: int, size: int) -> None:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)
