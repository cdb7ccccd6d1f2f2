"""tpcore: the model split over 2 ranks of 1 thread, run as backend `cpu` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import child
from bench.cases import Case
from bench.child import Ready, Work
from bench.peer import Peer

RANKS = 2
AS_CASE = "as-case"
"""The plan that `Case.plan` names."""
FORMS = ("llama", "llama-int4", "gpt2", "bert", "vit")


def _peer(name: str, title: str, plan: str, only_prompts: str = "") -> Peer:
    return Peer(
        name=name,
        title=f"{title}, {RANKS} ranks × 1 thread",
        module="ours",
        packages=("tpcore",),
        forms=FORMS,
        why_not="",
        launcher="mpi",
        processes=RANKS,
        is_prepared=True,
        arguments=(plan,),
        only_prompts=only_prompts,
    )


PEERS = [
    _peer("tpcore", "tpcore", AS_CASE),
    _peer("tpcore-auto", "tpcore's fastest plan", "auto", "the same plan as tpcore's own row"),
]


def bundle_of(plan: str, case: Case, folder: Path) -> Path:
    """Where the split model lies; what `tpcore shard` reported lies beside it as JSON."""
    return folder / f"bundle-{_plan(plan, case)}"


def _plan(plan: str, case: Case) -> str:
    return case.plan if plan == AS_CASE else plan


def report_of(peer: Peer, case: Case, folder: Path) -> dict[str, Any]:
    """What `tpcore shard` reported, and its seconds."""
    bundle = bundle_of(peer.arguments[0], case, folder)
    report: dict[str, Any] = json.loads(bundle.with_suffix(".json").read_text())
    return report


def prepare(work: Work) -> None:
    """Split the model afresh, as the package is now."""
    (plan,) = work.arguments
    bundle = bundle_of(plan, work.case, work.folder)
    command = [sys.executable, "-m", "tpcore", "shard", str(work.folder / "model.onnx"), "--json"]
    command += ["--tp", str(RANKS), "--plan", _plan(plan, work.case), "-o", str(bundle), "--force"]
    if sizes := _symbolic_sizes(work):
        command += ["--shape", ",".join(f"{name}={size}" for name, size in sizes.items())]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    report = json.loads(done.stdout) | {"shard_seconds": time.perf_counter() - began}
    bundle.with_suffix(".json").write_text(json.dumps(report))


def _symbolic_sizes(work: Work) -> dict[str, int]:
    """What the inputs say of the symbolic dims of the model's."""
    import onnx_ir as ir

    arrays = work.inputs()
    found: dict[str, int] = {}
    for value in ir.load(work.folder / "model.onnx").graph.inputs:
        for dim, size in zip(value.shape or (), arrays[value.name or ""].shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found[dim.value] = size
    return found


def load(work: Work) -> Ready:
    """This process's rank of the bundle."""
    from backends import job, registry
    from backends.run import RankProgram
    from tpcore.bundle import open_bundle
    from tpcore.distribute import cut_inputs

    backend = registry.get("cpu")
    joined = job.join(joining=backend.communicator)
    bundle = open_bundle(bundle_of(work.arguments[0], work.case, work.folder))
    parts = cut_inputs(work.inputs(), bundle.programs[0].shardings, joined.rank)
    inputs = {name: part.copy() for name, part in parts.items()}  # a rank's own, not the whole
    del parts
    program = RankProgram(
        bundle.load_rank(joined.rank),
        backend.executor(),
        joined.communicator,
        threads=work.threads,
        monitor=joined.monitor,
    )
    run, figures = _watched(program, lambda: program.run(inputs))
    return Ready(run, lambda outputs: outputs["logits"], rank=joined.rank, figures=figures)


def _watched(program: Any, run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    """The same run, its exchanges and onnxruntime's own time noted (without exchanges inside)."""
    from backends.exec_ort import OrtStep

    spent = [0.0]
    for _, step, *_ in program._steps:
        if isinstance(step, OrtStep):
            step._run = _timed(step._run, spent)
            step._run_by_name = _timed(step._run_by_name, spent)
    figures: dict[str, list[float]] = {"exchange_seconds": [], "ort_seconds": []}

    def watched() -> Any:
        spent[0] = program.exchange_seconds = 0.0
        inside = program.seconds_inside
        outputs = run()
        inside = program.seconds_inside - inside
        figures["exchange_seconds"].append(program.exchange_seconds)
        figures["ort_seconds"].append(spent[0] - inside)
        return outputs

    return watched, figures


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        spent[0] += time.perf_counter() - began
        return result

    return timed


def main() -> int:
    """Prepare, or take a turn as one rank of a job."""
    if sys.argv[1] == "prepare":
        return child.main(load, prepare)
    from backends.rank_main import rank_main

    return rank_main(lambda: child.main(load))


if __name__ == "__main__":
    sys.exit(main())
