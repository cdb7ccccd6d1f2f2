"""`tpcore run` and `generate` that are told to end in the middle: nothing is left of them."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import big_model
from tests.models import GENAI, model_path
from tests.tpcore.command import command, environment, on_cores
from tests.tpcore.test_faults import LIMIT_SECONDS, LONG, Started, processes_with
from tpcore.partition import Options
from tpcore.shard import shard

STATUS = {signal.SIGINT: 3, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Commands that take seconds."""
    folder = tmp_path_factory.mktemp("long")
    bundle = shard(big_model.make(folder / "model.onnx", **LONG), folder / "b", Options(2)).path
    prompt = ["--prompt-ids", "1,2,3", "--max-new-tokens", "120"]
    return {
        "run": command("run", bundle),
        "run on torch": command("run", bundle, "--backend", "torch"),
        "generate": command("generate", model_path(GENAI), "--tp", 2, *prompt),
    }


CASES = [*((what, number) for what in ("run", "generate") for number in STATUS)]
CASES.append(("run on torch", signal.SIGKILL))


@pytest.mark.parametrize(("what", "number"), CASES)
def test_nothing_is_left_of_a_job_that_is_told_to_end(
    what: str, number: signal.Signals, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    """No process, no records, no shared memory, within ten seconds."""
    with on_cores(1):
        process = subprocess.Popen(
            commands[what], env=environment(TMPDIR=str(tmp_path)), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    job = Started(process, tmp_path, 2)
    shared = wait_for_the_middle(job)
    process.send_signal(number)
    deadline = time.monotonic() + LIMIT_SECONDS
    out, err = process.communicate(timeout=LIMIT_SECONDS)
    while left := list(processes_with(str(tmp_path))):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert process.returncode == STATUS[number], (out, err)
    assert not list(tmp_path.glob("tpcore-*"))
    assert not [path for path in shared if Path(path).exists()]


def wait_for_the_middle(job: Started) -> list[str]:
    """Wait until all ranks have run some collectives; the shared memory that MPI made for them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert job.process.poll() is None, job.process.communicate()
        states = job.states()
        if len(states) == job.ranks and all(s.started and s.entered > 6 for s in states):
            return [path for state in states for path in state.shared_memory]
        time.sleep(0.002)
    raise AssertionError("the ranks did not start")
