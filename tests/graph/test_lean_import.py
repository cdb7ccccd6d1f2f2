"""onnx_ir comes without sympy, and with it as soon as somebody asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def printed(code: str) -> list[str]:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "module", ["graph.reader", "backends.run", "tpcore.bundle", "tpcore.generate_command"]
)
def test_ranks_load_neither_sympy_nor_the_interpreter_of_onnx(module: str) -> None:
    code = f"import sys, {module}; print(*({{'sympy', 'onnx.reference'}} & {{*sys.modules}}))"
    assert printed(code) == []


def test_who_imports_onnx_ir_first_has_sympy_as_ever() -> None:
    assert printed("import sys, onnx_ir, graph; print('sympy' in sys.modules)") == ["True"]


def test_arithmetic_on_dims_works_as_ever() -> None:
    code = """
import sys, graph, onnx_ir
dim = onnx_ir.SymbolicDim("n")
print("sympy" in sys.modules)
print(str(dim * 2 + 1).replace(" ", ""), "sympy" in sys.modules)
import sympy
print(str(onnx_ir.SymbolicDim(sympy.Symbol("m") + 2)).replace(" ", ""))
print(type(sys.modules["sympy"]).__name__, onnx_ir._symbolic_shapes.__name__)
"""
    assert printed(code) == [
        "False", "2*n+1", "True", "m+2", "module", "onnx_ir._symbolic_shapes",
    ]  # fmt: skip
