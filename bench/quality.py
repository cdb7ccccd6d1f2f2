"""How much of a model is split, by ours and by NVIDIA's `polygraphy multi-device shard`.

    python -m bench.quality [--quick] [--save]

For GPT-2, BERT and a Llama as torch and as onnxruntime-genai write it, on 2 ranks: the share of the
weight bytes that no rank holds whole, the largest rank's share of all bytes, and collectives beside
those of Megatron-LM's split. Nothing runs; polygraphy's files are for TensorRT alone.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from bench import history
from bench.cases import CASES, Case, ready
from bench.peer import Peer
from bench.turns import TurnFailed, call
from tests.genai_builder import build_genai
from tpcore.partition import Options
from tpcore.shard import split_model

RANKS = 2
TIMEOUT_SECONDS = 600
POLYGRAPHY = Peer(
    name="polygraphy",
    title="polygraphy multi-device shard",
    module="polygraphy",
    packages=("polygraphy", "onnx-graphsurgeon", "onnx"),
    forms=("llama", "gpt2", "bert"),
    why_not="",
)
MODELS = {
    "GPT-2": "gpt2",
    "BERT": "bert",
    "Llama by torch": "llama-prefill-128",
    "Llama by genai": "llama-prefill-128",
}


@dataclass(frozen=True)
class Quality:
    """What a split amounts to."""

    split: float
    """Share of the weight bytes of which every rank holds only a part."""
    largest: float
    """The largest rank's share of all bytes."""
    collectives: int


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="models of two layers")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/history")
    args = parser.parse_args()
    print(f"{'model':18}{'tool':17}{'split':>8}{'largest rank':>14}{'collectives':>13}{'least':>7}")
    rows: dict[str, dict[str, dict[str, float] | str]] = {}
    for name, case_name in MODELS.items():
        case = CASES[case_name].small() if args.quick else CASES[case_name]
        model = _model(name, case)
        rows[name] = {}
        for tool, split in TOOLS.items():
            try:
                found = split(model)
            except TurnFailed as error:
                print(f"{name:18}{tool:17}skipped: {error}")
                rows[name][tool] = str(error)
                continue
            least = case.least_collectives()
            print(
                f"{name:18}{tool:17}{found.split:>8.1%}{found.largest:>14.1%}"
                f"{found.collectives:>13}{least:>7}",
                flush=True,
            )
            rows[name][tool] = asdict(found) | {"least_collectives": least}
    if args.save:
        print(history.save("quality", {"rows": rows, "polygraphy": POLYGRAPHY.versions()}))
    return 0


def _model(name: str, case: Case) -> Path:
    folder = ready(case)
    if not name.endswith("genai"):
        return folder / "model.onnx"
    built = folder.parent / "genai-fp32"
    if not built.exists():
        build_genai(folder.parent / "hf", built, "fp32")
    return built / "model.onnx"


def ours(model: Path, plan: str) -> Quality:
    """By one of our plans."""
    report = split_model(model, Options(RANKS, plan=plan)).report
    return Quality(
        report["split_fraction"],
        max(report["weight_bytes_per_rank"]) / report["weight_bytes_total"],
        sum(report["collectives"].values()),
    )


def polygraphy(model: Path) -> Quality:
    """Run its command and read the files it writes. Raises TurnFailed."""
    if POLYGRAPHY.absent():
        raise TurnFailed(POLYGRAPHY.absent())
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as scratch:
        options = ["--one-shot", "--parallelism", "TP", "--gpus", str(RANKS)]
        options += ["--nb-rank", str(RANKS), "-o", str(Path(scratch, "model.onnx"))]
        program = Path(POLYGRAPHY.python).with_name("polygraphy")
        tool = [str(program), "multi-device", "shard", str(model)]
        call([*tool, *options], {}, TIMEOUT_SECONDS)
        files = [Path(scratch, f"model_tp{RANKS}_rank{rank}.onnx") for rank in range(RANKS)]
        return measured(model, [ir.load(file) for file in files])


def measured(model: Path, ranks: list[ir.Model]) -> Quality:
    """Compare the ranks' weights with the model's, by name."""
    whole = dict(_weights(ir.load(model)))
    parts = [dict(_weights(rank)) for rank in ranks]
    total = sum(whole.values())
    split = sum(
        size for name, size in whole.items() if all(part.get(name, 0) < size for part in parts)
    )
    collectives = Counter(node.op_type for node in ranks[0].graph)["DistCollective"]
    return Quality(split / total, max(sum(part.values()) for part in parts) / total, collectives)


def _weights(model: ir.Model) -> Iterator[tuple[str, int]]:
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            tensor = value.const_value
            yield name, math.ceil(math.prod(tensor.shape.numpy()) * tensor.dtype.itemsize)


TOOLS: dict[str, Callable[[Path], Quality]] = {
    "tpcore auto": partial(ours, plan="auto"),
    "tpcore megatron": partial(ours, plan="megatron"),
    "polygraphy": polygraphy,
}


if __name__ == "__main__":
    sys.exit(main())
