"""`tpcore plan`: one plan in full, one value explained, or several numbers of ranks compared."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from graph.errors import PlanError
from tpcore.annotate import annotated_model
from tpcore.annotations import ANNOTATED
from tpcore.output import print_json
from tpcore.partition import Options, prepare
from tpcore.plan import Plan
from tpcore.plan_html import page
from tpcore.plan_table import rows_of, table_text
from tpcore.planner.explain import explain, explanation_text
from tpcore.planner.memory import fit
from tpcore.planner.plans import price_of, problem_of
from tpcore.planner.topology_files import DEFAULT_TOPOLOGY
from tpcore.report import report_text
from tpcore.shard import joint_plan, joint_report, split_models
from tpcore.target import Target, open_target


def options_of(args: argparse.Namespace, ranks: int, dump: Path | None = None) -> Options:
    """What the command line asks for."""
    return Options(
        ranks,
        args.plan,
        args.shape,
        dump,
        memory=args.memory,
        tokens=args.workload,
        topology=args.topology,
        pins=dict(args.pin),
        split_outputs=tuple(args.keep_split),
    )


def open_asked(args: argparse.Namespace, options: Options | None) -> Target:
    """The bundle or model that a command is to run. Raises what `open_target` raises."""
    wishes = {
        f"--plan {args.plan}": args.plan != ANNOTATED,
        "--pin": args.pin,
        "--topology": args.topology != DEFAULT_TOPOLOGY,
        "--memory": args.memory,
        "--workload": args.workload,
    }
    given = [text for text, is_given in wishes.items() if is_given]
    if given and args.target.is_dir():
        raise PlanError(
            f"{given[0]} was given for bundle '{args.target}', which is split already. Leave it "
            "out, or run the ONNX file with --tp N."
        )
    return open_target(args.target, options)


def plan_command(args: argparse.Namespace) -> int:
    """`tpcore plan`."""
    ranks: list[int] = args.tp
    if args.explain is not None:
        return _explain(args, _only(ranks, "--explain"))
    if len(ranks) > 1 or args.html is not None:
        return _compare(args, ranks)
    splits = split_models(args.model, options_of(args, ranks[0]))
    plan, report = joint_plan(splits), joint_report(splits)
    if args.output is not None:
        write_text(args.output, json.dumps(plan, indent=2) + "\n")
    if args.annotate is not None:
        _annotate(args.model, [split.sharded.plan for split in splits], args.annotate)
    if args.json:
        print_json({**report, "plan": plan})
    else:
        print(report_text(report))
        if args.output is not None:
            print(f"plan           {args.output}")
        if args.annotate is not None:
            print(f"annotated      {args.annotate}")
    return 0


def _annotate(model: Path, plans: list[Plan], output: Path) -> None:
    if len(plans) > 1:
        raise PlanError("annotations say one plan, --workload makes two. Leave out one of them.")
    write_bytes(output, annotated_model(model, plans[0], output).SerializeToString())


def _only(ranks: list[int], option: str) -> int:
    if len(ranks) > 1:
        raise PlanError(f"{option} is for one plan, --tp names {len(ranks)}. Give one --tp.")
    return ranks[0]


def _explain(args: argparse.Namespace, ranks: int) -> int:
    options = options_of(args, ranks)
    found = prepare(args.model, options)
    request = found.request
    problem = problem_of(found.model, found.shapes, found.works, request)
    price = price_of(found.model, found.shapes, found.works, request)
    chosen = fit(problem, price, request.memory).choices[0]
    alternatives = explain(problem, price, chosen, args.explain)
    if args.json:
        print_json({"value": args.explain, "placements": [a.to_json() for a in alternatives]})
    else:
        print(explanation_text(args.explain, alternatives, price))
    return 0


def _compare(args: argparse.Namespace, ranks: list[int]) -> int:
    for option, path in (("-o", args.output), ("--annotate", args.annotate)):
        if path is not None:
            _only(ranks, option)
    rows = rows_of(args.model, options_of(args, 1), ranks)
    if args.html is not None:
        write_text(args.html, page(args.model.name, args.topology, rows))
    if args.json:
        print_json({"rows": [row.to_json() for row in rows]})
    else:
        print(table_text(rows, args.memory))
        if args.html is not None:
            print(f"picture: {args.html}")
    return 0 if any(row.problem == "" for row in rows) else 2


def write_text(path: Path, text: str) -> None:
    """Write a file beside its final name and rename it. Raises PlanError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Write a file beside its final name and rename it. Raises PlanError."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        draft.write_bytes(contents)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PlanError(f"cannot write '{path}': {error.strerror}. Choose another path.") from error
