"""Backends by name: built in, and whatever registers under the entry-point group `tpcore.backends`.

An entry point names a function without arguments that returns a `backends.base.Backend`. It is
imported on first use, so a name costs nothing until somebody asks for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from graph.errors import BackendUnavailable

from .base import Backend

GROUP = "tpcore.backends"
BUILTIN = {"simulate": "backends.builtin:simulate", "cpu": "backends.builtin:cpu"}
"""Name → where the function lies that makes the backend."""
RESERVED = {
    "torch": "torch on CPU with gloo",
    "cuda": "torch on NVIDIA with NCCL",
    "rocm": "torch on AMD with RCCL",
}
"""Names that this version does not fill; a plug-in may."""


def get(name: str) -> Backend:
    """The backend called `name`, which can run here.

    Raises:
        BackendUnavailable: it is unknown, not installed, or cannot run on this machine.
    """
    backend = _load().get(name)
    here = f"Available here: {', '.join(available())}."
    if backend is None and name in RESERVED:
        raise BackendUnavailable(
            f"backend '{name}' is not available: {RESERVED[name]} is not part of this version yet. "
            f"{here}"
        )
    if backend is None:
        raise BackendUnavailable(
            f"backend '{name}' is unknown. A plug-in would register it under the entry-point group "
            f"'{GROUP}'. {here}"
        )
    found = backend.probe()
    if not found.ok:
        raise BackendUnavailable(
            f"backend '{name}' is not available: {found.reason}. {found.hint} {here}"
        )
    return backend


def all_backends() -> dict[str, Backend]:
    """Every known backend, whether it can run here or not (for `tpcore doctor`)."""
    return dict(_load())


def available() -> list[str]:
    """Names of the backends that can run here."""
    return [name for name, backend in _load().items() if backend.probe().ok]


@cache
def _load() -> dict[str, Backend]:
    """Built-in backends, then plug-ins by name; a broken one is skipped with a warning."""
    backends = {name: _resolve(path)() for name, path in BUILTIN.items()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        backend = _load_plugin(point)
        if backend is not None and point.name not in backends:
            backends[point.name] = backend
    return backends


def _load_plugin(point: EntryPoint) -> Backend | None:
    try:
        backend = point.load()()
        if not isinstance(backend, Backend):
            raise TypeError(f"it made a {type(backend).__name__} where a Backend was expected")
    except Exception as error:
        warnings.warn(
            f"backend plug-in '{point.name}' ({point.value}) is skipped: {error}", stacklevel=2
        )
        return None
    return backend


def _resolve(path: str) -> Callable[[], Backend]:
    module, _, name = path.partition(":")
    factory: Callable[[], Backend] = getattr(import_module(module), name)
    return factory
