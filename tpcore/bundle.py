"""Bundles: the directory that `shard` writes and every backend runs.

    bundle/manifest.json                       tpcore/manifest.py
    bundle/plan.json                           the plan, for people and for the next split
    bundle/rank-00000/model.onnx               one graph per rank,
    bundle/rank-00000/{prefill,decode}.onnx    or two over the same weights
    bundle/rank-00000/model.safetensors        its weights

A bundle is written beside its final name and renamed at the end: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph.digest import Digest, write_file
from graph.errors import BundleError, GraphError
from graph.reader import read_model
from graph.safetensors_file import Progress
from graph.writer import WEIGHT_FILE, write_models
from tpcore import manifest as manifests
from tpcore.bundle_files import (
    crc32_violation,
    new_folder,
    read_inside,
    refuse,
    sha256_violation,
    size_violation,
)
from tpcore.manifest import MANIFEST_FILE, MAX_BYTES, PLAN_FILE, program_file, rank_folder
from tpcore.program import Program


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest, plan and file sizes have been checked."""

    path: Path
    """Its directory."""
    manifest: Mapping[str, Any] = field(repr=False)
    """Contents of manifest.json."""
    world_size: int
    """Number of ranks it was made for."""
    id: str
    """sha256 that stands for all its contents."""
    files: Mapping[str, Digest] = field(repr=False)
    """Digests by file name, the manifest's left out."""

    def plan(self) -> dict[str, Any]:
        """Contents of plan.json."""
        plan: dict[str, Any] = json.loads(read_inside(self.path, PLAN_FILE, MAX_BYTES))
        return plan

    @property
    def programs(self) -> list[Program]:
        """What every rank can run; one program, unless the plan serves several workloads."""
        return [Program.read(entry) for entry in self.manifest["programs"]]

    def load_rank(self, rank: int, program: str = "") -> ir.Model:
        """Check the crc32 of a rank's files and load a graph of it, the first if none is named;
        weights are mapped, not read.

        Raises:
            BundleError: there is no such rank, or its files are damaged.
        """
        if not 0 <= rank < self.world_size:
            raise BundleError(
                f"bundle '{self.path}' has ranks 0 to {self.world_size - 1}, but rank {rank} was "
                "asked for. Start as many ranks as it was made for."
            )
        model = program_file(program or self.programs[0].name)
        names = [f"{rank_folder(rank)}/{name}" for name in (model, WEIGHT_FILE)]
        refuse(self.path, [size_violation(self.path, n, self.files[n]) for n in names])
        refuse(self.path, [crc32_violation(self.path, n, self.files[n]) for n in names])
        try:
            return read_model(self.path / rank_folder(rank) / model)
        except GraphError as error:
            raise BundleError(
                f"bundle '{self.path}' holds a bad graph for rank {rank}: {error}"
            ) from error

    def check_hashes(self) -> None:
        """Check the sha256 of every file, at about 0.4 GB/s. Raises BundleError with all faults."""
        refuse(self.path, [sha256_violation(self.path, n, d) for n, d in self.files.items()])


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle: check its manifest, its plan and the sizes of all files.

    Raises:
        BundleError: it is missing, damaged, of a newer version, or not a bundle.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a bundle" if path.exists() else "does not exist"
        raise BundleError(f"bundle '{path}' {what}. Give a directory written by tpcore shard.")
    if not os.path.lexists(path / MANIFEST_FILE):
        raise BundleError(
            f"'{path}' is not a bundle: it has no {MANIFEST_FILE}. "
            "Give a directory written by tpcore shard."
        )
    where = f"{MANIFEST_FILE} of bundle '{path}'"
    manifest = manifests.decode(read_inside(path, MANIFEST_FILE, MAX_BYTES), where)
    files = manifests.file_digests(manifest, where)
    refuse(path, [size_violation(path, name, digest) for name, digest in files.items()])
    refuse(path, [crc32_violation(path, PLAN_FILE, files[PLAN_FILE])])
    return Bundle(path, manifest, manifest["world_size"], manifest["bundle_id"], files)


def write_bundle(
    path: str | os.PathLike[str],
    ranks: Sequence[Mapping[str, ir.Model]],
    *,
    manifest: Mapping[str, Any],
    plan: Mapping[str, Any],
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a bundle of the graphs of each rank, by program.

    `manifest` holds the fields that are not the format's.

    Raises:
        BundleError: something is at `path` and `force` is not given or it is no bundle; the disk
            is full or not writable.
    """
    path = Path(path)
    target = Path(os.path.abspath(path))
    refuse_existing(path, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as folder:
            _write_contents(folder, ranks, manifest, plan, progress)
            refuse_existing(path, force)  # somebody may have written it in the meantime
    except OSError as error:
        raise BundleError(
            f"cannot write bundle '{path}': {error.strerror or error}. Nothing was left behind. "
            "Check the free space and the permissions of its parent folder."
        ) from error
    return path


def refuse_existing(path: Path, force: bool) -> None:
    """Raise BundleError if something at `path` must not be replaced."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not (path / MANIFEST_FILE).is_file():
        raise BundleError(
            f"'{path}' exists already and is not a bundle, so --force does not replace it either. "
            "Remove it yourself or choose another name."
        )
    if not force:
        raise BundleError(f"'{path}' exists already. Give --force to replace it.")


def _write_contents(
    folder: Path,
    ranks: Sequence[Mapping[str, ir.Model]],
    manifest: Mapping[str, Any],
    plan: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    names = [rank_folder(rank) for rank in range(len(ranks))]
    for name in names:
        (folder / name).mkdir()
    files = {PLAN_FILE: write_file(folder / PLAN_FILE, _json(plan))}
    models = [{program_file(program): model for program, model in r.items()} for r in ranks]
    written = write_models([folder / name for name in names], models, progress)
    for name, digests in zip(names, written, strict=True):
        files.update({f"{name}/{file}": digest for file, digest in digests.items()})
    write_file(folder / MANIFEST_FILE, manifests.encode(manifest, files, len(ranks)))


def _json(contents: Mapping[str, Any]) -> bytes:
    return json.dumps(contents, indent=2, allow_nan=False).encode() + b"\n"
