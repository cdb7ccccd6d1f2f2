"""Files of a bundle: opened without following links, checked by digest, put in place as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from graph.digest import BLOCK_BYTES, Digest
from graph.errors import BundleError

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_inside(bundle: Path, name: str) -> BinaryIO:
    """Open the regular file `name` of a bundle; no part of the name may be a link.

    Raises:
        BundleError: it is missing, a link, or not a regular file.
    """
    *folders, last = name.split("/")
    try:
        with contextlib.ExitStack() as stack:
            folder = os.open(bundle, FOLDER_FLAGS)
            stack.callback(os.close, folder)
            for part in folders:
                folder = os.open(part, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
                stack.callback(os.close, folder)
            descriptor = os.open(last, FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BundleError(
            f"bundle '{bundle}' has no usable file {name} ({reason}): regular files in real "
            "folders are expected, links are refused. Copy or write the bundle again."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(
            f"bundle '{bundle}': {name} is not a regular file. Copy or write the bundle again."
        )
    return open(descriptor, "rb")


def read_inside(bundle: Path, name: str, max_bytes: int) -> bytes:
    """Contents of a small file of a bundle. Raises BundleError if it is too big or unusable."""
    with open_inside(bundle, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise BundleError(
                f"bundle '{bundle}': {name} has {size} bytes, more than the {max_bytes} allowed. "
                "Write the bundle again."
            )
        return file.read(max_bytes)


def size_violation(bundle: Path, name: str, expected: Digest) -> str | None:
    """Say how the size of a file differs from the manifest's."""
    with open_inside(bundle, name) as file:
        size = os.fstat(file.fileno()).st_size
    if size == expected.size:
        return None
    return f"{name} has {size} bytes, the manifest states {expected.size}"


def crc32_violation(bundle: Path, name: str, expected: Digest) -> str | None:
    """Say how the crc32 of a file differs from the manifest's. Reads the whole file."""
    crc32 = 0
    for block in _blocks(bundle, name):
        crc32 = zlib.crc32(block, crc32)
    return _differs(name, "crc32", f"{crc32:08x}", expected.crc32)


def sha256_violation(bundle: Path, name: str, expected: Digest) -> str | None:
    """Say how the sha256 of a file differs from the manifest's. Reads the whole file."""
    sha256 = hashlib.sha256()
    for block in _blocks(bundle, name):
        sha256.update(block)
    return _differs(name, "sha256", sha256.hexdigest(), expected.sha256)


def refuse(bundle: Path, violations: list[str | None]) -> None:
    """Raise one BundleError that lists all violations, if there are any."""
    found = [violation for violation in violations if violation]
    if found:
        raise BundleError(
            f"bundle '{bundle}' is damaged: {'; '.join(found)}. Copy or write the bundle again."
        )


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when all went well and vanishes when not.

    A folder already at `path` is replaced. It is moved aside first, so at every moment there is
    either the old one, the new one, or (for the time of one rename) none, never a mixture.
    """
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, _ in os.walk(temporary):
            _sync_folder(Path(folder))
        _put_in_place(temporary, path, path.with_name(f".{path.name}.{token}.old"))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(temporary: Path, path: Path, aside: Path) -> None:
    replaces = os.path.lexists(path)
    if replaces:
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        if replaces:
            os.rename(aside, path)
        raise
    _sync_folder(path.parent)
    if replaces:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, FOLDER_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blocks(bundle: Path, name: str) -> Iterator[memoryview]:
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    with open_inside(bundle, name) as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            yield view[:count]


def _differs(name: str, kind: str, actual: str, stated: str) -> str | None:
    if actual == stated:
        return None
    return f"{name} has {kind} {actual}, the manifest states {stated}"
