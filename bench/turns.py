"""Start a process, wait for it only so long, and leave nothing of it running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.cases import ROOT

MARK = "TPCORE_BENCH_TURN"
"""In the environment of all that one call starts, so that what is left of it can be found."""
GRACE_SECONDS = 3.0
_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?([\w.]*(?:Error|Exception|Refused)\b.*|error: .*)")


class TurnFailed(Exception):
    """One line about why a process gave no figures."""


def call(command: Sequence[str], environment: Mapping[str, str], timeout_seconds: float) -> None:
    """Run a command to its end. Raises TurnFailed with its last error in one line."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        status = run_to_end(command, environment, timeout_seconds, log, subprocess.STDOUT)
        log.seek(0)
        if status:
            raise TurnFailed(_reason(log.read(), status))


def run_to_end(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout_seconds: float,
    out: IO[str],
    err: IO[str] | int,
) -> int:
    """The status of a command, and nothing of it running. Raises TurnFailed if it takes longer."""
    mark = uuid.uuid4().hex
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    except OSError as error:
        raise TurnFailed(f"{command[0]}: {error.strerror}") from None
    try:
        return process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        raise TurnFailed(f"did not end within {timeout_seconds:.0f} s") from None
    finally:
        end_all(process, mark)


def turn(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout_seconds: float,
    out: Path,
    processes: int,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What every process of one turn found, and the logits. Raises TurnFailed."""
    for old in out.iterdir():
        old.unlink()
    call(command, environment, timeout_seconds)
    found = [out / f"rank-{rank}.json" for rank in range(processes)]
    missing = [file.name for file in found if not file.exists()]
    if missing:
        raise TurnFailed(f"ended without an error and without {', '.join(missing)}")
    return [json.loads(file.read_text()) for file in found], np.load(out / "logits.npy")


def end_all(process: subprocess.Popen[Any], mark: str) -> None:
    """End the process, its group and all that carries its mark, politely first."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal_number)
        for pid in marked(mark):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and (process.poll() is None or marked(mark)):
            time.sleep(0.02)
    process.wait()


def marked(mark: str) -> list[int]:
    """Processes that have the mark in their environment and are not ended already."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _reason(text: str, status: int) -> str:
    """The last line of a log that looks like an error, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _ERROR.match(line))]
    # torchrun says after a rank's own error that a child failed, which tells nothing.
    own = [line for line in errors if "ChildFailedError" not in line]
    last = ([*lines[-1:], *errors[-1:], *own[-1:]] or ["it said nothing"])[-1][:300]
    ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return f"{last} ({ended})"
