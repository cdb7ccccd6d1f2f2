"""The communicators that need no library: one rank alone, and all ranks in one process."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from graph.dialect import Collective

from .base import Tensor


class SingleCommunicator:
    """The only rank of its job: every collective is the identity."""

    rank = 0
    size = 1
    asynchronous = False

    def takes(self, tensor: Tensor) -> bool:
        """Nothing but numpy arrays."""
        return False

    def run(self, op: Collective, operand: Tensor, *, keep: bool = False) -> Tensor:
        """Return the operand, or a copy where somebody still reads that."""
        return operand.copy() if keep else operand

    def exchange(self, message: bytes) -> list[bytes]:
        """Return this rank's message."""
        return [message]

    def abort(self, status: int) -> None:
        """End this process at once."""
        os._exit(status)


def run_together(op: Collective, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run one collective for all ranks, by its meaning. One rank alone keeps its operand."""
    return list(operands) if len(operands) == 1 else op.meaning(operands)
