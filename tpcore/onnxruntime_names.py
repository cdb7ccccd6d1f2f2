"""What a script for onnxruntime finds in tpcore under the same names, besides the session itself.

Options are taken so that the script runs: a session runs as its backend does, and a warning tells
which settings have no effect. What would need another answer than ours is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import onnx_ir as ir

from graph.errors import PlanError
from tpcore.inputs import InputSpec

ANY_PROVIDER = "CPUExecutionProvider"
"""What a script asks for that leaves the choice to us: the last of every list of providers."""
NO_VERSION = 2**63 - 1
"""What onnxruntime tells of a model that has no version."""
_SAYS_NOTHING = ("log_severity_level", "log_verbosity_level", "logid")
"""Settings that change no result and no speed."""


class Unsupported(PlanError, AttributeError):
    """A method of onnxruntime's session that ours does not have; `hasattr` says so too."""


REFUSED = {
    "io_binding": "Use run: inputs and outputs pass through shared memory as it is",
    "run_with_iobinding": "Use run: inputs and outputs pass through shared memory as it is",
    "run_with_ort_values": "Use run with numpy arrays",
    "run_with_ortvaluevector": "Use run with numpy arrays",
    "run_async": "Call run in a thread of your own",
    "set_providers": "Choose with backend= when the session is made",
    "end_profiling": "Trace a run with tpcore run --trace",
    "get_profiling_start_time_ns": "Trace a run with tpcore run --trace",
}
"""Method -> what to do instead."""


class ExecutionMode(IntEnum):
    """Taken, without effect."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class GraphOptimizationLevel(IntEnum):
    """Taken, without effect."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class SessionOptions:
    """Settings of a session, taken as onnxruntime's are."""

    def __init__(self) -> None:
        self.enable_cpu_mem_arena = self.enable_mem_pattern = self.enable_mem_reuse = True
        self.enable_profiling = False
        self.execution_mode = ExecutionMode.ORT_SEQUENTIAL
        self.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        self.inter_op_num_threads = self.intra_op_num_threads = 0
        self.log_severity_level, self.log_verbosity_level, self.logid = -1, 0, ""
        self.optimized_model_filepath = ""
        self.config_entries: dict[str, str] = {}
        """What `add_session_config_entry` was told."""

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Take a setting."""
        self.config_entries[key] = value


class RunOptions:
    """Settings of a run, taken as onnxruntime's are."""

    def __init__(self) -> None:
        self.log_severity_level, self.log_verbosity_level, self.logid = 2, 0, ""
        self.terminate = self.only_execute_path_to_fetches = False


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as onnxruntime describes it."""

    name: str
    shape: list[int | str]
    """Sizes; symbolic ones by name."""
    type: str
    """`tensor(float)`."""

    @classmethod
    def of(cls, spec: InputSpec) -> NodeArg:
        """The same in onnxruntime's words."""
        name = _ONNX_NAMES.get(spec.dtype, spec.dtype.lower())
        return cls(spec.name, list(spec.shape or ()), f"tensor({name})")


_ONNX_NAMES = {ir.DataType.FLOAT.name: "float", ir.DataType.DOUBLE.name: "double"}


@dataclass(frozen=True)
class ModelMetadata:
    """What a model says of itself, as onnxruntime describes it."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: Mapping[str, str]

    @classmethod
    def of(cls, model: ir.Model) -> ModelMetadata:
        """That of a graph."""
        return cls(
            producer_name=model.producer_name or "",
            graph_name=model.graph.name or "",
            domain=model.domain or "",
            description=model.doc_string or "",
            graph_description=model.graph.doc_string or "",
            version=NO_VERSION if model.model_version is None else model.model_version,
            custom_metadata_map=dict(model.metadata_props),
        )


def get_available_providers() -> list[str]:
    """The one that leaves the choice to the session's backend."""
    return [ANY_PROVIDER]


def check_options(
    session: object, run: object, providers: Sequence[Any] | None, of_providers: Any
) -> None:
    """Warn of settings that have no effect.

    Raises:
        PlanError: settings are of no kind that is known, or no provider would be us.
    """
    names = [p if isinstance(p, str) else p[0] for p in providers or [ANY_PROVIDER]]
    if ANY_PROVIDER not in names:
        raise PlanError(
            f"providers={names} leaves nothing to tpcore, which runs a session on the backend that "
            f"backend= names. Add {ANY_PROVIDER}, or leave providers out."
        )
    idle = [*_settings(session, "sess_options"), *_settings(run, "run_options")]
    idle += [f"provider_options={of_providers}"] if any(of_providers or ()) else []
    if idle:
        warnings.warn(
            f"a session of tpcore runs as its backend does: {', '.join(idle)} "
            f"{'has' if len(idle) == 1 else 'have'} no effect.",
            stacklevel=3,
        )


def _settings(options: object, name: str) -> Iterator[str]:
    """What differs from how options of this kind are made; those of onnxruntime are one kind."""
    if options is None:
        return
    if not hasattr(options, "log_severity_level"):
        raise PlanError(
            f"{name} is a {type(options).__name__}, which is none of onnxruntime's or tpcore's "
            "kinds of options. Leave it out."
        )
    fresh = type(options)()
    for key in (key for key in dir(fresh) if not key.startswith("_")):
        value, default = getattr(options, key), getattr(fresh, key)
        if not callable(default) and key not in _SAYS_NOTHING and value != default:
            yield f"{name}.{key}={value}"
