"""The layers graph <- backends <- tpcore; heavy libraries load only in their wrappers, on use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("graph", "backends", "tpcore")
HEAVY = {"torch", "onnxruntime", "mpi4py"}

BANNED = {
    "graph": {"backends", "tpcore", "tests", "bench", *HEAVY},
    "backends": {"tpcore", "tests", "bench"},
    "tpcore": {"tests", "bench", *HEAVY},
}
WRAPPERS = {
    "torch": ("backends/comm_torch.py", "backends/torch_groups.py", "backends/exec_torch"),
    "onnxruntime": ("backends/exec_ort.py",),
    "mpi4py": ("backends/comm_mpi.py",),
}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def sources(package: str) -> list[Path]:
    """Every Python file of a package."""
    return sorted((ROOT / package).rglob("*.py"))


ALL_SOURCES = [path for package in PACKAGES for path in sources(package)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, at any depth of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, str(node.module)


def forbidden_imports(path: Path) -> list[str]:
    """Imports that cross a layer, or load a library outside the file that wraps it."""
    file = path.relative_to(ROOT).as_posix()
    package = file.split("/")[0]
    found = []
    for line, module in imported(parse(path)):
        top = module.split(".")[0]
        wrapped = top in WRAPPERS and not file.startswith(WRAPPERS[top])
        if top in BANNED[package] or wrapped:
            found.append(f"{file}:{line} imports {module}")
    return found


def unsafe_uses(tree: ast.AST) -> list[str]:
    """Ways to run code that came with data: pickle and its kin, eval, exec, torch.load."""
    found = [
        f"line {line}: {module}"
        for line, module in imported(tree)
        if module.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        allows_pickle = any(
            keyword.arg == "allow_pickle"
            and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            for keyword in node.keywords
        )
        if name in UNSAFE_CALLS or name == "torch.load" or allows_pickle:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", ALL_SOURCES, ids=relative)
def test_imports_follow_the_layers(path: Path) -> None:
    assert not forbidden_imports(path)


@pytest.mark.parametrize("path", ALL_SOURCES, ids=relative)
def test_no_code_comes_with_data(path: Path) -> None:
    assert not unsafe_uses(parse(path))


@pytest.mark.parametrize("module", ["graph", "backends", "tpcore", "tpcore.cli"])
def test_import_loads_no_heavy_library(module: str) -> None:
    assert heavy_after_importing([module]) == set()


def test_no_module_of_graph_or_tpcore_loads_a_heavy_library() -> None:
    names = [module_name(path) for package in ("graph", "tpcore") for path in sources(package)]
    assert heavy_after_importing(names) == set()


def heavy_after_importing(modules: list[str]) -> set[str]:
    """The heavy libraries that a new interpreter holds after importing `modules`."""
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return HEAVY & set(result.stdout.split())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
    ],
)
def test_unsafe_code_is_found(code: str) -> None:
    assert unsafe_uses(ast.parse(code))


@pytest.mark.parametrize("code", ["numpy.load(path, allow_pickle=False)", "model.eval()", "x = 1"])
def test_safe_code_is_not_reported(code: str) -> None:
    assert not unsafe_uses(ast.parse(code))
