"""Try ONNX files of any origin: does the split model equal the whole?

    python -m bench.files FOLDER model.onnx     every .onnx file there, at tp 2 and 3
    python -m bench.files FOLDER --ranks 2 4 --jobs 2 --json rows.jsonl

Prints per file and tp: nodes, megabytes of weights, seconds of the split, equal or NO, largest
difference as a share of the output's scale, split fraction, largest rank over 1/tp, collectives;
or why the split was refused; or why ONNX Runtime does not run the unsplit file on made-up inputs.
Each file has a process and a time limit of its own. The status is 1 if any is wrong, crashes or
does not end.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from graph.canonicalize import canonicalize
from graph.errors import ExecutionError, TpcoreError
from graph.reader import read_model
from tpcore.inputs import DEFAULT_SIZE, InputSpec, check_sizes, describe_inputs, make_inputs
from tpcore.partition import Options
from tpcore.shard import split_model
from tpcore.verify import verify_ranks

Row = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

TIMEOUT_SECONDS = 120
SIZES = (None, 32, 64, 224, 16, 4, 2, 1, 512)
"""What symbolic dims are tried as; None: as `tpcore verify` does."""
MAX_ELEMENTS = 5_000_000
"""Of one input."""
PRELOADED = ["onnxruntime", "tpcore.shard", "tpcore.verify"]
"""Imported once for all files."""
FAULTS = ("NO", "CRASH", "FAILS", "DOES NOT END", "DIED")
WHOLE_FAILS = "does not run unsplit"


def try_file(path: Path, ranks: Sequence[int]) -> Iterator[Row]:
    """A row per number of ranks, after an empty one that says that the unsplit file was tried."""
    inputs, reason = _inputs_it_runs_on(path)
    yield {}
    for count in ranks:
        row: Row = {"file": str(path), "tp": count}
        if inputs is None:
            row["reason"] = reason
        try:
            yield row | _try_split(path, count, inputs)
        except ExecutionError as error:
            yield row | {"state": "FAILS", "reason": _one_line(error)}
        except TpcoreError as error:
            yield row | {"state": "refused", "reason": _one_line(error)}
        except Exception as error:  # whatever stops one file must not hide the others
            yield row | {"state": "CRASH", "reason": f"{type(error).__name__}: {_one_line(error)}"}


def _try_split(path: Path, ranks: int, inputs: Arrays | None) -> Row:
    began = time.perf_counter()
    split = split_model(path, Options(ranks))
    report = split.report
    total = report["weight_bytes_total"]
    row: Row = {
        "seconds": time.perf_counter() - began,
        "nodes": len(split.sharded.model.graph),
        "megabytes": total / 1e6,
        "split_fraction": report["split_fraction"],
        "largest": max(report["weight_bytes_per_rank"]) * ranks / total if total else 0.0,
        "collectives": report["collectives"],
    }
    if inputs is None:
        return row | {"state": WHOLE_FAILS}
    found = verify_ranks(split.ranks, split.shardings, path, inputs).to_json()
    state = "equal" if found["equal"] else "NO"
    return row | {"state": state, "max_rel_diff": found["max_rel_diff"]}


def _inputs_it_runs_on(path: Path) -> tuple[Arrays | None, str]:
    """Inputs on which ONNX Runtime runs the unsplit file, or None and why there are none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a file it cannot load is no fault of the split
        return None, _one_line(error)
    reason = "no inputs can be made up"
    for inputs in _candidates(path, session):
        try:
            session.run(None, dict(inputs))
            return inputs, ""
        except Exception as error:  # nor one that needs other inputs
            reason = _one_line(error)
    return None, reason


