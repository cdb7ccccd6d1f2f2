"""Arguments that several commands share, and their texts as values.

argparse shows the message of what is refused.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from tpcore.workload import DECODE, PREFILL

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def number_of_ranks(text: str) -> int:
    """`4`."""
    if not re.fullmatch("0*[1-9][0-9]*", text):
        raise ArgumentTypeError(
            f"'{text}' is no number of ranks: it must be a whole number, 1 or more"
        )
    return int(text)


def numbers_of_ranks(text: str) -> list[int]:
    """`1,2,4`; one named twice counts once."""
    return list(dict.fromkeys(number_of_ranks(item) for item in text.split(",")))


def sizes(text: str) -> dict[str, int]:
    """`batch=1,sequence=128`."""
    return _counts(text, "size of a dim", "--shape batch=1,sequence=128")


def workload(text: str) -> dict[str, int]:
    """`prefill=2048,decode=256`."""
    example = f"--workload {PREFILL}=2048,{DECODE}=256"
    counts = _counts(text, "number of tokens", example)
    if set(counts) != {PREFILL, DECODE} or not all(counts.values()):
        raise ArgumentTypeError(f"'{text}' does not give tokens of both kinds: write {example}")
    return counts


def _counts(text: str, what: str, example: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if not name.strip() or not size.strip().isdigit():
            raise ArgumentTypeError(f"'{item}' is no {what}: write {example}")
        if name.strip() in found:
            raise ArgumentTypeError(f"'{text}' names '{name.strip()}' twice: leave one out")
        found[name.strip()] = int(size)
    return found


def pin(text: str) -> tuple[str, str]:
    """`*.q_proj*=colwise`."""
    pattern, _, word = text.rpartition("=")
    if not pattern.strip() or not word.strip():
        raise ArgumentTypeError(f"'{text}' is no pin: write --pin '*.q_proj*=colwise'")
    return pattern.strip(), word.strip()


def bytes_count(text: str) -> int:
    """`16GiB`, `800MB` or `1e9`."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    try:
        count = float(match.group(1)) if match else 0.0
    except ValueError:
        count = 0.0
    if match is None or not 0 < count < 1e18:
        raise ArgumentTypeError(f"'{text}' is no amount of memory: write 16GiB, 800MB or a number")
    return int(count * {**UNITS, **BINARY}[match.group(2) or ""])


def seconds(text: str) -> float:
    """`2.5`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise ArgumentTypeError(f"'{text}' is no time: give seconds above 0")
    return value


def add_model(parser: ArgumentParser) -> None:
    """The ONNX file."""
    parser.add_argument("model", type=Path, help="ONNX file; its weights may lie beside it")


def add_steering(parser: ArgumentParser) -> None:
    """What decides a plan besides the model and the number of ranks."""
    group = parser.add_argument_group("the plan")
    group.add_argument(
        "--plan",
        default="annotated",
        metavar="P",
        help="annotated: as the model's device annotations say, if it has any, else auto; "
        "auto: the cheapest; megatron: exchanging by AllReduce; colwise, rowwise, replicate: "
        "all weights one way, to compare with; or a file: a plan, or pins as JSON, Hugging Face's "
        "tp_plan among them (default: annotated)",
    )
    group.add_argument(
        "--pin",
        type=pin,
        action="append",
        default=[],
        metavar="PATTERN=HOW",
        help="hold the weights of matching names, nodes or modules as told: colwise, rowwise, "
        "replicate, or a placement such as S(1); may be repeated",
    )
    group.add_argument(
        "--topology",
        default="cpu",
        metavar="T",
        help="what the ranks run on: a name, or a file of tpcore calibrate (default: cpu)",
    )
    group.add_argument(
        "--memory",
        type=bytes_count,
        metavar="SIZE",
        help="what a rank may hold, e.g. 16GiB: weights, caches and activations",
    )
    group.add_argument(
        "--workload",
        type=workload,
        default={},
        metavar="prefill=N,decode=M",
        help="plan a decoder's prefill of N tokens and M decode steps together, over one layout of "
        "the weights",
    )
    group.add_argument(
        "--keep-split",
        action="append",
        default=[],
        metavar="OUTPUT",
        help="let every rank keep its part of an output instead of gathering it, e.g. logits, from "
        "whose parts tpcore generate samples; may be repeated",
    )
    group.add_argument(
        "--shape",
        type=sizes,
        default={},
        metavar="DIM=SIZE,…",
        help="sizes of the model's symbolic dims to plan for, e.g. batch=1,sequence=128",
    )


def add_tp(parser: ArgumentParser, required: bool) -> None:
    """How many ranks."""
    parser.add_argument(
        "--tp",
        "--tensor-parallel-size",
        dest="tp",
        type=number_of_ranks,
        required=required,
        metavar="N",
        help="number of ranks to split over",
    )


def add_backend_options(parser: ArgumentParser) -> None:
    """What the backend is asked for."""
    group = parser.add_argument_group("the backend")
    group.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        help="compute in this type instead of the model's own (torch and devices)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile before the first run: slower to start, faster to run (torch and devices)",
    )
    group.add_argument(
        "--collectives",
        choices=("gloo", "mpi"),
        help="exchange through the host's memory, whatever the device",
    )


def add_shape(parser: ArgumentParser) -> None:
    """Sizes of symbolic dims."""
    parser.add_argument(
        "--shape",
        type=sizes,
        default={},
        metavar="DIM=SIZE,…",
        help="sizes of the model's symbolic dims, e.g. batch=1,sequence=128",
    )


def add_target(parser: ArgumentParser) -> None:
    """What to run, and on what."""
    parser.add_argument("target", type=Path, help="bundle, or ONNX file with --tp")
    parser.add_argument("--backend", default="cpu", help="see tpcore doctor (default: cpu)")
    add_backend_options(parser)
    add_tp(parser, required=False)
    add_steering(parser)
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=300.0,
        metavar="S",
        help="seconds a rank may wait for the others before the job is ended (default: 300)",
    )


def add_trace(parser: ArgumentParser, note: str = "") -> None:
    """A timeline of all ranks."""
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="JSON",
        help=f"where to write when each rank was in which step, for ui.perfetto.dev{note}",
    )


def add_json(parser: ArgumentParser) -> None:
    """Output for programs."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
