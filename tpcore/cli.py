"""The command line. Output for people on stdout, one JSON object with --json; all else on stderr.

Exit status: 0 done; 1 verification found a difference; 2 bad input or request; 3 execution failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from graph.errors import INTERRUPTED, PlanError, TpcoreError
from tpcore import arguments, prompt_arguments

DESCRIPTION = "Split an ONNX model over n ranks by tensor parallelism, run it, prove it equal."
EXAMPLES = """examples:
  tpcore demo                                            split, run and prove a small Llama
  tpcore shard model.onnx --tp 4 -o bundle               write one graph per rank
  tpcore plan model.onnx --tp 4 --annotate tp4.onnx      write the plan into the model, as ONNX does
  tpcore inspect bundle                                  memory per rank, collectives, what is whole
  tpcore verify bundle --against model.onnx              prove that it computes the same
  tpcore run bundle --inputs x.npz --outputs y.npz       run it on 4 MPI ranks of this machine
  mpirun -n 4 tpcore run bundle --inputs x.npz           the same, started by mpirun
  tpcore generate bundle --prompt-ids 1,2,3              continue tokens, or text with --prompt

exit status: 0 done, 1 verification found a difference, 2 bad input or request, 3 execution failed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if words[:1] in (["run"], ["generate"], ["calibrate"]):
        from backends.rank_main import rank_main

        return rank_main(lambda: _command_status(words))
    try:
        return _command_status(words)
    except TpcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        text = " ".join(str(error).split())
        print(
            f"error: {words[0]} failed: {type(error).__name__}: {text}. This is a fault of "
            "tpcore: please report it with what the same command prints with --debug.",
            file=sys.stderr,
        )
        return 3


def _command_status(words: list[str]) -> int:
    """Parse and run a command; what the system refuses becomes an error of ours."""
    args = build_parser().parse_args(words)
    args.argv = words
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        if not isinstance(error, OSError):
            raise
        where = f" '{error.filename}'" if error.filename else ""
        raise PlanError(f"the system refused{where}: {error.strerror or error}.") from error


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said."""

    def error(self, message: str) -> NoReturn:
        """Raise PlanError."""
        raise PlanError(f"{message}. See {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="tpcore",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in ADDERS:
        add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from tpcore.manifest import tool_version

        print(f"tpcore {tool_version()}")
        parser.exit(0)


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback where one fails")
    parser.set_defaults(run=_lazily(name))
    return parser


def _lazily(name: str):  # type: ignore[no-untyped-def]
    def run(args: argparse.Namespace) -> int:
        from tpcore import commands

        return commands.COMMANDS[name](args)

    return run


def _add_plan(commands: Commands) -> None:
    parser = _command(
        commands,
        "plan",
        "show how a model would be split and whether it is worth it, without reading its weights",
        "tpcore plan model.onnx --tp 1,2,4,8 --topology h100-nvlink --memory 80GB --html plan.html",
    )
    arguments.add_model(parser)
    parser.add_argument(
        "--tp",
        "--tensor-parallel-size",
        dest="tp",
        type=arguments.numbers_of_ranks,
        required=True,
        metavar="N,…",
        help="number of ranks to split over; several are compared in a table",
    )
    arguments.add_steering(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN", help="write the plan as JSON")
    parser.add_argument(
        "--annotate",
        type=Path,
        metavar="ONNX",
        help="write the model with its plan as ONNX device annotations, e.g. --annotate "
        "model.tp4.onnx beside model.onnx, whose weights it goes on using",
    )
    parser.add_argument(
        "--explain", metavar="VALUE", help="show what each way to hold this value would cost"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the table as a picture")
    arguments.add_json(parser)


def _add_shard(commands: Commands) -> None:
    parser = _command(
        commands,
        "shard",
        "split a model into a bundle of one graph and one weight file per rank",
        "tpcore shard model.onnx --tp 4 -o bundle",
    )
    arguments.add_model(parser)
    arguments.add_tp(parser, required=True)
    arguments.add_steering(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="BUNDLE", help="directory to write"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--dump", type=Path, metavar="DIR", help="write the graph as text after each step"
    )
    arguments.add_json(parser)


def _add_inspect(commands: Commands) -> None:
    parser = _command(
        commands,
        "inspect",
        "show what is in a bundle or a model",
        "tpcore inspect bundle --json",
    )
    parser.add_argument("target", type=Path, help="bundle or ONNX file")
    parser.add_argument("--text", action="store_true", help="print the graphs as text")
    arguments.add_json(parser)


def _add_verify(commands: Commands) -> None:
    parser = _command(
        commands,
        "verify",
        "prove that a bundle computes what the unsplit model computes",
        "tpcore verify bundle --against model.onnx --inputs x.npz",
    )
    parser.add_argument("bundle", type=Path, help="bundle written by tpcore shard")
    parser.add_argument(
        "--against", type=Path, required=True, metavar="MODEL", help="the model it was made from"
    )
    parser.add_argument("--backend", default="simulate", help="backend to run both on")
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="inputs (default: made up)")
    arguments.add_shape(parser)
    arguments.add_json(parser)


def _add_run(commands: Commands) -> None:
    parser = _command(
        commands,
        "run",
        "run a bundle, or a model split in memory; starts ranks unless mpirun or torchrun did",
        "mpirun -n 4 tpcore run bundle --backend cpu --inputs x.npz --outputs y.npz",
    )
    arguments.add_target(parser)
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="inputs (default: made up)")
    parser.add_argument("--outputs", type=Path, metavar="NPZ", help="where to write all outputs")
    arguments.add_trace(parser, note="; runs twice")
    arguments.add_json(parser)


def _add_generate(commands: Commands) -> None:
    parser = _command(
        commands,
        "generate",
        "continue prompts with a decoder, each rank keeping its part of the cache",
        "tpcore generate bundle --prompt-ids 1,2,3 --max-new-tokens 64",
    )
    arguments.add_target(parser)
    prompt_arguments.add_prompts(parser)
    prompt_arguments.add_sampling(parser)
    arguments.add_trace(parser)
    arguments.add_json(parser)


def _add_doctor(commands: Commands) -> None:
    parser = _command(
        commands, "doctor", "say what can run on this machine, and why not", "tpcore doctor"
    )
    arguments.add_json(parser)


def _add_demo(commands: Commands) -> None:
    parser = _command(
        commands,
        "demo",
        "split a small Llama, run it on MPI ranks, and prove the result",
        "tpcore demo --tp 2",
    )
    arguments.add_tp(parser, required=False)


def _add_calibrate(commands: Commands) -> None:
    parser = _command(
        commands,
        "calibrate",
        "measure this machine and write its topology, for plan and shard",
        "tpcore calibrate -o topology.json --ranks 1,2",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--backend", default="cpu", help="see tpcore doctor (default: cpu)")
    parser.add_argument(
        "--ranks",
        type=arguments.numbers_of_ranks,
        metavar="N,…",
        help="numbers of ranks to measure with (default: 1, 2, 4, … up to the cores)",
    )
    parser.add_argument(
        "--threads",
        type=arguments.number_of_ranks,
        metavar="N",
        help="threads per rank (default: as tpcore run gives)",
    )
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    arguments.add_json(parser)


def _add_ops(commands: Commands) -> None:
    parser = _command(
        commands, "ops", "list how every op is split, or why it is not", "tpcore ops --json"
    )
    arguments.add_json(parser)


ADDERS = (
    *(_add_plan, _add_shard, _add_inspect, _add_verify, _add_run, _add_generate),
    *(_add_calibrate, _add_ops, _add_doctor, _add_demo),
)
