"""Backends by name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from backends import registry
from backends.base import Availability, Backend
from backends.builtin import simulate
from graph.errors import BackendUnavailable


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


def test_a_reserved_name_says_that_it_is_not_there_yet() -> None:
    with pytest.raises(BackendUnavailable, match="'cuda' is not available.*not part of this vers"):
        registry.get("cuda")


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
        assert registry.available() == ["simulate", "cpu"]
    texts = [str(warning.message) for warning in caught]
    assert any("'broken' (no_such_module:make) is skipped" in text for text in texts)
    assert any("it made a str where a Backend was expected" in text for text in texts)
