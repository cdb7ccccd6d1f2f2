"""What viewers of Chrome's trace format need of a trace, and its events per rank.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

Event = dict[str, Any]
NEEDED: dict[str, dict[str, Any]] = {
    "X": {"name": str, "cat": str, "ts": (int, float), "dur": (int, float), "pid": int, "tid": int},
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
}
"""Phase of an event (complete, metadata) -> what it must have, and of which type."""
METADATA = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
"""Name of a metadata event -> what its args must have."""


def read_trace(path: Path, ranks: int) -> list[list[Event]]:
    """The complete events of every rank, in the file's order; all else of the format is checked."""
    trace = json.loads(path.read_text())
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    for event in events:
        check_event(event)
    names = [event for event in events if event["name"] == "thread_name"]
    assert [event["args"]["name"] for event in names] == [f"rank {rank}" for rank in range(ranks)]
    tracks = [(event["pid"], event["tid"]) for event in names]
    assert len(set(tracks)) == ranks and len({pid for pid, _ in tracks}) == 1
    assert {(event["pid"], event["tid"]) for event in events} == set(tracks)
    complete = [event for event in events if event["ph"] == "X"]
    found = [[e for e in complete if (e["pid"], e["tid"]) == track] for track in tracks]
    for mine in found:
        check_nesting(mine)
    return found


def check_event(event: Event) -> None:
    """An event has what its phase needs, at no negative time."""
    needed = NEEDED[event["ph"]]
    assert set(event) == {"ph", *needed}, event
    assert all(isinstance(event[key], kind) for key, kind in needed.items()), event
    if event["ph"] == "M":
        assert set(event["args"]) == {METADATA[event["name"]]}
    else:
        assert event["ts"] >= 0 and event["dur"] >= 0, event


def check_nesting(events: list[Event]) -> None:
    """Events of one track come as they begin, and lie inside each other or apart."""
    assert all(before["ts"] <= after["ts"] for before, after in pairwise(events))
    open_until: list[int] = []
    for event in events:
        began, ended = nanoseconds(event)
        while open_until and open_until[-1] <= began:
            open_until.pop()
        assert not open_until or ended <= open_until[-1], event
        open_until.append(ended)


def nanoseconds(event: Event) -> tuple[int, int]:
    """When an event begins and ends, free of the rounding of floats."""
    began = round(1000 * event["ts"])
    return began, began + round(1000 * event["dur"])


def seconds(events: list[Event], *kinds: str, name: str = "") -> list[float]:
    """How long events of these kinds took, whose names begin so."""
    chosen = [e for e in events if e["cat"] in kinds and e["name"].startswith(name)]
    return [event["dur"] / 1e6 for event in chosen]
