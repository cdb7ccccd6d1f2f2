"""One model on several numbers of ranks: memory, exchange, time, and whether it is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graph.errors import PlanError
from tpcore.manifest import MAIN
from tpcore.partition import Options, plan_models, shard_plan
from tpcore.plan import AUTO, Plan
from tpcore.planner.memory import NOTHING_HELD, MemoryUse
from tpcore.report import comm_bytes, count_collectives
from tpcore.units import human_bytes, human_seconds

UNLIMITED = 1 << 62
FASTER, SLOWER = 1.1, 0.95
"""Speed-ups from which on more ranks are called faster, and below which slower, than one."""


@dataclass(frozen=True)
class TableRow:
    """One program on one number of ranks."""

    ranks: int
    program: str
    memory: MemoryUse
    collectives: dict[str, int]
    sent_bytes: int
    """What a rank sends per run at the least, whatever the algorithm of a collective."""
    compute_seconds: float
    exchange_seconds: float
    speed_up: float
    """Over one rank."""
    problem: str = ""
    """Why there is no plan."""

    @property
    def seconds(self) -> float:
        """Predicted time of one run."""
        return self.compute_seconds + self.exchange_seconds

    @property
    def verdict(self) -> str:
        """Whether so many ranks are worth it, in words."""
        if self.problem:
            return "cannot be done"
        if self.ranks == 1:
            return "no exchange"
        share = f"exchange is {self.exchange_seconds / self.seconds:.0%} of the time"
        if self.speed_up >= FASTER:
            return f"faster, {self.speed_up / self.ranks:.0%} of ideal; {share}"
        if self.speed_up >= SLOWER:
            return f"no faster, for its memory only; {share}"
        return f"slower, for its memory only; {share}"

    def to_json(self) -> dict[str, Any]:
        """The row as one JSON object."""
        fields = asdict(self) | {"memory": self.memory.to_json()}
        return fields | {"seconds": self.seconds, "verdict": self.verdict}


def rows_of(path: Path, options: Options, ranks: Sequence[int]) -> list[TableRow]:
    """One row per number of ranks and program; where there is no plan the row says why.

    Raises:
        PlanError: even one rank has no plan for another reason than memory.
    """
    whole = replace(options, tp=1, memory=UNLIMITED, plan=AUTO, pins={})
    alone = {plan.work.name: plan.choices.seconds for plan in plan_models(path, whole)}
    rows: list[TableRow] = []
    for count in ranks:
        wanted = replace(options, tp=count)
        try:
            plans = plan_models(path, wanted)
        except PlanError as error:
            rows.append(TableRow(count, MAIN, NOTHING_HELD, {}, 0, 0.0, 0.0, 0.0, str(error)))
            continue
        rows += [_row(plan, wanted, alone[plan.work.name]) for plan in plans]
    return rows


def _row(plan: Plan, options: Options, alone: float) -> TableRow:
    choices, memory = plan.choices, plan.memory
    sharded = shard_plan(plan, options)
    return TableRow(
        plan.mesh.size,
        plan.work.name,
        memory,
        count_collectives(sharded.model),
        comm_bytes(sharded),
        choices.seconds - choices.exchange_seconds,
        choices.exchange_seconds,
        alone / choices.seconds if choices.seconds else 1.0,
    )


def table_text(rows: Sequence[TableRow], budget: int | None) -> str:
    """The rows for a terminal, and a sentence on which to choose."""
    joint = len({row.program for row in rows if not row.problem}) > 1
    lines = [_header(joint)]
    for row in rows:
        lines.append(f"{row.ranks:>3}  {row.problem}" if row.problem else _line(row, joint))
    return "\n".join([*lines, "", advice(rows, budget)])


def _header(joint: bool) -> str:
    program = f"  {'program':8}" if joint else ""
    return (
        f"{'tp':>3}{program}{'weights':>11}{'cache':>11}{'peak act.':>11}{'sent':>11}"
        f"{'compute':>10}{'exchange':>10}{'total':>10}{'speed':>7}  collectives; verdict"
    )


def _line(row: TableRow, joint: bool) -> str:
    program = f"  {row.program:8}" if joint else ""
    sizes = (row.memory.weights, row.memory.states, row.memory.activations, row.sent_bytes)
    times = (row.compute_seconds, row.exchange_seconds, row.seconds)
    collectives = ", ".join(f"{n} {op}" for op, n in sorted(row.collectives.items())) or "none"
    return (
        f"{row.ranks:>3}{program}"
        + "".join(f"{human_bytes(size):>11}" for size in sizes)
        + "".join(f"{human_seconds(time):>10}" for time in times)
        + f"{row.speed_up:>6.2f}×  {collectives}; {row.verdict}"
    )


def advice(rows: Sequence[TableRow], budget: int | None) -> str:
    """Which number of ranks to take, and when."""
    possible = [row for row in rows if not row.problem]
    if not possible:
        return "None of these numbers of ranks is possible."
    speed = {
        count: min(row.speed_up for row in possible if row.ranks == count)
        for count in dict.fromkeys(row.ranks for row in possible)
    }
    fastest, least = max(speed, key=lambda count: speed[count]), min(speed)
    within = f" within {human_bytes(budget)} per rank" if budget else ""
    if fastest == least:
        slow = "" if speed[least] >= SLOWER else ", though slower than one rank would be"
        return (
            f"tp={least} is the fastest of those possible{within}{slow}; more ranks hold less each."
        )
    return (
        f"tp={fastest} is the fastest{within}, tp={least} the fewest ranks"
        " (predicted for the sizes given; symbolic dims count as 1 unless --shape says otherwise)."
    )
