"""Import onnx_ir without sympy.

onnx_ir loads sympy for arithmetic on symbolic dims, which nothing here asks it for: `graph.dims`
has its own. That is 33 MiB in every rank and half of the time a command takes to start. So while
onnx_ir is imported, wherever that is, modules stand in for sympy and for the one that uses it;
whoever does ask gets the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_PACKAGE = "onnx_ir"
_LEFT_OUT = ("sympy", "onnx_ir._symbolic_shapes")


class _StandIn(ModuleType):
    """Stands for a module, which it imports when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


class _Finder:
    """Finds onnx_ir as ever, once, and has it import stand-ins."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of onnx_ir; None for others."""
        if name != _PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with _stand_ins():
                    run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _stand_ins() -> Iterator[None]:
    """While inside, who imports what is left out gets a module in its place."""
    added = {name: _StandIn(name) for name in _LEFT_OUT if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def install() -> None:
    """Leave sympy out when onnx_ir is imported, unless it has been."""
    if _PACKAGE not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
