"""Read bench/history: how peers compare, how two states of ours compare, and a picture.

    python -m bench.compare                        the last figures of every case, as bars
    python -m bench.compare --svg bars.svg         the same as a picture (--html FILE: as a page)
    python -m bench.compare --from A --to B        our rows of two commits or days, and their ratio
    python -m bench.compare --cases llama-decode --machine intel-xeon-processor-2

Figures of different machines are never compared: --machine picks one, by default the last used.
A ratio between two states rests on two runs at different times; trust it less than one inside a
table, whose peers took turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import history
from bench.chart import Bars, html, svg, text

OURS = "tpcore"
Line = dict[str, Any]


def main() -> int:
    """Print bars or ratios; the status is 2 if there is nothing to print."""
    args = _arguments()
    lines = [line for line in history.lines(args.history) if line["bench"] == "peers"]
    machine = args.machine or (lines[-1]["machine"] if lines else "")
    lines = [x for x in lines if x["machine"] == machine]
    lines = [x for x in lines if not args.cases or x["case"] in args.cases]
    if not lines:
        print("error: the history has no such figures. Make some with make bench.", file=sys.stderr)
        return 2
    if args.since or args.until:
        return print_states(lines, args.since, args.until)
    charts = [bars_of(line) for line in latest(lines)]
    print("\n\n".join(text(chart) for chart in charts))
    for path, draw in ((args.svg, svg), (args.html, html)):
        if path is not None:
            path.write_text(draw(charts), encoding="utf-8")
            print(f"\n{path}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--machine", help="as in the names of the files")
    parser.add_argument("--from", dest="since", help="beginning of a commit or of a day")
    parser.add_argument("--to", dest="until", help="the same; default: the last figures")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--history", type=Path, default=history.FOLDER, help=argparse.SUPPRESS)
    return parser.parse_args()


def latest(lines: Iterable[Line]) -> list[Line]:
    """The last line of every case."""
    return list({line["case"]: line for line in lines}.values())


def of_state(lines: Iterable[Line], state: str | None) -> dict[str, Line]:
    """The last line of every case at a commit or on a day, or of all if none is named."""
    chosen = [
        x
        for x in lines
        if state is None or x.get("commit", "").startswith(state) or x["day"].startswith(state)
    ]
    return {line["case"]: line for line in latest(chosen)}


def print_states(lines: Sequence[Line], since: str | None, until: str | None) -> int:
    """Print our rows of two states, and how far what stays the same has moved between them."""
    before, after = of_state(lines, since), of_state(lines, until)
    found = []
    for case in (case for case in before if case in after):
        rows = before[case]["rows"], after[case]["rows"]
        for name in [name for name in rows[0] if name in rows[1]]:
            found.append((case, name, *(row[name]["median_ms"] for row in rows)))
    if not found:
        names = f"{since or 'any state'} and {until or 'the last'}"
        print(f"error: no case has figures of both {names}.", file=sys.stderr)
        return 2
    print(f"{'case':20}{'row':16}{'before ms':>11}{'after ms':>11}{'after / before':>16}")
    for case, name, old, new in found:
        print(f"{case:20}{name:16}{old:>11.1f}{new:>11.1f}{new / old:>16.2f}")
    print("A peer's own ratio tells how far the machine differed between the two runs.")
    return 0


def bars_of(line: Line) -> Bars:
    """One line of the history as a chart: medians, and how many times ours each takes."""
    rows = line["rows"].values()
    ordered = sorted(rows, key=lambda row: float(row["median_ms"]))
    return Bars(
        title=f"{line['case']}, ms ({line['day']}, {line.get('commit', '')}, {line['machine']})",
        labels=[row["title"] for row in ordered],
        values=[row["median_ms"] for row in ordered],
        notes=[f"× {row['times_ours']:.2f}" if "times_ours" in row else "" for row in ordered],
        marked=[row["title"].startswith(OURS) for row in ordered],
    )


if __name__ == "__main__":
    sys.exit(main())
