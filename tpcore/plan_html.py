"""The table of `tpcore plan` as a page with two charts; it needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tpcore.plan_table import TableRow, advice, table_text
from tpcore.units import human_bytes, human_seconds

WIDTH, BAR, GAP, LABEL, RIGHT = 560, 26, 12, 130, 130
COMPUTE, EXCHANGE = "#3b6ea5", "#d98032"
WEIGHTS, CACHE, ACTIVATIONS = "#3b6ea5", "#6aa84f", "#b4a7d6"
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222 }}
pre {{ overflow-x: auto; font-size: 13px; background: #f6f6f4; padding: 1rem }}
svg text {{ font: 13px system-ui, sans-serif; fill: #222 }}
</style>
<h1>{title}</h1>
<p>{advice}</p>
<h2>Time per run</h2>{times}
<h2>Memory on the fullest rank</h2>{memory}
<h2>The figures</h2><pre>{table}</pre>
</html>
"""

Part = tuple[str, float, str]
"""What a piece of a bar is, its length, its color."""


def page(model: str, topology: str, rows: Sequence[TableRow]) -> str:
    """The page, as HTML."""
    possible = [row for row in rows if not row.problem]
    times = [
        (
            _name(row),
            [
                ("compute", row.compute_seconds, COMPUTE),
                ("exchange", row.exchange_seconds, EXCHANGE),
            ],
            human_seconds(row.seconds),
        )
        for row in possible
    ]
    memory = [
        (
            _name(row),
            [
                ("weights", row.memory.weights, WEIGHTS),
                ("cache", row.memory.states, CACHE),
                ("activations", row.memory.activations, ACTIVATIONS),
            ],
            human_bytes(row.memory.total),
        )
        for row in possible
    ]
    return PAGE.format(
        title=escape(f"{model} on {topology}"),
        advice=escape(advice(rows, None)),
        times=_chart(times),
        memory=_chart(memory),
        table=escape(table_text(rows, None)),
    )


def _name(row: TableRow) -> str:
    return f"tp={row.ranks}" + ("" if row.program == "main" else f" {row.program}")


def _chart(bars: Sequence[tuple[str, Sequence[Part], str]]) -> str:
    """Stacked horizontal bars with a legend."""
    longest = max((sum(length for _, length, _ in parts) for _, parts, _ in bars), default=0) or 1
    height = (BAR + GAP) * len(bars) + 30
    pieces = [f'<svg width="{LABEL + WIDTH + RIGHT}" height="{height}" role="img">']
    for number, (label, parts, total) in enumerate(bars):
        top, left = number * (BAR + GAP), float(LABEL)
        pieces.append(f'<text x="{LABEL - 8}" y="{top + 18}" text-anchor="end">{label}</text>')
        for what, length, color in parts:
            width = WIDTH * length / longest
            pieces.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" '
                f'fill="{color}"><title>{what}</title></rect>'
            )
            left += width
        pieces.append(f'<text x="{left + 6:.1f}" y="{top + 18}">{escape(total)}</text>')
    pieces += _legend(bars[0][1] if bars else [], height - 12)
    return "\n".join([*pieces, "</svg>"])


def _legend(parts: Sequence[Part], y: int) -> list[str]:
    pieces = []
    for number, (what, _, color) in enumerate(parts):
        x = LABEL + 120 * number
        pieces.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}"/>')
        pieces.append(f'<text x="{x + 18}" y="{y + 1}">{what}</text>')
    return pieces