def _candidates(path: Path, session: onnxruntime.InferenceSession) -> Iterator[Arrays]:
    for describe in (partial(_specs_of_file, path), partial(_specs_of_session, session)):
        try:
            specs = describe()
            symbols = check_sizes(specs, {})
        except (TpcoreError, KeyError):
            continue
        for size in SIZES if symbols else SIZES[:1]:
            if any(_elements(spec, size or DEFAULT_SIZE) > MAX_ELEMENTS for spec in specs):
                continue
            try:
                yield make_inputs(specs, {} if size is None else dict.fromkeys(symbols, size))
            except TpcoreError:
                continue


def _elements(spec: InputSpec, size: int) -> int:
    """About how many elements an input has where symbolic dims are of one size."""
    return math.prod(dim if isinstance(dim, int) else size for dim in spec.shape or ())


def _specs_of_file(path: Path) -> list[InputSpec]:
    model, shapes = canonicalize(read_model(path))
    return describe_inputs(model.graph, shapes)


def _specs_of_session(session: onnxruntime.InferenceSession) -> list[InputSpec]:
    """Of a file that tpcore cannot read; KeyError for inputs that are no tensors."""
    names = {"float": "FLOAT", "double": "DOUBLE"}
    specs = []
    for value in session.get_inputs():
        if not value.type.startswith("tensor("):
            raise KeyError(value.type)
        kind = value.type[len("tensor(") : -1]
        sizes = tuple(size or f"dim{i}" for i, size in enumerate(value.shape))
        specs.append(InputSpec(value.name, names.get(kind, kind.upper()), sizes))
    return specs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _child(path: Path, ranks: Sequence[int], pipe: Connection) -> None:
    for row in try_file(path, ranks):
        pipe.send(row)
    pipe.send(None)


def in_own_process(path: Path, ranks: Sequence[int], seconds: float) -> list[Row]:
    """The rows of a file; where its process ends early or not at all, a row that says so."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(path, ranks, sender))
    process.start()
    sender.close()
    rows: list[Row] = []
    deadline, ending = time.monotonic() + seconds, "DOES NOT END"
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            row = receiver.recv()
        except EOFError:
            ending = "DIED"
            break
        if row is None:
            ending = ""
            break
        rows.append(row)
    process.kill()
    process.join()
    if ending:
        state = ending if rows else WHOLE_FAILS
        reason = f"{ending.lower()}, of {seconds:.0f} s"
        rows.append({"file": str(path), "tp": 0, "state": state, "reason": reason})
    return [row for row in rows if row]


def text_of(row: Row) -> str:
    """A row as one line."""
    line = f"{row['file'][-60:]:60} tp {row['tp']} {row['state']:7}"
    if "nodes" in row:
        line += f" {row['nodes']:5} nodes {row['megabytes']:8.2f} MB {row['seconds']:6.2f} s"
        line += f"  split {row['split_fraction']:.3f}  largest {row['largest']:.3f}"
        line += "  " + (", ".join(f"{n} {op}" for op, n in row["collectives"].items()) or "none")
    if "max_rel_diff" in row:
        line += f"  diff {row['max_rel_diff']}"
    return line + (f"  {row['reason']}" if "reason" in row else "")


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files given, and all .onnx files in the folders given."""
    return [f for p in paths for f in (sorted(p.rglob("*.onnx")) if p.is_dir() else [p])]


def main() -> int:
    """Try all files; the status is 1 if any is wrong, crashes or does not end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="files and folders")
    parser.add_argument("--ranks", nargs="*", type=int, default=[2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="files tried at a time")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds per file")
    parser.add_argument("--json", type=Path, help="file for the rows, one object a line")
    args = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    found: list[Row] = []
    one = partial(in_own_process, ranks=args.ranks, seconds=args.timeout)
    with ThreadPoolExecutor(args.jobs) as pool:
        for rows in pool.map(one, files_in(args.paths)):
            print("\n".join(map(text_of, rows)), flush=True)
            found += rows
    if args.json is not None:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in found))
    counts = Counter(row["state"] for row in found)
    print(f"{len(found)} rows: " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
    return int(not found or any(counts[fault] for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
