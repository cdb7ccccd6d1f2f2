"""Print whether the packed and the separate form of one model split alike.

    python -m bench.packed                        all forms at tp 2 3 4 8
    python -m bench.packed --forms tied --ranks 2

Columns as in bench.table. The status is 1 if a row is not equal to the unsplit model, or if a form
has another number of collectives than the separate form on as many ranks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.rows import Row, simulated_row
from tests.packed_forms import FORMS, KV_HEADS, SEPARATE, inputs, make
from tpcore.verify import reference

RANKS = (2, 3, 4, 8)
HEADER = (
    f"{'form':32}{'tp':>3}  {'equal':6}{'max diff':>10}{'of scale':>10}{'split':>8}  collectives"
)


def rows(form: str, ranks: Sequence[int]) -> Iterator[tuple[str, Row]]:
    """A form with each kind of attention on each number of ranks, with the kind."""
    for kind, kv_heads in KV_HEADS.items():
        with tempfile.TemporaryDirectory(prefix="tpcore-packed-") as scratch:
            path = make(form, kv_heads, Path(scratch, "model.onnx"))
            expected = [reference(path, inputs())]
            for count in ranks:
                name = f"{form}, {kind}"
                yield kind, simulated_row(name, path, count, [inputs()], expected)[0]


def count(row: Row) -> int:
    """Number of collectives of all kinds."""
    return sum(row.report["collectives"].values())


def main() -> int:
    """Print the table; the status is 1 if a row is wrong or its collectives differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--forms", nargs="*", default=[""], help="beginnings of names of forms")
    parser.add_argument("--ranks", nargs="*", type=int, default=list(RANKS))
    args = parser.parse_args()
    chosen = [form for form in FORMS if any(form.startswith(start) for start in args.forms)]
    wanted: dict[tuple[str, int], int] = {}
    wrong = other = printed = 0
    print(HEADER)
    for form in dict.fromkeys([SEPARATE, *chosen]):
        for kind, row in rows(form, args.ranks):
            want = wanted.setdefault((kind, row.ranks), count(row))
            differs = count(row) != want
            print(_text(row) + (f"  ({want} when separate)" if differs else ""), flush=True)
            printed, wrong, other = printed + 1, wrong + (not row.equal), other + differs
    answer = f"no, {other} rows differ" if other else "yes"
    print(f"{printed} rows, {wrong} wrong; as many collectives as when separate: {answer}")
    return 1 if wrong or other else 0


def _text(row: Row) -> str:
    return (
        f"{row.model:32}{row.ranks:>3}  {'yes' if row.equal else 'NO':6}"
        f"{row.max_abs_diff:>10.1e}{row.max_rel_diff:>10.1e}{row.split_fraction:>8.3f}"
        f"  {row.collectives or 'none'}"
    )


if __name__ == "__main__":
    sys.exit(main())
