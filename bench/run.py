"""What a split model costs on this machine beside other libraries with the same work.

    python -m bench.run [--cases llama-decode ...] [--peers tpcore ort-2 ...] [--rounds 5] [--save]
    python -m bench.run --quick          two layers and two rounds: does everything still run?
    python -m bench.run --list           names of cases and peers, and which peers are installed

Every peer of a case takes its turn in each round, in fresh processes, one at a time: it loads,
makes two runs to warm up and some timed ones. Printed are the minimum and median over all runs, and
the median over the rounds of a peer's time over ours. bench/README.md tells the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench import history
from bench.cases import CASES, Case, ready
from bench.figures import (
    Figures,
    Rounds,
    add_ratios,
    figures,
    print_split,
    print_table,
    split_figures,
)
from bench.peer import Peer
from bench.peers import OURS, all_peers, ours
from bench.turns import TurnFailed, call, turn

QUICK_ROUNDS = 2


def main() -> int:
    """Run all cases and print their tables; the status is 1 if ours has no row in one."""
    args = _arguments()
    if args.list:
        return _print_list()
    peers = all_peers()
    chosen = {name: peers[name] for name in args.peers or peers}
    broken = 0
    for name in args.cases:
        case = CASES[name].small() if args.quick else CASES[name]
        rows, skipped = measure(case, chosen, args.rounds, args.timeout)
        broken += OURS in skipped
        if args.save:
            _save(case, args.rounds, rows, skipped)
    return int(broken > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--peers", nargs="*", choices=all_peers(), metavar="PEER")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="two layers: the figures mean nothing")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one turn")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/history")
    parser.add_argument("--list", action="store_true", help="name cases and peers, run nothing")
    args = parser.parse_args()
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else 5)
    if args.quick and args.save:
        parser.error("figures of --quick mean nothing: leave out --save.")
    return args


def _print_list() -> int:
    print("cases  " + " ".join(CASES))
    for peer in all_peers().values():
        found = ", ".join(f"{name} {text}" for name, text in peer.versions().items())
        print(f"{peer.name:14} {peer.title:40} {peer.absent() or found}")
    return 0


def measure(
    case: Case, peers: Mapping[str, Peer], rounds: int, timeout_seconds: float
) -> tuple[dict[str, Figures], dict[str, str]]:
    """Take all turns and print the table: figures, and reasons of those without, by peer."""
    print(f"{case.name}: making models and files", file=sys.stderr, flush=True)
    folder = ready(case)
    found = {name: Rounds(peer) for name, peer in peers.items()}
    for each in found.values():
        each.reason = _prepared(each.peer, case, folder, timeout_seconds)
    with tempfile.TemporaryDirectory(prefix="tpcore-bench-") as out:
        for number in range(rounds):
            for each in found.values():
                if not each.reason:
                    _say(case, number, rounds, each.peer)
                    _take_turn(each, folder, Path(out), timeout_seconds)
    expected = np.load(folder / "expected.npy")
    rows = {name: figures(each, case, expected) for name, each in found.items() if each.turns}
    add_ratios(rows, OURS)
    skipped = {name: each.reason for name, each in found.items() if each.reason}
    print_table(case, rows, skipped, os.getloadavg()[0])
    for name in (peer.name for peer in ours.PEERS if peer.name in rows):
        rows[name]["split"] = split_figures(ours.report_of(found[name].peer, case, folder), case)
        print_split(rows[name])
    sys.stdout.flush()
    return rows, skipped


def _prepared(peer: Peer, case: Case, folder: Path, timeout_seconds: float) -> str:
    """Make the peer's files: why that cannot be, or nothing."""
    reason = peer.refuses(case) or peer.absent()
    if reason or not peer.is_prepared:
        return reason
    try:
        call(peer.prepare_command(str(folder)), peer.environment, 4 * timeout_seconds)
    except TurnFailed as error:
        return f"its files could not be made: {error}"
    return ""


def _take_turn(rounds: Rounds, folder: Path, out: Path, timeout_seconds: float) -> None:
    peer = rounds.peer
    command = peer.turn_command(str(folder), str(out))
    environment = {"OMP_NUM_THREADS": str(peer.threads), **peer.environment}
    try:
        processes, rounds.logits = turn(command, environment, timeout_seconds, out, peer.processes)
    except TurnFailed as error:
        rounds.reason = str(error)
        return
    rounds.turns.append(processes)


def _say(case: Case, number: int, rounds: int, peer: Peer) -> None:
    print(f"{case.name}: round {number + 1} of {rounds}, {peer.name}", file=sys.stderr, flush=True)


def _save(case: Case, rounds: int, rows: dict[str, Figures], skipped: dict[str, str]) -> None:
    line = {"case": case.name, "layers": case.layers, "rounds": rounds}
    print(history.save("peers", {**line, "rows": rows, "skipped": skipped}))


if __name__ == "__main__":
    sys.exit(main())
