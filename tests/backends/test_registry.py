"""Backends by name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from backends import registry
from backends.base import Availability, Backend, BackendOptions
from backends.builtin import simulate
from backends.launcher import find_launcher
from backends.spawn import OwnLauncher
from graph.errors import BackendUnavailable, PlanError


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    registry._load.cache_clear()
    yield
    registry._load.cache_clear()


def plugins(monkeypatch: pytest.MonkeyPatch, **paths: str) -> None:
    points = [EntryPoint(name, path, registry.GROUP) for name, path in paths.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def own() -> Backend:
    """A third party's backend: the parts of another under a name of its own."""
    parts = simulate()
    return Backend("own", "a test", lambda: Availability(True), parts.executor, None)


def absent() -> Backend:
    return Backend(
        "absent", "a test", lambda: Availability(False, "the card is missing", "Plug it in."),
        simulate().executor, None,
    )  # fmt: skip


def test_the_built_in_backends_run_here() -> None:
    assert registry.available()[:2] == ["simulate", "cpu"]
    assert registry.get("simulate").communicator is None
    assert list(registry.all_backends())[:8] == [
        *("simulate", "cpu", "torch", "cuda", "rocm", "xpu", "npu", "hpu"),
    ]


def test_an_unknown_name_lists_the_right_ones() -> None:
    with pytest.raises(
        BackendUnavailable, match="'cpuu' is unknown.*Available here: simulate, cpu"
    ):
        registry.get("cpuu")


def test_a_plug_in_needs_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, own="tests.backends.test_registry:own")
    assert registry.get("own").name == "own"
    assert "own" in registry.available()


def test_an_unavailable_backend_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, absent="tests.backends.test_registry:absent")
    with pytest.raises(
        BackendUnavailable, match=r"'absent' is not available: the card is missing. Plug it in. Av"
    ):
        registry.get("absent")


def test_a_broken_plug_in_is_skipped_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, broken="no_such_module:make", text="os:getcwd")
    with pytest.warns(UserWarning) as caught:
        assert registry.available()[:2] == ["simulate", "cpu"]
    texts = [str(warning.message) for warning in caught]
    assert any("'broken' (no_such_module:make) is skipped" in text for text in texts)
    assert any("it made a str where a Backend was expected" in text for text in texts)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("simulate", BackendOptions(collectives="gloo"), "--collectives: it takes none"),
        ("cpu", BackendOptions("bf16", True), "--dtype and --compile: it takes --collectives. Le"),
    ],
)
def test_options_that_a_backend_has_no_use_for(
    name: str, options: BackendOptions, text: str
) -> None:
    with pytest.raises(PlanError, match=f"backend '{name}' does not take .*{text}"):
        registry.get(name, options)


def test_a_plug_in_without_options_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, own="tests.backends.test_registry:own")
    with pytest.raises(PlanError, match="backend 'own' does not take --compile: it takes none"):
        registry.get("own", BackendOptions(compile=True))


def test_collectives_choose_the_launcher() -> None:
    assert registry.get("cpu").launcher is find_launcher
    gloo = registry.get("cpu", BackendOptions(collectives="gloo"))
    assert gloo.launcher is OwnLauncher and gloo.name == "cpu"


@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_an_unknown_way_to_exchange_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="cannot exchange by 'carrier'. Choose one of mpi, gloo"):
        registry.get(name, BackendOptions(collectives="carrier"))
