"""The benchmark's frame: turns, failures that cost one row, and the arithmetic of the figures."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import run
from bench.cases import CASES, Case
from bench.figures import Rounds, add_ratios, figures
from bench.peer import PYTHON, Peer
from bench.peers import OURS, all_peers
from bench.turns import MARK, TurnFailed, call

CASE = Case("tiny", "toy", tokens=2, outputs=3, hidden=4, layers=1, runs=3)
EXPECTED = np.array([1.0, 2.0, 4.0], np.float32)
SECONDS = 30.0
GOOD = """
import numpy as np, sys
from bench import child
def load(work):
    logits = np.array([[9, 9, 9], [1, 2, 4]], np.float32)
    return child.Ready(lambda: logits, lambda result: result)
child.main(load)
"""


@dataclasses.dataclass(frozen=True)
class Scripted(Peer):
    """A peer that is a piece of Python."""

    code: str = ""

    def turn_command(self, folder: str, out: str) -> list[str]:
        return [sys.executable, "-c", self.code, "turn", folder, out, "1"]


def peer(name: str, code: str = GOOD, **settings: Any) -> Scripted:
    usual = {"module": name, "packages": (), "forms": ("toy",), "why_not": "it is no toy"}
    return Scripted(name, f"peer {name}", code=code, **{**usual, **settings})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "case.json").write_text(json.dumps(dataclasses.asdict(CASE)))
    np.save(tmp_path / "expected.npy", EXPECTED)
    monkeypatch.setattr(run, "ready", lambda case: tmp_path)
    return tmp_path


def measured(*peers: Peer) -> tuple[dict[str, Any], dict[str, str]]:
    return run.measure(CASE, {each.name: each for each in peers}, rounds=2, timeout_seconds=SECONDS)


def test_a_peer_takes_its_turn_in_every_round(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, skipped = measured(peer("a"), peer("b"))
    assert not skipped and list(rows) == ["a", "b"]
    for row in rows.values():
        assert row["max_abs_diff"] == 0 and len(row["round_ms"]) == 2
        assert row["min_ms"] <= row["median_ms"] and row["held_bytes_per_rank"][0] > 1 << 20
    said = capsys.readouterr()
    assert [line.split()[-1] for line in said.err.splitlines()[1:]] == ["a", "b", "a", "b"]
    assert "peer a" in said.out and "OTHER LOGITS" not in said.out


def test_other_logits_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = measured(peer("a", GOOD.replace("[1, 2, 4]", "[1, 2, 5]")))
    assert rows["a"]["max_rel_diff"] == 0.25
    assert "OTHER LOGITS" in capsys.readouterr().out


def test_what_fails_costs_its_own_row_only(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, skipped = measured(
        peer("crash", "raise ValueError('no such kernel')"),
        peer("killed", "import os; os.kill(os.getpid(), 11)"),
        peer("silent", "pass"),
        peer("absent", packages=("tpcore-has-no-such-package",)),
        peer("other", forms=("llama",)),
        peer("good"),
    )
    assert list(rows) == ["good"]
    assert skipped == {
        "crash": "ValueError: no such kernel (status 1)",
        "killed": "it said nothing (ended by SIGSEGV)",
        "silent": "ended without an error and without rank-0.json",
        "absent": "not installed: pip install tpcore-has-no-such-package",
        "other": "it is no toy",
    }
    out = capsys.readouterr().out
    assert all(f"skipped: {reason}" in out for reason in skipped.values())


def test_a_row_that_ends_early_keeps_its_rounds(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = (
        "import os, sys\nif os.path.exists(sys.argv[2] + '/once'): sys.exit('error: only once')\n"
    )
    once += "open(sys.argv[2] + '/once', 'w').close()\n" + GOOD
    rows, skipped = measured(peer("a", once), peer("b"))
    assert len(rows["a"]["round_ms"]) == 1 and len(rows["b"]["round_ms"]) == 2
    assert skipped == {"a": "error: only once (status 1)"}
    assert "stopped" in capsys.readouterr().out


@pytest.mark.parametrize("ends", ["time.sleep(60)", "pass"])
def test_nothing_is_left_running(tmp_path: Path, ends: str) -> None:
    """Neither of what hangs nor of what ends but leaves a process in a session of its own."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n{ends}"
    )
    began = time.monotonic()
    if ends == "pass":
        call([sys.executable, "-c", code], {}, SECONDS)
    else:
        with pytest.raises(TurnFailed, match="did not end within 5 s"):
            call([sys.executable, "-c", code], {}, 5)
    assert time.monotonic() - began < 50
    assert not _is_running(int((tmp_path / "pid").read_text()))


def _is_running(pid: int) -> bool:
    try:
        return MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def test_a_missing_program_is_a_reason() -> None:
    with pytest.raises(TurnFailed, match="/no/such/python"):
        call(["/no/such/python"], {}, SECONDS)


def test_a_peer_may_have_its_own_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PYTHON}JAX", "/opt/jax/bin/python")
    peers = all_peers()
    assert peers["jax"].turn_command("f", "o")[0] == "/opt/jax/bin/python"
    assert peers["ort-1"].turn_command("f", "o")[0] == sys.executable
    assert "not installed" in peers["jax"].absent()


def test_ratios_are_of_rounds_not_of_medians() -> None:
    """A slow round slows both, so that its ratio counts like any other."""
    rows: dict[str, Any] = {
        OURS: {"round_ms": [10.0, 100.0, 12.0]},
        "a": {"round_ms": [20.0, 200.0, 6.0]},
        "b": {"round_ms": [30.0]},
    }
    add_ratios(rows, OURS)
    assert [row["times_ours"] for row in rows.values()] == [1.0, 2.0, 3.0]


def test_a_run_takes_as_long_as_its_slowest_process() -> None:
    def process(*seconds: float) -> dict[str, Any]:
        usual = {"load_seconds": seconds[0], "held_bytes": 5, "peak_bytes": 7, "peak_rss_bytes": 9}
        return {"seconds": list(seconds), **usual}

    turns = [[process(0.1, 0.4), process(0.3, 0.2)]]
    row = figures(Rounds(peer("a", processes=2), turns, EXPECTED), CASE, EXPECTED)
    assert (row["min_ms"], row["median_ms"]) == pytest.approx((300, 350))
    assert row["load_seconds"] == 0.3 and row["held_bytes_per_rank"] == [5, 5]
    assert row["tokens_per_second"] == pytest.approx(2 / 0.35)


def test_the_least_of_megatron() -> None:
    llama, vit = CASES["llama-prefill-128"], CASES["vit"]
    assert (llama.least_collectives(), vit.least_collectives()) == (34, 24)
    hidden, logits = 4 * 128 * 1024, 4 * 128 * 16384
    assert llama.least_bytes(2) == 33 * hidden + logits // 2
    assert vit.least_bytes(4) == 24 * 4 * 197 * 768 * 3 // 2


def test_every_case_has_ours_and_onnxruntime() -> None:
    peers = all_peers()
    for case in CASES.values():
        assert not any(peers[name].refuses(case) for name in (OURS, "ort-1", "ort-2"))
