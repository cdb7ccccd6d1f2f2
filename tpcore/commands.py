"""What each command does; `tpcore.cli` says what it accepts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends import registry
from backends.base import BackendOptions
from backends.placement import detect_environment
from graph.text import graph_text
from tpcore import calibrate, demo, doctor, ops_table, plan_command
from tpcore.bundle import open_bundle
from tpcore.compare import TEXT
from tpcore.generate_command import generate_command
from tpcore.ops import OPS
from tpcore.output import print_json
from tpcore.partition import Options
from tpcore.plan_command import open_asked, options_of
from tpcore.report import report_text
from tpcore.run import (
    check_writable,
    load_inputs,
    needs_launch,
    read_npz,
    refuse_trace,
    run_as_rank,
    run_here,
    start_ranks,
    write_npz,
)
from tpcore.shard import shard, split_model
from tpcore.target import Target, check_exists
from tpcore.verify import AS_RUN, Verification, verify


def shard_command(args: argparse.Namespace) -> int:
    """`tpcore shard`."""
    progress = _progress_bar() if sys.stderr.isatty() else None
    bundle = shard(
        args.model,
        args.output,
        options_of(args, args.tp, args.dump),
        force=args.force,
        progress=progress,
    )
    report = bundle.manifest["report"]
    if args.json:
        print_json({**report, "bundle": str(bundle.path), "bundle_id": bundle.id})
    else:
        print(f"bundle         {bundle.path}")
        print(report_text(report))
    return 0


def _progress_bar() -> Callable[[int, int], None]:
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // total if total else 100
        if percent != shown:
            shown = percent
            end = "\n" if done >= total else ""
            print(f"\rwriting weights {percent:3d} %", end=end, file=sys.stderr, flush=True)

    return show


def inspect_command(args: argparse.Namespace) -> int:
    """`tpcore inspect`."""
    check_exists(args.target)
    if args.target.is_file():
        split = split_model(args.target, Options(1))
        report, models = dict(split.report), list(split.ranks)
        ops = sorted({(n.domain, n.op_type) for n in models[0].graph} - OPS.keys())
        report["ops_without_rule"] = [f"{d}.{op}" if d else op for d, op in ops]
    else:
        bundle = open_bundle(args.target)
        report = dict(bundle.manifest["report"])
        models = [bundle.load_rank(r) for r in range(bundle.world_size)] if args.text else []
    if args.json:
        print_json(report)
        return 0
    print(report_text(report))
    if report.get("ops_without_rule"):
        print(f"no rule for    {', '.join(report['ops_without_rule'])} (these run on every rank)")
    if args.text:
        for rank, model in enumerate(models):
            print(f"\n# rank {rank}\n{graph_text(model)}", end="")
    return 0


def verify_command(args: argparse.Namespace) -> int:
    """`tpcore verify`."""
    inputs = read_npz(args.inputs) if args.inputs is not None else None
    result = verify(
        open_bundle(args.bundle),
        args.against,
        inputs,
        sizes=args.shape,
        backend=args.backend,
    )
    if args.json:
        print_json(result.to_json())
    else:
        print(verification_text(result))
    return 0 if result.equal else 1


def verification_text(result: Verification) -> str:
    """The verification as a few lines."""
    lines = [
        f"{'equal' if o.equal else 'WRONG'}  {o.name}: largest difference {o.max_abs_diff:.2e}, "
        f"{o.max_rel_diff:.2e} of the largest value (allowed {o.tolerance:.0e})"
        for o in result.outputs
    ]
    if result.first_divergence is not None:
        d = result.first_divergence
        lines.append(
            f"first wrong value: '{d['value']}' of node '{d['node']}' ({d['op']}), "
            f"off by {d['max_abs_diff']:.2e}"
        )
    if result.as_run is not None:
        lines.append(
            f"compared: {result.setting}, without rounding that depends on where a graph is cut; "
            f"{AS_RUN} the largest difference is {result.as_run:.2e} of the largest value"
        )
    return "\n".join(lines)


def run_command(args: argparse.Namespace) -> int:
    """`tpcore run`."""
    asked = BackendOptions(args.dtype, args.compile, args.collectives)
    backend = registry.get(args.backend, asked)
    options = options_of(args, args.tp) if args.tp is not None else None
    placement = detect_environment()
    first = placement.rank == 0

    def opened() -> Target:
        for path in (args.outputs, args.trace):
            if first and path is not None:
                check_writable(path)
        return open_asked(args, options)

    def inputs(target: Target) -> dict[str, np.ndarray]:
        return load_inputs(args.inputs, target, args.shape)

    if backend.communicator is not None and placement.size > 1:
        outputs = run_as_rank(opened, backend, inputs, args.timeout, args.trace)
    elif first:
        target = opened()
        given = inputs(target)
        if needs_launch(backend, target):
            return start_ranks(args.argv, backend, target.world_size, args.timeout)
        if args.trace is not None:
            refuse_trace(target, backend)
        outputs = run_here(target, backend, given)
    if first:
        _deliver(args, outputs)
    return 0


def _deliver(args: argparse.Namespace, outputs: Mapping[str, np.ndarray]) -> None:
    if args.outputs is not None:
        write_npz(args.outputs, outputs)
    described = {name: _described(value) for name, value in outputs.items()}
    if args.json:
        where = str(args.outputs) if args.outputs is not None else None
        print_json({"outputs": described, "file": where})
        return
    for name, value in outputs.items():
        flat = value.reshape(-1) if isinstance(value, np.ndarray) else np.array(value, object)
        first = ", ".join(_short(x) for x in flat.reshape(-1)[:4].tolist())
        first += ", …" if flat.size > 4 else ""
        print(f"{name}: {described[name]['dtype']}{described[name]['shape']} {first}")
    if args.outputs is not None:
        print(f"written to {args.outputs}")


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray):
        text = value.dtype.kind in TEXT
        return {"dtype": "string" if text else value.dtype.name, "shape": list(value.shape)}
    return {"dtype": type(value).__name__, "shape": [] if value is None else [len(value)]}


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, bool | int | float) else str(value)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": plan_command.plan_command,
    "shard": shard_command,
    "inspect": inspect_command,
    "verify": verify_command,
    "run": run_command,
    "generate": generate_command,
    "calibrate": calibrate.calibrate_command,
    "ops": ops_table.ops_command,
    "doctor": doctor.doctor_command,
    "demo": demo.demo_command,
}
