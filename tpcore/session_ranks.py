"""The ranks of a session, each in a process of its own: what they are told, and what they do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from backends import registry
from backends.base import Backend, BackendOptions
from backends.job import RUN_DIR
from backends.links import Mapped, Message, Written, connect, receive, send
from backends.placement import detect_environment
from backends.rank_main import rank_main
from backends.started import StartedRanks
from graph.errors import ExecutionError, PlanError
from tpcore.partition import Options
from tpcore.ranks import gathered, join_job, run_arrays
from tpcore.run import python_command
from tpcore.target import Target, open_target

Arrays = Mapping[str, np.ndarray]


class Outside:
    """Ranks that this process has started, and what it says to them."""

    def __init__(
        self,
        target: Target,
        backend: Backend,
        asked: BackendOptions,
        options: Options | None,
        timeout_seconds: float,
    ) -> None:
        self.seconds = 0.0
        """Time that the slowest rank has spent in runs so far."""
        self._target = target
        self._inputs = Written()
        argv = python_command("tpcore.session_ranks")
        self._ranks = StartedRanks(
            argv, target.world_size, timeout_seconds, backend.find_launcher()
        )
        setup = {
            "target": os.path.abspath(target.name),
            "options": None if options is None else _as_json(options),
            "backend": backend.name,
            "asked": asdict(asked),
            "timeout_seconds": timeout_seconds,
        }
        self._ranks.tell(setup, self._inputs.file)
        self._outputs = [Mapped(file) for _, file in self._ranks.hear() if file is not None]

    def run(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Whole outputs of these names from whole inputs. Raises ExecutionError."""
        _refuse_text(inputs)
        program = self._target.program_for(inputs)
        call = {
            "program": program.name,
            "inputs": self._inputs.write(inputs),
            "outputs": list(names),
        }
        self._ranks.tell(call)
        answers = [answer for answer, _ in self._ranks.hear()]
        self.seconds = max(answer["seconds"] for answer in answers)
        parts = [m.read(answer["outputs"]) for m, answer in zip(self._outputs, answers)]
        return gathered(program, parts)

    def close(self) -> None:
        """End the ranks."""
        self._ranks.close()
        self._inputs.close()
        for mapped in self._outputs:
            mapped.close()


def _as_json(options: Options) -> Message:
    message: Message = json.loads(json.dumps(asdict(replace(options, dump=None))))
    return message


def _refuse_text(arrays: Arrays) -> None:
    text = [f"'{name}'" for name, array in arrays.items() if array.dtype.kind in "OSU"]
    if text:
        raise PlanError(
            f"{' and '.join(text)} hold text, which does not go to ranks in other processes. "
            "Use backend='simulate'."
        )


def serve() -> int:
    """Be one rank of a session until its owner is gone."""
    link = connect(Path(os.environ[RUN_DIR]))
    send(link, {"rank": detect_environment().rank})
    setup = receive(link)
    said, file = setup or ({}, None)
    if file is None:
        return 0
    options = None if said["options"] is None else Options(**said["options"])
    ranks = join_job(
        lambda: open_target(Path(said["target"]), options),
        registry.get(said["backend"], BackendOptions(**said["asked"])),
        lambda target: [program.name for program in target.programs],
        said["timeout_seconds"],
    )
    inputs, outputs = Mapped(file), Written()
    programs = {program.name: program for program in ranks.target.programs}
    send(link, {}, outputs.file)
    while (call := receive(link)) is not None:
        said = call[0]
        program = programs[said["program"]]
        whole = inputs.read(said["inputs"])
        [made] = run_arrays(ranks, program, whole, said["outputs"])
        wrong = [name for name, array in made.items() if not isinstance(array, np.ndarray)]
        if wrong:
            raise ExecutionError(
                f"output '{wrong[0]}' is no tensor, which does not come from ranks in other "
                "processes. Use backend='simulate'."
            )
        send(link, {"outputs": outputs.write(made), "seconds": ranks.seconds})
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(serve))
