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

from .base import Backend, BackendOptions

GROUP = "tpcore.backends"
BUILTIN = {
    "simulate": "backends.builtin:simulate",
    "cpu": "backends.builtin:cpu",
    "torch": "backends.builtin:torch",
    "cuda": "backends.cuda:backend",
    "rocm": "backends.rocm:backend",
    "xpu": "backends.xpu:backend",
    "npu": "backends.npu:backend",
    "hpu": "backends.hpu:backend",
}
"""Name → where the function lies that makes the backend."""
_DEFAULT = BackendOptions()


def get(name: str, options: BackendOptions = _DEFAULT) -> Backend:
    """The backend called `name`, which can run here, as `options` say.

    Raises:
        BackendUnavailable: it is unknown, not installed, or cannot run on this machine.
        PlanError: it has no use for one of the options.
    """
    backend = _load().get(name)
    if backend is None:
        raise BackendUnavailable(
            f"backend '{name}' is unknown. A plug-in would register it under the entry-point group "
            f"'{GROUP}'. {_here()}"
        )
    if backend.configure is None:
        options.check_only(name)
    else:
        backend = backend.configure(options)
    found = backend.probe()
    if not found.ok:
        raise BackendUnavailable(
            f"backend '{name}' is not available: {found.reason}. {found.hint} {_here()}"
        )
    return backend


def _here() -> str:
    return f"Available here: {', '.join(available())}."


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
