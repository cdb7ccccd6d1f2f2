"""The manifest of a bundle: what is in it, and the digests that prove it.

The manifest proves itself: `bundle_id`, its first field, is the sha256 of the manifest's own bytes
with the id's 64 digits written as zeros. As it lists the sha256 of every other file, the id stands
for the whole bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from graph.digest import Digest
from graph.errors import BundleError
from graph.reader import external_files, read_regular_file
from graph.writer import MODEL_FILE, WEIGHT_FILE

MAIN = "main"
"""The program of a bundle that has only one, and the workload it serves."""

MANIFEST_FILE = "manifest.json"
PLAN_FILE = "plan.json"
FORMAT = "tpcore-bundle"
FORMAT_VERSION = 1
"""Raised when an older reader would misunderstand a bundle."""
MAX_BYTES = 64 << 20
"""A manifest or plan larger than this is refused unread."""

HEAD = re.compile(rb'\A\{\n  "bundle_id": "([0-9a-f]{64})",\n')
PROGRAM = re.compile("[a-z]{1,32}")
ZEROS = "0" * 64
OURS = ("bundle_id", "format", "format_version", "tool_version", "world_size", "files")

Kind = TypeVar("Kind")


def rank_folder(rank: int) -> str:
    """Name of a rank's folder inside a bundle."""
    return f"rank-{rank:05d}"


def program_file(program: str) -> str:
    """Name of a program's file in a rank's folder."""
    return MODEL_FILE if program == MAIN else f"{program}.onnx"


def rank_files(programs: Sequence[str]) -> list[str]:
    """Names of all files in a rank's folder."""
    return [*map(program_file, programs), WEIGHT_FILE]


def file_names(world_size: int, programs: Sequence[str]) -> list[str]:
    """Every file of a bundle but the manifest; there are no others, so no name can lead outside."""
    folders = [rank_folder(rank) for rank in range(world_size)]
    return [PLAN_FILE, *(f"{f}/{name}" for f in folders for name in rank_files(programs))]


def encode(fields: Mapping[str, Any], files: Mapping[str, Digest], world_size: int) -> bytes:
    """The bytes of a manifest with the caller's `fields` and those of the format."""
    taken = sorted(set(fields) & set(OURS))
    if taken:
        raise ValueError(f"manifest fields {taken} belong to the format")
    manifest = {
        "bundle_id": ZEROS,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": tool_version(),
        "world_size": world_size,
        **fields,
        "files": {name: asdict(digest) for name, digest in files.items()},
    }
    contents = json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n"
    digits = hashlib.sha256(contents).hexdigest().encode()
    return contents.replace(ZEROS.encode(), digits, 1)


def decode(contents: bytes, where: str) -> dict[str, Any]:
    """Read and check a manifest; `where` begins its error messages.

    Raises:
        BundleError: it is damaged, of a newer version, or a field is missing or malformed.
    """
    _check_id(contents, where)
    try:
        manifest = json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON: {error}. Write the bundle again.") from error
    if field(manifest, "format", str, where) != FORMAT:
        raise BundleError(
            f"{where} has format '{manifest['format']}', not '{FORMAT}'. Give a bundle written by "
            "tpcore shard."
        )
    version = field(manifest, "format_version", int, where)
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{where} has format version {version}, this tpcore {tool_version()} reads version "
            f"{FORMAT_VERSION}. {_way_out(version)}"
        )
    field(manifest, "tool_version", str, where)
    file_digests(manifest, where)
    return dict(manifest)


def field(manifest: Mapping[str, Any], name: str, kind: type[Kind], where: str) -> Kind:
    """A field of a manifest, which must be of type `kind`. Raises BundleError if it is not."""
    if name not in manifest:
        raise BundleError(f"{where} has no field '{name}'. Write the bundle again.")
    value = manifest[name]
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise BundleError(
            f"{where} has a field '{name}' of type {type(value).__name__}, expected "
            f"{kind.__name__}. Write the bundle again."
        )
    return value


