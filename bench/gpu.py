"""Correctness and speed on a GPU machine: `python -m bench.gpu`; `--dry-run` shows the form on CPU.

1. The conformance suite and ONNX's node tests on the device (`--skip suites` leaves them out).
2. The test models in fp32, fp16 and bf16 on 1 rank and on 2, against ONNX Runtime on CPU. Two ranks
   on one device exchange by its own library where NCCL_MULTI_RANK_GPU_ENABLE lets them, and by the
   host (gloo) as well.
3. A Llama of 8 billion parameters in bf16: a decode step against the time that reading its weights
   takes, and a prefill against the time of its multiplications, both at the rates that this device
   reaches in a plain copy and a plain matmul; beside it transformers, eager and compiled.

The Llama's weights are a few random numbers again and again: 32 GB in the folder for temporary
files, which may be in memory (TMPDIR=/dev/shm). `--save` keeps the figures in bench/history.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends import devices, registry
from bench import history
from bench.gpu_models import DEVICE
from bench.turns import TurnFailed, run_to_end
from graph.errors import BackendUnavailable
from tests.big_model import LlamaShape, make_sharing
from tests.models import MODELS

LLAMA_8B = LlamaShape(32, 4096, 14336, 32, 8, 128256, fused=True)
TINY = LlamaShape(2, 64, 176, 4, 2, 512, fused=True)
PARTS = ("suites", "models", "llama")
WAYS = ("eager", "compiled")
MANY_RANKS = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
TIMEOUT_SECONDS = 1800
Row = dict[str, Any]


def main() -> int:
    """Print the tables; the status is 1 if anything computes something else."""
    args = _arguments()
    backend = "torch" if args.dry_run else args.backend
    try:
        registry.get(backend)
    except BackendUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    found: Row = {"backend": backend, **describe_machine(backend)}
    if "suites" not in args.skip:
        found["suites"] = run_suites(backend, args.timeout)
    if "models" not in args.skip:
        found["models"] = run_models(backend, args)
    if "llama" not in args.skip:
        found["llama"] = run_llama(backend, args)
    if args.save:
        named = devices.by_torch().get("devices", ())
        print(history.save("gpu", found, device=named[0]["name"] if named else ""))
    return int(_is_wrong(found))


def _is_wrong(found: Row) -> bool:
    rows: list[Row] = found.get("models", [])
    return any(row["difference"] > row["allowed"] for row in rows) or any(
        suite["status"] for suite in found.get("suites", ())
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="cuda", help="cuda, rocm or xpu")
    parser.add_argument("--dry-run", action="store_true", help="torch on CPU and a tiny Llama")
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS, help="parts to leave out")
    parser.add_argument("--models", nargs="*", help="test models (default: all)")
    parser.add_argument("--layers", type=int, default=LLAMA_8B.layers, help="of the Llama")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1], help="for the Llama")
    parser.add_argument("--context", type=int, default=1024, help="tokens before a decode step")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of a prefill")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="to run the Llama")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="of each step, in s")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/history")
    return parser.parse_args()


def describe_machine(backend: str) -> Row:
    """What the figures are made on, printed."""
    seen = devices.by_torch()
    names = [f"{d['name']}, {d['memory_bytes'] / 2**30:.0f} GiB" for d in seen.get("devices", ())]
    versions = {**seen.get("versions", {}), "numpy": np.__version__}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {'; '.join(names) or 'no device'}"
    print(f"machine   {machine}")
    print(f"software  {', '.join(f'{name} {text}' for name, text in versions.items())}, ", end="")
    print(f"Python {platform.python_version()}\nbackend   {backend}\n", flush=True)
    return {"on": machine, "software": versions}


def run_suites(backend: str, timeout: float) -> list[Row]:
    """The conformance suite on 1 and 2 ranks, and the node tests: the end of what each prints.

    Where there is one device only, the ranks exchange through the host.
    """
    device = _device(backend)
    through = ["--collectives", "gloo"] if len(devices.by_torch().get("devices", ())) == 1 else []
    suites = {
        "conformance": ["backends.conformance", backend, "--ranks", "1,2", *through],
        "node tests": ["bench.torch_nodes", "--device", device],
    }
    found = []
    for name, words in suites.items():
        done = _call(words, timeout)
        text = (done.stdout if done.stdout.strip() else done.stderr).strip()
        print("\n".join(f"{name:12} {line}" for line in text.splitlines()[-40:]), flush=True)
        found.append({"suite": name, "status": done.returncode, "end": text.splitlines()[-2:]})
    print()
    return found


def run_models(backend: str, args: argparse.Namespace) -> list[Row]:
    """The table of the test models, printed."""
    usual = ["mlp-opset18"] if args.dry_run else MODELS
    print(f"{'model':24}{'dtype':>6}{'ranks':>6}  {'exchange':10}{'difference':>11}{'allowed':>9}")
    found = []
    for ranks, exchange in ((1, DEVICE), (2, DEVICE), (2, "gloo")):
        words = ["bench.gpu_models", backend, str(ranks), exchange, *(args.models or usual)]
        for row in _rows(words, args.timeout):
            row["exchange"] = exchange if ranks > 1 else "none"
            mark = "" if row["difference"] <= row["allowed"] else "  WRONG"
            print(
                f"{row['model']:24}{row['dtype']:>6}{ranks:>6}  {row['exchange']:10}"
                f"{row['difference']:>11.1e}{row['allowed']:>9.0e}{mark}",
                flush=True,
            )
            found.append(row)
    equal = sum(row["difference"] <= row["allowed"] for row in found)
    print(f"{len(found)} rows, {equal} equal\n", flush=True)
    return found


def run_llama(backend: str, args: argparse.Namespace) -> list[Row]:
    """The table of the Llama, printed."""
    works = works_of(args)
    device = _device(backend)
    (rates,) = _rows(["bench.gpu_peer", "rates", device], args.timeout)
    print(f"a copy moves {rates['bytes_per_second'] / 1e9:.0f} GB/s, ", end="")
    print(f"a matmul in bf16 does {rates['flops_per_second'] / 1e12:.2f} TFLOP/s")
    limits = {name: limit(LlamaShape(**sizes), rates) for name, sizes in works.items()}
    sizes = next(iter(works.values()))
    print(
        f"Llama in bf16, {sizes['layers']} layers of {sizes['hidden']}: decode after "
        f"{works['decode']['cache']} tokens, prefill of {works['prefill']['sequence']}\n"
        f"{'':26}{'work':10}{'median ms':>10}{'limit ms':>10}{'of limit':>10}{'load s':>8}"
    )
    found = [{"who": "rates", **rates}]
    given = json.dumps(works)
    with tempfile.TemporaryDirectory(prefix="tpcore-gpu-") as folder:
        for name, one in works.items():
            make_sharing(Path(folder, f"{name}.onnx"), "weights", one)
        for ranks in args.ranks:
            who = f"tpcore, {ranks} rank{'s' * (ranks > 1)}"
            words = ["bench.gpu_child", folder, given, backend, str(ranks), *args.ways]
            found += _timed(who, words, limits, args.timeout)
    for way in args.ways:
        words = ["bench.gpu_peer", way, device, given]
        found += _timed("transformers", words, limits, args.timeout)
    print()
    return found


def works_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Sizes of the decode step and of the prefill."""
    shape = TINY if args.dry_run else LLAMA_8B
    sizes = {field: getattr(shape, field) for field in shape.__dataclass_fields__}
    sizes["layers"] = min(args.layers, shape.layers)
    context, prompt = (16, 32) if args.dry_run else (args.context, args.prompt)
    return {
        "decode": {**sizes, "sequence": 1, "cache": context, "in_place": True},
        "prefill": {**sizes, "sequence": prompt, "cache": 0},
    }


