"""Ranks that this process has started and talks to, until it lets them go or one of them fails."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graph.errors import BundleError, ExecutionError, TpcoreError

from .base import RankLauncher
from .flight import Failure, read_failure
from .keeper import Keeper
from .launch import leave, start
from .launcher_noise import Filter
from .links import SOCKET, Message, listen, pack, receive, send_packed
from .watch import GRACE_SECONDS, TICK_SECONDS, Watcher, told

Received = list[tuple[Message, int | None]]
"""Per rank its message, and the file that came with it."""


class StartedRanks:
    """The ranks of one job. They wait for messages without using a core, and end when we do."""

    def __init__(
        self,
        argv: Sequence[str],
        ranks: int,
        timeout_seconds: float,
        launcher: RankLauncher | None = None,
    ) -> None:
        """Start `argv`, whose ranks connect by `links.connect` and send {"rank": number} first.

        Raises what a rank that cannot start has to say.
        """
        self.run_dir = Path(tempfile.mkdtemp(prefix="tpcore-run-"))
        self._links: dict[int, socket.socket] = {}
        self._listener = listen(self.run_dir)
        self._watcher = Watcher(self.run_dir, ranks, timeout_seconds)
        self._is_open = True
        self._owed = True
        """Whether a rank may not have answered yet: it is anywhere in its program then."""
        try:
            self._process = start(argv, ranks, self.run_dir, os.environ, launcher)
        except BaseException:
            self._listener.close()
            (self.run_dir / SOCKET).unlink(missing_ok=True)
            self.run_dir.rmdir()
            raise
        self._keeper = Keeper(self.run_dir, ranks)
        self._filters = [
            Filter(s, sys.stderr) for s in (self._process.stdout, self._process.stderr)
        ]
        try:
            self._accept(ranks)
        except BaseException:
            self.close()
            raise
        self._owed = False

    def tell(self, message: Mapping[str, Any], file: int | None = None) -> None:
        """Send every rank a message; that one is gone will be told by `hear`."""
        self._owed = True
        packed = pack(message)  # once for all: the ranks begin as close together as can be
        for rank in sorted(self._links):
            with contextlib.suppress(OSError):
                send_packed(self._links[rank], packed, file)

    def hear(self) -> Received:
        """The next message of every rank. Raises ExecutionError or BundleError if one fails."""
        heard: dict[int, tuple[Message, int | None]] = {}
        waiting = {link.fileno(): rank for rank, link in self._links.items()}
        while len(heard) < len(self._links):
            for file in self._ready(waiting):
                rank = waiting.pop(file)
                received = receive(self._links[rank])
                if received is not None:  # else it is gone, and the watcher will say how
                    heard[rank] = received
        self._owed = False
        return [heard[rank] for rank in sorted(heard)]

    def close(self, failed: bool = False) -> None:
        """Let the ranks end, or end at once those that owe an answer; a failure leaves reports."""
        if not self._is_open:
            return
        self._is_open = False
        for link in (*self._links.values(), self._listener):
            link.close()
        (self.run_dir / SOCKET).unlink(missing_ok=True)
        if self._owed:
            self._watcher.poll(0)
            self._watcher.kill()
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        leave(self._process, self._watcher, self._keeper, keep_reports=failed)
        for stream in self._filters:
            stream.finish(GRACE_SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _accept(self, ranks: int) -> None:
        while len(self._links) < ranks:
            if self._ready([self._listener.fileno()]):
                link, _ = self._listener.accept()
                hello = receive(link)
                if hello is not None:
                    self._links[hello[0]["rank"]] = link

    def _ready(self, files: Sequence[int] | Mapping[int, int]) -> list[int]:
        """Wait for one of these files; the watcher is asked when a rank ends or a while passes."""
        poll = select.poll()
        for file in (*files, self._watcher.fileno()):
            poll.register(file, select.POLLIN)
        found = [file for file, _ in poll.poll(TICK_SECONDS * 1000)]
        if not found or self._watcher.fileno() in found:
            self._check()
        return [file for file in found if file in files]

    def _check(self) -> None:
        """Raise the job's failure, if it has failed or ended."""
        failure = self._watcher.poll(0)
        if failure is None and self._process.poll() is not None:
            failure = self._watcher.poll(0) or Failure(self._ended(), 3, agreed=True)
        if failure is not None:
            raise self._error(failure)

    def _ended(self) -> str:
        time.sleep(TICK_SECONDS)  # for what the launcher has to say of it
        noise = "".join(stream.noise for stream in self._filters).strip()
        said = f": {noise}" if noise else ""
        return (
            f"the ranks ended by themselves, {self._process.args!r} with status "
            f"{self._process.returncode}{said}. See stderr for the reason."
        )

    def _error(self, failure: Failure) -> TpcoreError:
        """End all ranks; the error that tells why."""
        self._watcher.end(failure)
        failure = read_failure(self.run_dir) or failure
        kind = ExecutionError if failure.status == ExecutionError.exit_status else BundleError
        text = told(failure, self.run_dir).removeprefix("error: ")
        self.close(failed=True)
        return kind(text)
