"""How ranks meet through torch.distributed, and the process groups that they then exchange in.

Ranks of torchrun and of our own launcher meet here: by torchrun's store, or by a file in the
directory of the run. Ranks of an MPI launcher have met through MPI, which tells them where the
first of them listens.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from graph.errors import BackendUnavailable

from .base import Communicator
from .comm_torch import TorchCommunicator
from .placement import Placement, detect_environment

TIMEOUT = timedelta(days=1)
"""Of torch's own calls: the watcher ends a job sooner, and its message names the rank."""
STORE_FILE = "ranks.store"
MANY_RANKS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Lets NCCL and RCCL of new versions give several ranks one device."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Device:
    """A kind of device as torch knows it."""

    type: str
    """Name in `torch.device`, and of the module of torch that has `is_available`."""
    library: str
    """Name of its communication library in torch.distributed."""
    extensions: tuple[str, ...] = ()
    """Modules that bring it into torch."""


def meet_by_store(placement: Placement, run_dir: str | None) -> TorchCommunicator:
    """The gloo group of all ranks that torchrun or our own launcher started."""
    if not dist.is_initialized():
        if placement.launcher == "torchrun":
            store, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        else:
            rank, size = placement.rank, placement.size
            store = dist.FileStore(str(Path(run_dir or ".") / STORE_FILE), size)
        _begin(store, rank, size)
    return TorchCommunicator(dist.group.WORLD, _CPU)


def gloo_ranks(meeting: Communicator) -> Communicator:
    """The ranks exchange by gloo, through the host's memory."""
    if isinstance(meeting, TorchCommunicator):
        return meeting
    _begin_through(meeting)
    return TorchCommunicator(dist.group.WORLD, _CPU, meeting)


def device_ranks(kind: Device) -> Callable[[Communicator], Communicator]:
    """The ranks exchange between their devices.

    Raises BackendUnavailable, on use, if this process has no device of its own.
    """

    def joining(meeting: Communicator) -> Communicator:
        device = own_device(kind)
        if not dist.is_initialized():
            _begin_through(meeting)
        group = dist.new_group(backend=kind.library, timeout=TIMEOUT)
        return TorchCommunicator(group, device, meeting)

    return joining


def own_device(kind: Device) -> torch.device:
    """This process's device, made the current one. Raises BackendUnavailable."""
    for module in kind.extensions:
        import_module(module)
    torch_module = getattr(torch, kind.type, None)
    if torch_module is None or not torch_module.is_available():
        raise BackendUnavailable(
            f"torch {torch.__version__} finds no {kind.type} device. See tpcore doctor for what "
            "it needs, or choose another backend with --backend."
        )
    mine, count = detect_environment().local_rank, torch_module.device_count()
    if mine >= count and os.environ.get(MANY_RANKS) != "1":
        raise BackendUnavailable(
            f"rank {mine} of this host has no {kind.type} device of its own: there are {count}. "
            f"Start {count} ranks per host, let ranks share a device with {MANY_RANKS}=1 where "
            f"{kind.library} can, or exchange through the host with --collectives gloo."
        )
    device = torch.device(kind.type, mine % count)
    torch_module.set_device(device)
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
