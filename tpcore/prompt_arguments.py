"""Arguments of `tpcore generate`: what to continue, and how to choose tokens."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path


def token_ids(text: str) -> list[int]:
    """`1,2,3`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ArgumentTypeError(f"'{text}' is no list of token ids: write 1,2,3")
    return [int(part) for part in parts]


def count(text: str) -> int:
    """`64`."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is no count: it must be a whole number, 1 or more")
    return int(text)


def seed(text: str) -> int:
    """`0`."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"'{text}' is no seed: it must be a whole number, 0 or more")
    return int(text)


def temperature(text: str) -> float:
    """`0.7`."""
    return _number(text, 0.0, 1e4, "temperature", "a number from 0 (the likeliest token) on")


def probability(text: str) -> float:
    """`0.9`."""
    value = _number(text, 0.0, 1.0, "probability", "a number above 0, up to 1")
    if value == 0:
        raise ArgumentTypeError(f"'{text}' is no probability: give a number above 0, up to 1")
    return value


def _number(text: str, low: float, high: float, what: str, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise ArgumentTypeError(f"'{text}' is no {what}: give {wanted}")
    return value


def add_prompts(parser: ArgumentParser) -> None:
    """What to continue."""
    group = parser.add_argument_group("the prompts")
    group.add_argument(
        "--prompt-ids",
        type=token_ids,
        action="append",
        default=[],
        metavar="ID,…",
        help="token ids to continue; may be repeated for several rows, which may differ in length",
    )
    group.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to continue, by the tokenizer.json beside the model or bundle; may be repeated",
    )
    group.add_argument("--tokenizer", type=Path, metavar="FILE", help="another tokenizer.json")
    group.add_argument(
        "--max-new-tokens", type=count, default=64, metavar="N", help="tokens to add (default: 64)"
    )
    group.add_argument(
        "--stop-ids",
        type=token_ids,
        metavar="ID,…",
        help="tokens that end a row (default: for --prompt those that the model's settings name)",
    )


def add_sampling(parser: ArgumentParser) -> None:
    """How to choose tokens."""
    group = parser.add_argument_group("the choice of tokens")
    group.add_argument(
        "--temperature",
        type=temperature,
        metavar="T",
        help="0 takes the likeliest token; 1 draws as the model says, more is bolder (default: 1 "
        "with any of the following, else 0)",
    )
    group.add_argument(
        "--top-k", type=count, metavar="K", help="draw from so many of the likeliest tokens"
    )
    group.add_argument(
        "--top-p",
        type=probability,
        metavar="P",
        help="draw from the likeliest tokens that together have this probability",
    )
    group.add_argument(
        "--seed",
        type=seed,
        metavar="S",
        help="one seed gives one text, on any backend and number of ranks (default: 0)",
    )
