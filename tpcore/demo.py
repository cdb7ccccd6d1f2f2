"""`tpcore demo`: the main job on a small Llama that comes with tpcore."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from graph.errors import ExecutionError
from tpcore.compare import compare
from tpcore.partition import Options
from tpcore.report import report_text
from tpcore.run import read_npz, tpcore_command
from tpcore.shard import shard
from tpcore.units import human_bytes
from tpcore.verify import reference

RANKS = 2


def demo_command(args: argparse.Namespace) -> int:
    """Split, run on MPI ranks, compare with the unsplit model; 1 if they differ."""
    ranks = args.tp or RANKS
    with (
        resources.as_file(resources.files("tpcore") / "assets" / "demo-llama") as assets,
        tempfile.TemporaryDirectory(prefix="tpcore-demo-") as scratch,
    ):
        model, inputs = assets / "model.onnx", assets / "inputs.npz"
        bundle, outputs = Path(scratch, "bundle"), Path(scratch, "outputs.npz")
        print(f"1. The model: {model.name}, a small Llama exported by torch.onnx (random weights)")
        print(f"\n2. tpcore shard model.onnx --tp {ranks} -o bundle")
        report = shard(model, bundle, Options(ranks)).manifest["report"]
        print(report_text(report))
        print("\n3. tpcore run bundle --backend cpu --inputs inputs.npz --outputs outputs.npz")
        _run(bundle, inputs, outputs)
        got, want = read_npz(outputs), reference(model, read_npz(inputs))
        found = [compare(name, got[name], want[name]) for name in want]
    print("\n4. The outputs of the ranks against unsplit ONNX Runtime")
    per_rank = ", ".join(human_bytes(size) for size in report["weight_bytes_per_rank"])
    collectives = ", ".join(f"{n} {op}" for op, n in sorted(report["collectives"].items()))
    print(f"weights per rank: {per_rank} of {human_bytes(report['weight_bytes_total'])}")
    print(f"collectives: {collectives or 'none'}")
    for one in found:
        print(
            f"{one.name}: {'equal' if one.equal else 'WRONG'}, "
            f"greatest difference {one.max_abs_diff:.2e} (allowed {one.tolerance:.0e} of the scale)"
        )
    return 0 if all(one.equal for one in found) else 1


def _run(bundle: Path, inputs: Path, outputs: Path) -> None:
    command = ["run", str(bundle), "--backend", "cpu", "--timeout", "60"]
    command += ["--inputs", str(inputs), "--outputs", str(outputs)]
    done = subprocess.run(tpcore_command(command), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExecutionError(f"the run failed with status {done.returncode}: {done.stderr.strip()}")
    print(done.stdout.splitlines()[0])
