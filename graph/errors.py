"""Every error tpcore raises on purpose, and the exit status the command line gives it.

A message is one sentence what, one where with the numbers on both sides, one what to do.
"""

from __future__ import annotations

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended before it had ranks, as shells have it."""


class TpcoreError(Exception):
    """Base of all errors meant for the user: the message is complete, a traceback adds nothing."""

    exit_status = 2
    """Process exit status of the command line (2: bad input or request, 3: execution failed)."""
    agreed = False
    """Whether every rank raises this same error, so that no rank needs to end the others."""


class GraphError(TpcoreError):
    """The model is not a usable ONNX graph."""


class PlanError(TpcoreError):
    """The request (tp, plan, pattern, memory) cannot be met for this model."""


class BundleError(TpcoreError):
    """The files of a bundle are missing, damaged or do not fit together."""


class BackendUnavailable(TpcoreError):
    """The backend asked for cannot run on this machine."""


class ExecutionError(TpcoreError):
    """A rank failed, died or stopped answering while the program ran."""

    exit_status = 3


class VerifyError(TpcoreError):
    """An invariant of our own IR is broken: a bug of tpcore, not of the user's model."""

    exit_status = 3
