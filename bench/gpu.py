"""Correctness and speed on a GPU machine: `python -m bench.gpu`; `--dry-run` shows the form on CPU.

1. The test models in fp32 and bf16 on 1 rank and on 2, against ONNX Runtime on CPU. Two ranks on
   one device exchange by its own library where NCCL_MULTI_RANK_GPU_ENABLE lets them, else by the
   host.
2. A Llama of 8 billion parameters in bf16: a decode step against the time that reading its weights
   takes, and a prefill against the time of its multiplications, both at the rates that this device
   reaches in a plain copy and a plain matmul; beside it transformers, eager and compiled.

Weights are zeros in a sparse file unless --random-weights is given (32 GB on disk).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends import devices, registry
from graph.errors import BackendUnavailable
from tests.big_model import LlamaShape, make
from tests.models import FAMILIES, GENAI, model_inputs, model_path
from tpcore.compare import compare
from tpcore.partition import Options
from tpcore.run import read_npz, write_npz
from tpcore.shard import shard
from tpcore.verify import reference

ALLOWED = {"fp32": 1e-4, "bf16": 5e-2}
"""Of the largest value of an output."""
LLAMA_8B = LlamaShape(32, 4096, 14336, 32, 8, 128256)
TINY = LlamaShape(2, 64, 176, 4, 2, 512)
WAYS = ("eager", "compiled")
MANY_RANKS = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
TIMEOUT_SECONDS = 1800
Seconds = dict[str, float]


def main() -> int:
    """Print both tables; the status is 1 if a model computes something else."""
    args = _arguments()
    backend = "torch" if args.dry_run else args.backend
    try:
        registry.get(backend)
    except BackendUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print_machine(backend)
    wrong = print_correctness(backend, args.models, args.dry_run)
    if not args.skip_llama:
        print_llama(backend, args)
    return int(wrong > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="cuda", help="cuda, rocm or xpu")
    parser.add_argument("--dry-run", action="store_true", help="torch on CPU and a tiny Llama")
    parser.add_argument("--models", nargs="*", help="test models (default: one of each family)")
    parser.add_argument("--skip-llama", action="store_true", help="only the test models")
    parser.add_argument("--layers", type=int, default=LLAMA_8B.layers, help="of the Llama")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1], help="for the Llama")
    parser.add_argument("--context", type=int, default=1024, help="tokens before a decode step")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of a prefill")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="to run the Llama")
    parser.add_argument("--random-weights", action="store_true", help="instead of zeros")
    return parser.parse_args()


def print_machine(backend: str) -> None:
    """What the figures were made on."""
    seen = devices.by_torch()
    names = [f"{d['name']}, {d['memory_bytes'] / 2**30:.0f} GiB" for d in seen.get("devices", ())]
    versions = ", ".join(f"{name} {text}" for name, text in seen.get("versions", {}).items())
    print(
        f"machine   {platform.machine()}, {os.cpu_count()} cores, {'; '.join(names) or 'no device'}"
    )
    print(f"software  {versions}, numpy {np.__version__}, Python {platform.python_version()}")
    print(f"backend   {backend}\n")


def print_correctness(backend: str, models: Sequence[str] | None, dry_run: bool) -> int:
    """Print the table of the test models; the number of wrong rows."""
    usual = ["mlp-opset18"] if dry_run else [*(f"{f}-opset18" for f in FAMILIES), GENAI]
    print(f"{'model':18}{'dtype':>6}{'ranks':>6}  {'exchange':10}{'difference':>11}{'allowed':>9}")
    wrong = 0
    for model in models or usual:
        path, inputs = model_path(model), model_inputs(model)
        wanted = reference(path, inputs)
        for dtype, allowed in ALLOWED.items():
            for ranks in (1, 2):
                how, got = run_model(path, inputs, backend, dtype, ranks)
                found = max(compare(k, got[k], wanted[k]).max_rel_diff for k in wanted)
                wrong += found > allowed
                mark = "" if found <= allowed else "  WRONG"
                row = f"{model:18}{dtype:>6}{ranks:>6}  {how:10}{found:>11.1e}{allowed:>9.0e}{mark}"
                print(row, flush=True)
    print()
    return wrong


def run_model(
    path: Path, inputs: dict[str, np.ndarray], backend: str, dtype: str, ranks: int
) -> tuple[str, dict[str, np.ndarray]]:
    """Run `tpcore run`: between devices, or through the host where that is refused."""
    with tempfile.TemporaryDirectory(prefix="tpcore-gpu-") as folder:
        given, made = Path(folder, "x.npz"), Path(folder, "y.npz")
        write_npz(given, inputs)
        line = [sys.executable, "-m", "tpcore", "run", str(path), "--tp", str(ranks)]
        line += ["--backend", backend, "--dtype", dtype, "--inputs", str(given)]
        line += ["--outputs", str(made), "--timeout", "60"]
        ways = {"device" if ranks > 1 else "none": [], "host": ["--collectives", "gloo"]}
        for how, options in ways.items():
            done = _call([*line, *options])
            if done.returncode == 0:
                return how, read_npz(made)
    raise SystemExit(f"{' '.join(line)} failed: {done.stderr[-2000:]}")


def print_llama(backend: str, args: argparse.Namespace) -> None:
    """Print the table of the Llama."""
    shape = TINY if args.dry_run else LLAMA_8B
    sizes = {f: getattr(shape, f) for f in shape.__dataclass_fields__}
    sizes["layers"] = min(args.layers, shape.layers)
    context, prompt = (16, 32) if args.dry_run else (args.context, args.prompt)
    works = {
        "decode": {**sizes, "sequence": 1, "cache": context},
        "prefill": {**sizes, "sequence": prompt, "cache": 0},
    }
    device = "cpu" if args.dry_run else {"rocm": "cuda"}.get(backend, backend)
    rates = _answer("bench.gpu_peer", "rates", device)
    print(f"a copy moves {rates['bytes_per_second'] / 1e9:.0f} GB/s, ", end="")
    print(f"a matmul in bf16 does {rates['flops_per_second'] / 1e12:.2f} TFLOP/s\n")
    print(
        f"{'Llama in bf16':34}{'decode ms':>11}{'of limit':>10}{'prefill ms':>12}{'of limit':>10}"
    )
    limits = {name: _limit(LlamaShape(**works[name]), rates) for name in works}
    _print_row("limit (bandwidth, multiplications)", limits, limits)
    with tempfile.TemporaryDirectory(prefix="tpcore-gpu-") as folder:
        for ranks in args.ranks:
            for way in args.ways:
                found = {
                    name: time_ours(Path(folder), name, works[name], backend, ranks, way, args)
                    for name in works
                }
                _print_row(f"tpcore {way}, {ranks} rank{'s' * (ranks > 1)}", found, limits)
    for way in args.ways:
        found = {
            name: _answer("bench.gpu_peer", way, device, json.dumps(works[name]))["seconds"]
            for name in works
        }
        _print_row(f"transformers {way}", found, limits)


def _limit(shape: LlamaShape, rates: Seconds) -> float:
    """Seconds that reading the weights once, or multiplying by them, takes at least."""
    wide = shape.heads * shape.head_size
    narrow = 2 * shape.kv_heads * shape.head_size
    layer = shape.hidden * (2 * wide + narrow + 3 * shape.intermediate)
    weights = shape.layers * layer + shape.hidden * shape.vocabulary
    cached = shape.layers * shape.cache * narrow
    reading = 2 * (weights + cached) / rates["bytes_per_second"]
    attention = 2 * shape.layers * wide * (shape.sequence + shape.cache)
    return max(reading, 2 * shape.sequence * (weights + attention) / rates["flops_per_second"])


def time_ours(
    folder: Path,
    name: str,
    sizes: dict[str, int],
    backend: str,
    ranks: int,
    way: str,
    args: argparse.Namespace,
) -> float:
    """Median seconds of a run of ours."""
    model = folder / name / "model.onnx"
    if not model.exists():
        model.parent.mkdir()
        make(model, seed=0 if args.random_weights else None, **sizes)
    target = folder / f"{name}-{ranks}"
    if ranks > 1 and not target.exists():
        shard(model, target, Options(ranks))
    given = json.dumps(sizes)
    where = str(target if ranks > 1 else model)
    return _answer("bench.gpu_child", where, given, backend, str(ranks), way)["seconds"]


def _print_row(label: str, found: Seconds, limits: Seconds) -> None:
    cells = "".join(
        f"{found[name] * 1e3:>{wide}.2f}{limits[name] / found[name]:>10.0%}"
        for name, wide in (("decode", 11), ("prefill", 12))
    )
    print(f"{label:34}{cells}", flush=True)


def _answer(module: str, *words: str) -> Seconds:
    """The JSON object that a process of its own prints last."""
    done = _call([sys.executable, "-m", module, *words])
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(words)} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def _call(line: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line,
        env={**os.environ, **MANY_RANKS},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


if __name__ == "__main__":
    sys.exit(main())