def limit(shape: LlamaShape, rates: dict[str, float]) -> float:
    """Seconds that reading the weights once, or multiplying by them, takes at least."""
    wide = shape.heads * shape.head_size
    narrow = 2 * shape.kv_heads * shape.head_size
    layer = shape.hidden * (2 * wide + narrow + 3 * shape.intermediate)
    weights = shape.layers * layer + shape.hidden * shape.vocabulary
    cached = shape.layers * shape.cache * narrow
    reading = 2 * (weights + cached) / rates["bytes_per_second"]
    attention = 2 * shape.layers * wide * (shape.sequence / 2 + shape.cache)
    return max(reading, 2 * shape.sequence * (weights + attention) / rates["flops_per_second"])


def _timed(
    who: str, words: Sequence[str], limits: dict[str, float], timeout: float
) -> Iterator[Row]:
    for row in _rows(words, timeout):
        least, took, load = limits[row["work"]], row["seconds"], row.get("load_seconds", 0.0)
        print(
            f"{who + ', ' + row['way']:26}{row['work']:10}{took * 1e3:>10.2f}{least * 1e3:>10.2f}"
            f"{least / took:>10.0%}{load:>8.1f}",
            flush=True,
        )
        yield {"who": who, "limit_seconds": least, **row}


def _device(backend: str) -> str:
    return {"torch": "cpu", "rocm": "cuda"}.get(backend, backend)


def _rows(words: Sequence[str], timeout: float) -> list[Row]:
    """The JSON objects that a process of its own prints; why there are no more, if it fails."""
    done = _call(words, timeout)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        end = " ".join(done.stderr.strip()[-1500:].split())
        print(f"{' '.join(words)[:120]} ended with status {done.returncode}: {end}", flush=True)
    return found


def _call(words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """A module run by this Python; what it has printed, also where it takes too long."""
    line = [sys.executable, "-m", *words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            status = run_to_end(line, MANY_RANKS, timeout, out, err)
        except TurnFailed as error:
            status = -1
            err.write(str(error))
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
        return subprocess.CompletedProcess(line, status, *texts)


if __name__ == "__main__":
    sys.exit(main())
