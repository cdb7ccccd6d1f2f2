"""What a session adds to a call: `python -m bench.session [--calls 1000] [--ranks 1 2]`.

Per number of ranks: time per call as the script sees it, the slowest rank's own time in it, and the
difference, medians over the calls. The model is the test Llama with a KV cache, a step on 8 tokens.
A machine with a core for every rank and one for the script shows the least.
"""

from __future__ import annotations

import argparse
import statistics
import time

from tests.models import GENAI, Inputs, model_inputs, model_path
from tpcore.partition import Options
from tpcore.session import InferenceSession


def main() -> None:
    """Print one line per number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    inputs = model_inputs(GENAI, "decode")
    print(f"{'ranks':>5} {'call':>10} {'rank':>10} {'added':>10}  of {args.calls} calls, median")
    for ranks in args.ranks:
        options = Options(ranks, split_outputs=["logits"])
        with InferenceSession(model_path(GENAI), options=options) as session:
            calls, own = measure(session, inputs, args.calls)
        added = statistics.median(call - rank for call, rank in zip(calls, own))
        times = (statistics.median(calls), statistics.median(own), added)
        print(f"{ranks:5}", *(f"{1e6 * seconds:7.0f} µs" for seconds in times))


def measure(
    session: InferenceSession, inputs: Inputs, calls: int
) -> tuple[list[float], list[float]]:
    """Seconds of every call, and the slowest rank's own seconds in it."""
    seconds, own = [], []
    for _ in range(calls + 10):
        before, began = session.rank_seconds, time.perf_counter()
        session.run(["logits"], inputs)
        seconds.append(time.perf_counter() - began)
        own.append(session.rank_seconds - before)
    return seconds[10:], own[10:]


if __name__ == "__main__":
    main()
