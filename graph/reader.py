"""Read a user's ONNX file: everything that can be wrong with it is said here, nothing later.

Weights are not read: external data becomes `ir.ExternalTensor` with a checked absolute path.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import onnx
import onnx_ir as ir

from graph.errors import GraphError
from graph.external_data import check_external_data, data_files
from graph.plain import drop_odd_types, import_domains, make_dense
from graph.random_ops import seed_random_ops
from graph.wellformed import check_graphs

MAX_IR_VERSION = 14
"""Newest ONNX file format understood; what is written is lowered to graph.writer.IR_VERSION."""
MAX_OPSET = 26
"""Newest version of the standard operators that ONNX Runtime runs."""
STANDARD_DOMAINS = ("", "ai.onnx")
SHOWN_VIOLATIONS = 10


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read and check an ONNX model; its nodes are in topological order.

    Raises:
        GraphError: the file or its external data cannot be used, or the graph is malformed; the
            message lists all violations.
    """
    path = Path(path)
    proto = read_proto(path)
    _refuse(path, "cannot be used", _version_violations(proto))
    _refuse(path, "has unusable weights", check_external_data(proto, path))
    _refuse(path, "has unusable weights", make_dense(proto))
    violations, sorted_ = check_graphs(proto)
    _refuse(path, "is not a well-formed graph", violations)
    model = _deserialize(proto, path)
    if not sorted_:
        _sort(model, path)
    seed_random_ops(model.graph)
    return model


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without looking at its weights.

    Raises:
        GraphError: there is no such file, or it is no ONNX file.
    """
    contents = read_regular_file(path)
    if not contents:
        raise GraphError(f"'{path}' is empty (0 bytes), not an ONNX file. Export the model again.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(contents)
        parsed = proto.HasField("graph") and bool(proto.opset_import or proto.ir_version)
    except Exception:  # protobuf's error class cannot be named without depending on protobuf
        parsed = False
    if not parsed:
        raise GraphError(
            f"'{path}' is not an ONNX file: its {len(contents)} bytes hold no ONNX graph, or "
            "only a part of one. Give a whole .onnx file, as torch.onnx.export writes it."
        )
    return proto


def read_regular_file(path: Path) -> bytes:
    """Read a file, following links; never waits on a pipe or a device.

    Raises:
        GraphError: the path is missing, a directory, not a regular file, or unreadable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise GraphError(_not_a_file(path, mode))
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise GraphError(
            f"there is no file '{path}'. Check the path, which is taken from '{os.getcwd()}'."
        ) from None
    except (OSError, ValueError) as error:
        raise GraphError(f"'{path}' cannot be read: {error}. Check its permissions.") from error


def external_files(path: str | os.PathLike[str]) -> dict[str, int]:
    """Sizes in bytes of a model's external data files, by location. Raises GraphError if bad."""
    path = Path(path)
    files, violations = data_files(read_proto(path), path)
    _refuse(path, "has unusable weights", violations)
    return files


def _not_a_file(path: Path, mode: int) -> str:
    if stat.S_ISDIR(mode):
        return f"'{path}' is a directory, not an ONNX file. Give the .onnx file inside it."
    return f"'{path}' is a pipe, socket or device, not a regular file. Give a .onnx file."


def _version_violations(proto: onnx.ModelProto) -> list[str]:
    """Say which versions are newer than ours, and rename the alias ai.onnx to the empty domain."""
    violations = []
    if proto.ir_version > MAX_IR_VERSION:
        violations.append(
            f"its ONNX file format (IR version) is {proto.ir_version}, supported are up to "
            f"{MAX_IR_VERSION}; export it with an older onnx"
        )
    imports = [*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)]
    for opset in imports:
        if opset.domain not in STANDARD_DOMAINS:
            continue
        opset.domain = ""
        if opset.version > MAX_OPSET:
            violations.append(
                f"its operators are of opset {opset.version}, supported are up to {MAX_OPSET}; "
                f"export it with opset {MAX_OPSET} or older"
            )
    return list(dict.fromkeys(violations))


def _refuse(path: Path, what: str, violations: list[str]) -> None:
    if not violations:
        return
    shown = violations[:SHOWN_VIOLATIONS]
    if len(violations) > len(shown):
        shown.append(f"and {len(violations) - len(shown)} more")
    raise GraphError(f"'{path}' {what}: " + "; ".join(shown) + ".")


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    drop_odd_types(proto.graph)
    import_domains(proto)
    log = logging.getLogger(ir.serde.__name__)
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # what it warns of, graph.annotations says as an error
        return ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, KeyError, TypeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise GraphError(
            f"'{path}' holds something that is not valid ONNX: {reason}. "
            "Check it with onnx.checker and export it again."
        ) from error
    finally:
        log.setLevel(level)


def _sort(model: ir.Model, path: Path) -> None:
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        raise GraphError(
            f"'{path}' is not a well-formed graph: its nodes form a cycle. Export it again."
        ) from error
