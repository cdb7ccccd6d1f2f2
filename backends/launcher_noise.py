"""Pass on what ranks write, without what MPI's launchers add when ranks end abnormally.

The user sees one message, ours; the launcher's is kept for the case that we have none.
"""

from __future__ import annotations

import os
import threading
from typing import IO, TextIO

_STARTS = (
    "=",
    "Abort(",
    "application called MPI_Abort",
    "YOUR APPLICATION TERMINATED",
    "This typically refers to",
    "Please see the FAQ page",
    "[proxy:",
    "[mpiexec@",
    "----------",
    "MPI_ABORT was invoked",
    "  Proc: [",
    "with errorcode",
    "NOTE: invoking MPI_ABORT",
    "You may or may not see",
    "exactly when Open MPI",
    "prterun ",
    "  Errorcode",
    '"abort"',
    "terminated by signals",
    "thus causing the job",
    "   Process name:",
    "   Exit code:",
    "signal ",
    "on node ",
    "Fatal error in ",
    "internal_",
    "MPIR_",
    "MPID",
    "MPIDI",
    "MPII",
)
"""How lines of MPICH's and Open MPI's launchers begin; a program may begin lines like that too."""
_MARKS = (
    "BAD TERMINATION",
    "MPI_Abort",
    "MPI_ABORT",
    "YOUR APPLICATION TERMINATED",
    "[proxy:",
    "[mpiexec@",
    "prterun noticed",
    "prterun detected",
    "prterun has exited",
    "Fatal error in ",
)
"""What a run of such lines must contain somewhere to be the launcher's."""


class Filter:
    """Copies a stream as it comes, in a thread of its own."""

    def __init__(self, source: IO[bytes] | None, target: TextIO) -> None:
        self.noise = ""
        """What the launcher said."""
        self._target = target
        self._held = ""
        """Complete lines that may be the launcher's."""
        self._inside = False
        """Whether the line that comes next continues one that was passed on."""
        self.error: Exception | None = None
        """Why the target takes nothing any more."""
        self._thread = threading.Thread(target=self._copy, args=(source,), daemon=True)
        self._thread.start()

    def finish(self, timeout_seconds: float) -> None:
        """Wait until everything has been passed on."""
        self._thread.join(timeout_seconds)

    def _copy(self, source: IO[bytes] | None) -> None:
        if source is None:
            return
        rest = ""
        while chunk := os.read(source.fileno(), 1 << 16):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            for line in lines:
                self._line(line + "\n")
            if rest and not self._held and (self._inside or not _may_start_noise(rest)):
                self._write(rest)
                self._inside, rest = True, ""
        self._line(rest)
        self._release()

    def _line(self, line: str) -> None:
        if not self._inside and (line.strip() == "" or _may_start_noise(line)):
            self._held += line
            return
        self._release()
        self._write(line)
        self._inside = False

    def _release(self) -> None:
        """Decide whether the lines held back were the launcher's."""
        after_noise = self.noise != "" and not self._held.strip()
        if after_noise or any(mark in self._held for mark in _MARKS):
            self.noise += self._held
        else:
            self._write(self._held)
        self._held = ""

    def _write(self, text: str) -> None:
        if text and self.error is None:
            try:
                self._target.write(text)
                self._target.flush()
            except (OSError, ValueError) as error:
                self.error = error  # read on, or the ranks would wait for us


def _may_start_noise(text: str) -> bool:
    """Whether a line that begins with `text` can be the launcher's."""
    return any(text.startswith(start) or start.startswith(text) for start in _STARTS)