def file_digests(manifest: Mapping[str, Any], where: str) -> dict[str, Digest]:
    """Digests of the bundle's files by name.

    Raises:
        BundleError: the list of files is not exactly the one of `world_size` ranks.
    """
    world_size = field(manifest, "world_size", int, where)
    entries = field(manifest, "files", dict, where)
    names = program_names(manifest, where)
    expected = 1 + (1 + len(names)) * world_size
    if world_size < 1 or len(entries) != expected:
        raise BundleError(
            f"{where} lists {len(entries)} files for a world_size of {world_size}; expected are "
            f"{expected}, at least one rank. Write the bundle again."
        )
    missing = [name for name in file_names(world_size, names) if name not in entries]
    if missing:
        raise BundleError(
            f"{where} does not list the file {missing[0]}, and {len(missing) - 1} others. "
            "Write the bundle again."
        )
    return {name: _digest(name, entry, where) for name, entry in entries.items()}


def program_names(manifest: Mapping[str, Any], where: str) -> list[str]:
    """Names of the programs that every rank has. Raises BundleError if there are none."""
    programs = field(manifest, "programs", list, where)
    names = [
        field(entry, "name", str, f"{where}, programs,")
        for entry in programs
        if isinstance(entry, dict)
    ]
    if not names or len(names) != len(programs) or not all(map(PROGRAM.fullmatch, names)):
        raise BundleError(
            f"{where} names its programs {names}; expected is one or more plain names. "
            "Write the bundle again."
        )
    return names


def source_digest(path: str | os.PathLike[str]) -> str:
    """Identify a source model by the sha256 of its .onnx file and each data file's name and size.

    The contents of data files are left out: at 0.4 GB/s they would cost more than the split itself.

    Raises:
        GraphError: the model or its external data cannot be read.
    """
    digest = hashlib.sha256(read_regular_file(Path(path)))
    for location, size in external_files(path).items():
        digest.update(f"\n{size} {location}".encode())
    return digest.hexdigest()


def tool_version() -> str:
    """Version of the installed tpcore."""
    try:
        return metadata.version("tpcore")
    except metadata.PackageNotFoundError:
        return "unknown"


def _check_id(contents: bytes, where: str) -> None:
    head = HEAD.match(contents)
    if head is None:
        raise BundleError(
            f"{where} is damaged or no manifest: its {len(contents)} bytes, sha256 "
            f"{hashlib.sha256(contents).hexdigest()}, do not begin with a bundle_id of 64 "
            "hexadecimal digits. Copy or write the bundle again."
        )
    stated = head.group(1).decode()
    zeroed = contents[: head.start(1)] + ZEROS.encode() + contents[head.end(1) :]
    actual = hashlib.sha256(zeroed).hexdigest()
    if actual != stated:
        raise BundleError(
            f"{where} is damaged: its sha256 is {actual}, it states {stated} as bundle_id. "
            "Copy or write the bundle again."
        )


def _digest(name: str, entry: Any, where: str) -> Digest:
    patterns = {"crc32": "[0-9a-f]{8}", "sha256": "[0-9a-f]{64}"}
    spot = f"{where}, file {name},"
    if not isinstance(entry, dict):
        raise BundleError(f"{spot} is a {type(entry).__name__}, expected dict. Write it again.")
    size = field(entry, "size", int, spot)
    texts = {key: field(entry, key, str, spot) for key in patterns}
    for key, pattern in patterns.items():
        if size < 0 or not re.fullmatch(pattern, texts[key]):
            raise BundleError(
                f"{spot} has size {size} and {key} '{texts[key]}', expected a size of 0 or more "
                f"and {pattern}. Write the bundle again."
            )
    return Digest(size, **texts)


def _way_out(version: int) -> str:
    if version > FORMAT_VERSION:
        return "Update tpcore, or write the bundle again with this version."
    return "Write the bundle again."
