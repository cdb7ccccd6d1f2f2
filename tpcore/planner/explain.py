"""Why a value is held as it is: what every other way to hold it would cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import onnx_ir as ir

from graph.errors import PlanError
from tpcore.planner.memory import memory_use
from tpcore.planner.options import Choices, placement_text
from tpcore.planner.problem import Problem


@dataclass(frozen=True)
class Alternative:
    """One way to hold a value, all else being the best there is for it."""

    placement: str
    seconds: float
    """Predicted time of one run of each workload, added up."""
    bytes_per_rank: float
    chosen: bool

    def to_json(self) -> dict[str, object]:
        """As one JSON object."""
        return {
            "placement": self.placement,
            "seconds": self.seconds,
            "bytes_per_rank": round(self.bytes_per_rank),
            "chosen": self.chosen,
        }


def explain(problem: Problem, price: float, chosen: Choices, name: str) -> list[Alternative]:
    """Every placement of the value `name`, the chosen one first, then by what they cost.

    Raises:
        PlanError: no value has this name.
    """
    value = _find(problem, name)
    found = []
    for index, place in enumerate(problem.options.hubs[value]):
        try:
            choices = _fixed(problem, value, index).solve(price)
        except PlanError:
            continue  # no strategy around it can read or write it so
        text = placement_text(problem.space.sharding(value, place))
        seconds = sum(c.seconds for c in choices)
        held = memory_use(problem, choices).total
        found.append(Alternative(text, seconds, held, place == chosen.hub[value]))
    return sorted(found, key=lambda a: (not a.chosen, a.seconds + price * a.bytes_per_rank))


def _fixed(problem: Problem, value: ir.Value, index: int) -> Problem:
    """The same problem with one value's placement given."""
    key = problem.key(0, value)
    costs = np.where(np.arange(problem.graph.sizes[key]) == index, problem.graph.unary[key], np.inf)
    graph = replace(problem.graph, unary={**problem.graph.unary, key: costs})
    return replace(problem, graph=graph)


def _find(problem: Problem, name: str) -> ir.Value:
    named = {value.name or "": value for value in problem.options.hubs}
    if name not in named:
        nearest = get_close_matches(name, list(named), n=1, cutoff=0.0)
        raise PlanError(
            f"--explain names '{name}', which is no value of the model. "
            + (f"The nearest name is '{nearest[0]}'." if nearest else "The model has none.")
        )
    return named[name]


def explanation_text(name: str, found: list[Alternative], price: float) -> str:
    """The alternatives as a table, and in words what decided."""
    best = found[0]
    lines = [
        f"'{name}' is held as {best.placement}. Each way to hold it, all else being best for it:",
        f"  {'time per run':>14}{'more':>12}{'per rank':>14}  placement",
    ]
    for one in found:
        more = one.seconds - best.seconds
        lines.append(
            f"{'>' if one.chosen else ' '} {one.seconds * 1e6:>11.1f} µs{more * 1e6:>+9.1f} µs"
            f"{one.bytes_per_rank / 2**20:>10.2f} MiB  {one.placement}"
        )
    lines.append(
        f"A MiB per rank is priced at {price * 2**20 * 1e6:.1f} µs per run; --memory changes that."
    )
    return "\n".join(lines)
