"""Topologies as JSON: those shipped with tpcore, by name, and those that `tpcore calibrate` writes.

    {"version": 1, "name": "h100-nvlink-ndr", "device": "h100-sxm",
     "links": [{"link": "nvlink4", "ranks": 8}, {"link": "infiniband-ndr"}]}

A device or link is the name of a shipped one or stands there in full. Every number of it has its
`sources` entry; `efficiency` is what is reached of a peak, with a source of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from graph.errors import PlanError
from tpcore.planner.topology import COLLECTIVES, Device, Link, Points, Rates, Topology
from tpcore.reshard import ReshardKind

TOPOLOGY_VERSION = 1
DEFAULT_TOPOLOGY = "cpu"
KINDS = {kind.value: kind for kind in COLLECTIVES}
_ASSETS = files("tpcore") / "assets"


class _Malformed(ValueError):
    """What is wrong with a file, as half a sentence."""


def topology_names() -> list[str]:
    """Names of the shipped topologies."""
    found = (_ASSETS / "topologies").iterdir()
    return sorted(entry.name.removesuffix(".json") for entry in found)


def load_topology(name_or_path: str) -> Topology:
    """A shipped topology by name, or one from a JSON file.

    Raises:
        PlanError: there is none of this name, or the file is no topology.
    """
    if name_or_path in topology_names():
        return parse_topology(_shipped("topologies", name_or_path))
    path = Path(name_or_path)
    if path.is_dir():
        raise PlanError(f"topology '{path}' is a directory. Give a file of tpcore calibrate.")
    if not path.is_file():
        near = get_close_matches(name_or_path, topology_names(), 1, 0.0)[0]
        raise PlanError(
            f"topology '{name_or_path}' is neither a file nor a known name. Nearest: '{near}'. "
            f"Known: {', '.join(topology_names())}; tpcore calibrate writes a file for a machine."
        )
    try:
        return parse_topology(json.loads(path.read_text()))
    except OSError as error:
        raise PlanError(f"topology '{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"'{path}' is not a topology file ({error}). Write one with 'tpcore calibrate -o'."
        ) from error


def parse_topology(data: Any) -> Topology:
    """Check plain data and make a topology of it. Raises ValueError with what is wrong."""
    fields = _Fields(data, "the topology", {"version", "name", "device", "links"})
    if fields.get("version", int) != TOPOLOGY_VERSION:
        raise _Malformed(f"its version is not {TOPOLOGY_VERSION}")
    links = [_link(entry) for entry in fields.get("links", list)]
    if not links:
        raise _Malformed("it has no link")
    if any(link.ranks is None for link in links[:-1]):
        raise _Malformed("a link inside of others joins any number of ranks; only the last may")
    device = _device(_resolve("devices", fields.data["device"]))
    return Topology(fields.get("name", str), device, tuple(links))


def topology_to_json(topology: Topology, source: str) -> dict[str, Any]:
    """Plain data that `load_topology` reads; `source` says where all its numbers come from."""
    device = topology.device
    rates = {
        str(count): {
            "flops_per_second": dict(rate.flops_per_second),
            "memory_bytes_per_second": rate.memory_bytes_per_second,
            "cache_bytes_per_second": rate.cache_bytes_per_second,
            "op_seconds": rate.op_seconds,
        }
        for count, rate in device.rates.items()
    }
    sources = dict.fromkeys(("memory_bytes", "cache_bytes", *_RATES), source)
    return {
        "version": TOPOLOGY_VERSION,
        "name": topology.name,
        "device": {
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "cache_bytes": device.cache_bytes,
            "rates": rates,
            "sources": sources,
        },
        "links": [_link_to_json(link, source) for link in topology.links],
    }


def _link_to_json(link: Link, source: str) -> dict[str, Any]:
    measured = {
        kind.value: {str(ranks): [list(point) for point in points] for ranks, points in by.items()}
        for kind, by in link.measured.items()
    }
    whole = {
        "name": link.name,
        "bytes_per_second": link.bytes_per_second,
        "alpha_seconds": {kind.value: alpha for kind, alpha in link.alpha_seconds.items()},
        "hop_seconds": link.hop_seconds,
        "measured": measured,
        "sources": dict.fromkeys((*_LINK_NUMBERS, "measured"), source),
    }
    return {"link": whole} if link.ranks is None else {"link": whole, "ranks": link.ranks}


def _shipped(kind: str, name: str) -> Any:
    return json.loads((_ASSETS / kind / f"{name}.json").read_text())


def _resolve(kind: str, value: Any) -> Any:
    """The data of a device or link that is given by name or in full."""
    if not isinstance(value, str):
        return value
    known = [entry.name.removesuffix(".json") for entry in (_ASSETS / kind).iterdir()]
    if value not in known:
        raise _Malformed(f"'{value}' is none of the {kind} {', '.join(sorted(known))}")
    return _shipped(kind, value)


_RATES = ("flops_per_second", "memory_bytes_per_second", "cache_bytes_per_second", "op_seconds")
_LINK_NUMBERS = ("bytes_per_second", "alpha_seconds", "hop_seconds")


def _device(data: Any) -> Device:
    allowed = {"name", "memory_bytes", "cache_bytes", "rates", "efficiency", "sources"}
    fields = _Fields(data, "the device", allowed, optional={"efficiency"})
    reached = fields.efficiency("flops", "memory")
    rates = {}
    for count, entry in fields.get("rates", dict).items():
        rate = _Fields(entry, f"the rates of {count} ranks", set(_RATES))
        if not count.isdigit() or not int(count):
            raise _Malformed(f"'{count}' in its rates is no number of ranks")
        flops = rate.numbers("flops_per_second")
        rates[int(count)] = Rates(
            {dtype: value * reached["flops"] for dtype, value in flops.items()},
            rate.number("memory_bytes_per_second") * reached["memory"],
            rate.number("cache_bytes_per_second") * reached["memory"],
            rate.number("op_seconds", least=0.0),
        )
    if not rates:
        raise _Malformed("the device has no rates")
    fields.check_sources({"memory_bytes", "cache_bytes", *_RATES})
    memory, cache = fields.number("memory_bytes"), fields.number("cache_bytes", least=0.0)
    return Device(fields.get("name", str), memory, cache, rates)


def _link(entry: Any) -> Link:
    place = _Fields(entry, "a link", {"link", "ranks"}, optional={"ranks"})
    ranks = place.get("ranks", int) if "ranks" in place.data else None
    if ranks is not None and ranks < 1:
        raise _Malformed(f"a link for {ranks} ranks joins nobody")
    allowed = {"name", *_LINK_NUMBERS, "measured", "efficiency", "sources"}
    data = _resolve("links", place.data["link"])
    fields = _Fields(data, "the link", allowed, optional={"measured", "efficiency"})
    alphas = fields.numbers("alpha_seconds", least=0.0)
    if set(alphas) != set(KINDS):
        raise _Malformed(f"the link's alpha_seconds must name {', '.join(KINDS)}")
    measured = fields.get("measured", dict) if "measured" in fields.data else {}
    fields.check_sources({*_LINK_NUMBERS, *(["measured"] if measured else [])})
    return Link(
        fields.get("name", str),
        ranks,
        fields.number("bytes_per_second") * fields.efficiency("bytes")["bytes"],
        {KINDS[name]: alpha for name, alpha in alphas.items()},
        fields.number("hop_seconds", least=0.0),
        _measured(measured),
    )


def _measured(data: Mapping[str, Any]) -> dict[ReshardKind, dict[int, Points]]:
    found: dict[ReshardKind, dict[int, Points]] = {}
    for name, by_ranks in data.items():
        if name not in KINDS or not isinstance(by_ranks, dict):
            raise _Malformed(f"'{name}' in its measured times is none of {', '.join(KINDS)}")
        found[KINDS[name]] = {}
        for ranks, points in by_ranks.items():
            if not ranks.isdigit() or int(ranks) < 2 or not _rises(points):
                raise _Malformed(
                    f"the times of {name} on {ranks} ranks are no list of [bytes, seconds] by "
                    "rising bytes, all above 0"
                )
            found[KINDS[name]][int(ranks)] = tuple((float(x), float(y)) for x, y in points)
    return found


def _rises(points: Any) -> bool:
    if not isinstance(points, list) or not points:
        return False
    pairs = [p for p in points if isinstance(p, list) and len(p) == 2 and all(map(_is_number, p))]
    sizes = [pair[0] for pair in pairs]
    positive = all(x > 0 and y > 0 for x, y in pairs)
    return len(pairs) == len(points) and positive and sizes == sorted(set(sizes))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


class _Fields:
    """A JSON object that must have exactly the fields it may have."""

    def __init__(
        self, data: Any, what: str, allowed: set[str], optional: set[str] | None = None
    ) -> None:
        if not isinstance(data, dict):
            raise _Malformed(f"{what} is no object")
        for name in sorted(set(data) - allowed):
            raise _Malformed(f"{what} has a field '{name}', which means nothing here")
        for name in sorted(allowed - (optional or set()) - set(data)):
            raise _Malformed(f"{what} has no field '{name}'")
        self.data: dict[str, Any] = data
        self.what = what

    def get(self, name: str, kind: type) -> Any:
        """A field of the given type."""
        value = self.data[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _Malformed(f"'{name}' of {self.what} is no {kind.__name__}")
        return value

    def number(self, name: str, least: float | None = None) -> float:
        """A number above 0, or from `least` on."""
        return self._number(self.data[name], name, least)

    def numbers(self, name: str, least: float | None = None) -> dict[str, float]:
        """An object of at least one number."""
        values = self.get(name, dict)
        if not values:
            raise _Malformed(f"'{name}' of {self.what} is empty")
        return {key: self._number(value, f"{name}.{key}", least) for key, value in values.items()}

    def _number(self, value: Any, name: str, least: float | None) -> float:
        if not _is_number(value) or (value <= 0 if least is None else value < least):
            bound = "above 0" if least is None else f"from {least:g} on"
            raise _Malformed(f"'{name}' of {self.what} is no number {bound}")
        return float(value)

    def efficiency(self, *names: str) -> dict[str, float]:
        """What is reached of each peak; 1 where nothing is said, as of what was measured."""
        if "efficiency" not in self.data:
            return dict.fromkeys(names, 1.0)
        given = self.numbers("efficiency")
        if set(given) != set(names) or max(given.values()) > 1:
            raise _Malformed(f"the efficiency of {self.what} must give {names}, each up to 1")
        return given

    def check_sources(self, names: set[str]) -> None:
        """Every number must say where it comes from."""
        sources = self.get("sources", dict)
        names = names | ({"efficiency"} if "efficiency" in self.data else set())
        for name in sorted(names):
            if not isinstance(sources.get(name), str) or not sources[name]:
                raise _Malformed(f"'{name}' of {self.what} has no source")
