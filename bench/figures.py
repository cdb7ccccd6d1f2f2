"""The figures of one peer in one case, and the table of all of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.cases import Case
from bench.peer import Peer
from tpcore.units import human_bytes

Figures = dict[str, Any]
SAME = {"llama-int4": 2e-2}
"""Largest difference of logits, of their scale, with which a peer has computed the same; with int4
weights activations are rounded too, elsewhere in every library."""
SAME_FP32 = 1e-3


@dataclass
class Rounds:
    """What a peer's turns have found so far."""

    peer: Peer
    turns: list[list[dict[str, Any]]] = field(default_factory=list)
    """Per round what each of its processes left."""
    logits: np.ndarray | None = None
    reason: str = ""
    """Why it has no row, or why its row ends early."""


def seconds_of(turn: Sequence[Mapping[str, Any]]) -> list[float]:
    """Per run the seconds of its slowest process."""
    return [max(run) for run in zip(*(process["seconds"] for process in turn), strict=True)]


def figures(rounds: Rounds, case: Case, expected: np.ndarray) -> Figures:
    """What is kept of a peer that took at least one turn."""
    runs = [seconds_of(turn) for turn in rounds.turns]
    every = [seconds for run in runs for seconds in run]
    found: Figures = {
        "title": rounds.peer.title,
        "min_ms": min(every) * 1e3,
        "median_ms": statistics.median(every) * 1e3,
        "round_ms": [statistics.median(run) * 1e3 for run in runs],
        "load_seconds": _median_of_slowest(rounds, "load_seconds"),
        "max_abs_diff": float(np.abs(_logits(rounds) - expected).max()),
        "max_rel_diff": float(np.abs(_logits(rounds) - expected).max() / np.abs(expected).max()),
        "own_weights": case.form in rounds.peer.own_weights,
        "versions": rounds.peer.versions(),
    }
    for name in ("held_bytes", "peak_bytes", "peak_rss_bytes"):
        found[f"{name}_per_rank"] = [
            int(statistics.median(turn[rank][name] for turn in rounds.turns))
            for rank in range(rounds.peer.processes)
        ]
    if not case.is_decode and not case.is_image:
        found["tokens_per_second"] = case.tokens / (found["median_ms"] / 1e3)
    if "exchange_seconds" in rounds.turns[0][0]:
        found |= _ours_alone(rounds)
    return found


def _logits(rounds: Rounds) -> np.ndarray:
    assert rounds.logits is not None
    return rounds.logits


def _median_of_slowest(rounds: Rounds, name: str) -> float:
    slowest = [max(float(process[name]) for process in turn) for turn in rounds.turns]
    return statistics.median(slowest)


def _ours_alone(rounds: Rounds) -> Figures:
    """Shares of a run: in exchanges, and not in onnxruntime."""
    runs = [
        run
        for turn in rounds.turns
        for process in turn
        for run in zip(process["seconds"], process["exchange_seconds"], process["ort_seconds"])
    ]
    return {
        "exchange": statistics.median(exchange / whole for whole, exchange, _ in runs),
        "not_ort": statistics.median(1 - ort / whole for whole, _, ort in runs),
    }


def add_ratios(rows: Mapping[str, Figures], ours: str) -> None:
    """To every row how many times our time it takes: the median over the rounds both have."""
    if ours in rows:
        for row in rows.values():
            row["times_ours"] = statistics.median(
                theirs / own for theirs, own in zip(row["round_ms"], rows[ours]["round_ms"])
            )


def split_figures(report: Mapping[str, Any], case: Case) -> Figures:
    """Of our split: collectives and bytes on the wire, against Megatron-LM's."""
    ranks = report["world_size"]
    return {
        "collectives": report["collectives"],
        "least_collectives": case.least_collectives(),
        "sent_bytes_per_rank": report["comm_bytes_per_rank"],
        "least_sent_bytes_per_rank": case.least_bytes(ranks),
        "split_fraction": report["split_fraction"],
        "weight_bytes_per_rank": report["weight_bytes_per_rank"],
        "shard_seconds": report["shard_seconds"],
    }


# --- for people -----------------------------------------------------------------------------------


def print_table(
    case: Case, rows: Mapping[str, Figures], skipped: Mapping[str, str], load: float
) -> None:
    """Print one case."""
    unit = "decode step" if case.is_decode else "image" if case.is_image else "prompt"
    print(f"\n{case.name}: {case.layers} layers, one {unit} of {_work(case)}; load {load:.1f}")
    print(
        f"  {'':44}{'min ms':>9}{'median':>9}{'tokens/s':>10}{'× ours':>8}"
        f"{'held/process':>14}{'peak':>11}{'load s':>8}{'logits off':>12}"
    )
    for row in rows.values():
        print(_row_text(case, row))
    for name, reason in skipped.items():
        print(f"  {name:44}{'stopped' if name in rows else 'skipped'}: {reason}")


def _work(case: Case) -> str:
    if case.is_decode:
        return f"{case.tokens} token on a cache of {case.past}"
    return f"{case.tokens} tokens"


def _row_text(case: Case, row: Figures) -> str:
    rate = f"{row['tokens_per_second']:.0f}" if "tokens_per_second" in row else ""
    ratio = f"{row['times_ours']:.2f}" if "times_ours" in row else ""
    same = row["max_rel_diff"] <= SAME.get(case.form, SAME_FP32)
    mark = "  own weights" if row["own_weights"] else "" if same else "  OTHER LOGITS"
    return (
        f"  {row['title']:44}{row['min_ms']:>9.1f}{row['median_ms']:>9.1f}{rate:>10}{ratio:>8}"
        f"{human_bytes(max(row['held_bytes_per_rank'])):>14}"
        f"{human_bytes(max(row['peak_bytes_per_rank'])):>11}{row['load_seconds']:>8.1f}"
        f"{row['max_rel_diff']:>12.1e}{mark}"
    )


def print_split(row: Figures) -> None:
    """Print what only ours tells."""
    split, name = row["split"], row["title"].partition(",")[0]
    count = sum(split["collectives"].values())
    ops = ", ".join(f"{number} {op}" for op, number in sorted(split["collectives"].items()))
    sent, least = split["sent_bytes_per_rank"], split["least_sent_bytes_per_rank"]
    print(
        f"  {name}: {count} collectives ({ops}), {human_bytes(sent)} sent per rank;"
        f" Megatron-LM's split: {split['least_collectives']} and {human_bytes(least)}.\n"
        f"    {split['split_fraction']:.1%} of the weights split in {split['shard_seconds']:.1f} s;"
        f" of a run {row['exchange']:.1%} in exchanges, {row['not_ort']:.1%} not in onnxruntime"
    )
