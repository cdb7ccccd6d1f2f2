"""What the ranks tell each other before the first collective, and what they refuse.

MPI itself notices neither ranks that run their collectives in another order nor ranks that disagree
on the reduction: it returns wrong data and status 0. Every rank always takes part, even to report
that it cannot run: a rank that stayed away would leave the others waiting.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import onnx_ir as ir

from graph.errors import BackendUnavailable, BundleError, ExecutionError, TpcoreError

from .base import Communicator
from .segments import Exchange, exchanges_of

T = TypeVar("T")


@dataclass(frozen=True)
class RankInfo:
    """What one rank is about to run."""

    bundle: str = ""
    """Identity of the bundle (or of the model and plan that were split in memory)."""
    format: str = ""
    """Format version of the bundle."""
    world_size: int = 1
    """Number of ranks that the graph was made for."""
    digest: str = ""
    """Digest of the sequence of collectives."""
    error: str = ""
    """Why this rank cannot run, as a whole message."""
    error_status: int = 2
    """Exit status that goes with `error`."""


def collective_sequence(model: ir.Model) -> list[str]:
    """One line per collective, in order: all that ranks must agree on."""
    return [describe(exchange) for exchange in exchanges_of(model)]


def describe(exchange: Exchange) -> str:
    """One collective as text: position, op, attributes, element type, node name."""
    op = exchange.op
    attributes = ", ".join(f"{f.name}={_text(getattr(op, f.name))}" for f in fields(op))
    return f"#{exchange.tag} {op.op_type}({attributes}) of {exchange.dtype} at '{exchange.node}'"


def digest(sequence: Sequence[str]) -> str:
    """Digest of a sequence of collectives."""
    return hashlib.sha256("\n".join(sequence).encode()).hexdigest()


def handshake(communicator: Communicator, info: RankInfo, sequence: Sequence[str] = ()) -> None:
    """Compare all ranks before anything runs; every rank raises the same error or none does.

    Raises:
        BundleError: the ranks hold different bundles or different sequences of collectives.
        ExecutionError: a rank failed with exit status 3 before it could start.
    """
    mine = RankInfo(**{**asdict(info), "digest": digest(sequence)})
    messages = communicator.exchange(json.dumps(asdict(mine)).encode())
    ranks = [RankInfo(**json.loads(message)) for message in messages]
    _check_errors(ranks)
    _check_world(ranks)
    _check_same(ranks, "bundle", "the bundle")
    _check_same(ranks, "format", "bundle format")
    _check_same(ranks, "world_size", "a graph for this many ranks:")
    if len({rank.digest for rank in ranks}) > 1:
        lists = communicator.exchange(json.dumps(list(sequence)).encode())
        raise _agreed(sequence_mismatch([json.loads(text) for text in lists]))


def prepare_together(
    communicator: Communicator, prepare: Callable[[], tuple[T, RankInfo, Sequence[str]]]
) -> T:
    """Prepare on every rank, then compare; an error of one rank becomes the error of all.

    `prepare` returns what it has made, and what to compare. Raises what `handshake` raises.
    """
    try:
        made, info, sequence = prepare()
    except Exception as error:
        status = error.exit_status if isinstance(error, TpcoreError) else 3
        text = str(error) if isinstance(error, TpcoreError) else f"{type(error).__name__}: {error}"
        handshake(communicator, RankInfo(error=text, error_status=status))
        raise
    handshake(communicator, info, sequence)
    return made


def agree(communicator: Communicator, make: Callable[[], T]) -> T:
    """What `make` makes, if it can on every rank; else BackendUnavailable on every rank."""
    made: list[T] = []
    said = ""
    try:
        made.append(make())
    except Exception as error:
        ours = isinstance(error, BackendUnavailable)
        said = str(error) if ours else f"{type(error).__name__}: {error}"
    refusals = [text.decode() for text in communicator.exchange(said.encode()) if text]
    if refusals:
        raise _agreed(BackendUnavailable(refusals[0]))
    return made[0]


def check_sequences(sequences: Sequence[Sequence[str]]) -> None:
    """Compare the sequences of all ranks in one process. Raises BundleError."""
    if any(list(sequence) != list(sequences[0]) for sequence in sequences):
        raise sequence_mismatch(sequences)


def sequence_mismatch(sequences: Sequence[Sequence[str]]) -> BundleError:
    """Say which ranks differ from the others, and the first entry in which they do."""
    keys = ["\n".join(sequence) for sequence in sequences]
    usual = _most_common(keys)
    reference = keys.index(usual)
    rank = next(rank for rank, key in enumerate(keys) if key != usual)
    ours, theirs = sequences[reference], sequences[rank]
    position = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs))
    )
    return BundleError(
        f"rank {rank} would run other collectives than rank {reference}. First difference at "
        f"position {position}: rank {rank} has {_entry(theirs, position)}, rank {reference} has "
        f"{_entry(ours, position)}. Write the bundle again, and give every rank the same one."
    )


def _entry(sequence: Sequence[str], position: int) -> str:
    return sequence[position] if position < len(sequence) else "none"


def _text(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


def _most_common(keys: Sequence[Any]) -> Any:
    """The key that most ranks have; of equals, the one of the lowest rank."""
    return Counter(keys).most_common(1)[0][0]


def _agreed(error: TpcoreError) -> TpcoreError:
    error.agreed = True
    return error


def _check_errors(ranks: Sequence[RankInfo]) -> None:
    failed = [rank for rank, info in enumerate(ranks) if info.error]
    if not failed:
        return
    first = ranks[failed[0]]
    same = all(info.error == first.error for info in ranks)
    names = ", ".join(map(str, failed))
    text = first.error if same else f"rank {names} cannot run: {first.error}"
    kind = ExecutionError if first.error_status == 3 else BundleError
    raise _agreed(kind(text))


def _check_world(ranks: Sequence[RankInfo]) -> None:
    made_for = ranks[0].world_size
    if made_for != len(ranks) and all(info.world_size == made_for for info in ranks):
        raise _agreed(
            BundleError(
                f"the bundle is split for {made_for} ranks but {len(ranks)} were started. "
                f"Start {made_for} ranks, or shard the model again with --tp {len(ranks)}."
            )
        )


def _check_same(ranks: Sequence[RankInfo], name: str, what: str) -> None:
    values = [getattr(info, name) for info in ranks]
    usual = _most_common(values)
    for rank, value in enumerate(values):
        if value != usual:
            raise _agreed(
                BundleError(
                    f"rank {rank} runs {what} '{value}' but rank {values.index(usual)} runs "
                    f"'{usual}'. Give every rank the same bundle."
                )
            )
