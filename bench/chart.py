"""Horizontal bars: as text, as one SVG picture, as a page that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 40
"""Characters of the longest bar."""
LABEL, BAR, NOTE, ROW = 330, 360, 150, 24
"""Pixels: label, longest bar and note of a row, and its height."""
OURS, OTHER = "#1a6fb5", "#a9b4bf"


@dataclass(frozen=True)
class Bars:
    """One chart; all lists are of one length."""

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    notes: Sequence[str]
    marked: Sequence[bool]
    """Those drawn in the first colour."""


def text(chart: Bars) -> str:
    """Lines for a terminal."""
    longest = max(chart.values)
    lines = [chart.title]
    for label, value, note, marked in _rows(chart):
        bar = ("█" if marked else "▒") * max(1, round(WIDTH * value / longest))
        lines.append(f"  {label:42} {bar:{WIDTH}} {value:9.1f}  {note}")
    return "\n".join(lines)


def svg(charts: Sequence[Bars]) -> str:
    """All charts below each other, each on a scale of its own."""
    height = sum(ROW * (len(chart.values) + 2) for chart in charts) + ROW
    parts: list[str] = []
    top = ROW
    for chart in charts:
        parts += _drawn(chart, top)
        top += ROW * (len(chart.values) + 2)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + BAR + NOTE}" height="{height}" '
        f'font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def html(charts: Sequence[Bars]) -> str:
    """A page with nothing but the picture."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>tpcore bench</title>\n'
        f"<body>{svg(charts)}</body></html>\n"
    )


def _drawn(chart: Bars, top: int) -> Iterator[str]:
    yield f'<text x="8" y="{top}" font-weight="bold">{escape(chart.title)}</text>'
    longest = max(chart.values)
    for number, (label, value, note, marked) in enumerate(_rows(chart), 1):
        base = top + number * ROW
        width = max(1.0, BAR * value / longest)
        colour = OURS if marked else OTHER
        yield f'<text x="{LABEL - 8}" y="{base}" text-anchor="end">{escape(label)}</text>'
        yield (
            f'<rect x="{LABEL}" y="{base - 13}" width="{width:.1f}" height="16" fill="{colour}"/>'
        )
        yield f'<text x="{LABEL + width + 6:.1f}" y="{base}">{value:.1f} {escape(note)}</text>'


def _rows(chart: Bars) -> Iterator[tuple[str, float, str, bool]]:
    return zip(chart.labels, chart.values, chart.notes, chart.marked, strict=True)
