"""`tpcore ops`: the table of all ops: rule, what may stay partial, what is whole and why."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from functools import partial
from typing import Any

from tpcore.ops import OPS
from tpcore.rules.proven import PROVEN
from tpcore.rules.spec import OpSpec
from tpcore.rules.whole import REWRITTEN_OPS, WHOLE_OPS

Key = tuple[str, str]


def ops_table() -> list[dict[str, Any]]:
    """One row per op that tpcore knows, by domain and name."""
    rows = [_rule_row(key, spec) for key, spec in OPS.items()]
    rows += [_plain_row(key, "whole", why) for key, why in WHOLE_OPS.items() if key not in OPS]
    rows += [_plain_row(key, "rewritten", why) for key, why in REWRITTEN_OPS.items()]
    return sorted(rows, key=lambda row: (row["domain"], row["op"]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of ops by domain and kind, and of the validator's cases."""
    domains = sorted({row["domain"] for row in rows})
    return {
        domain: {
            kind: sum(row["domain"] == domain and row["kind"] == kind for row in rows)
            for kind in ("rule", "rewritten", "whole")
        }
        for domain in domains
    } | {"validator_cases": sum(row.get("validator_cases", 0) for row in rows)}


def _named(key: Key) -> dict[str, str]:
    return {"domain": key[0] or "ai.onnx", "op": key[1]}


def _plain_row(key: Key, kind: str, reason: str) -> dict[str, Any]:
    return {**_named(key), "kind": kind, "reason": reason}


def _rule_row(key: Key, spec: OpSpec) -> dict[str, Any]:
    rule = example_rule(spec)
    return {
        **_named(key),
        "kind": "rule",
        "rule": rule,
        "sums": sorted(set(re.findall(r"(\w+)\+", rule))),
        "whole": sorted(set(re.findall(r"(\w+)!", rule))),
        "partial_operands": [list(operands) or "all" for operands in spec.linear],
        "local_attributes": dict(spec.attributes),
        "states": [list(pair) for pair in spec.states],
        "validator_cases": PROVEN.get(f"{key[0] or 'ai.onnx'}:{key[1]}", 0),
    }


def example_rule(spec: OpSpec) -> str:
    """The rule that the docstring of the op's rule maker shows, '' where it shows none."""
    maker: Any = spec.rule
    maker = maker.func if isinstance(maker, partial) else maker
    shown = re.search(r"`([^`]*->[^`]*)`", (inspect.getdoc(maker) or "").replace("\n", " "))
    return shown.group(1) if shown else ""


def ops_command(args: argparse.Namespace) -> int:
    """`tpcore ops`."""
    rows = ops_table()
    counts = summary(rows)
    if args.json:
        print(json.dumps({"summary": counts, "ops": rows}, indent=2))
        return 0
    for row in rows:
        text = row.get("reason") or row["rule"]
        cases = f"{row['validator_cases']:3} cases" if row["kind"] == "rule" else " " * 9
        print(f"{row['domain']:13} {row['op']:34} {row['kind']:9} {cases}  {text}")
    for domain, found in counts.items():
        if isinstance(found, dict):
            print(f"{domain}: " + ", ".join(f"{n} {kind}" for kind, n in found.items()))
    print(f"{counts['validator_cases']} cases of the validator, each on 2, 3 and 4 ranks")
    return 0
