"""Digests of files: crc32 is checked at every load (1.6 GB/s and more), sha256 when asked for."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Digest:
    """What identifies the contents of a file."""

    size: int
    """Bytes."""
    crc32: str
    """8 hexadecimal digits."""
    sha256: str
    """64 hexadecimal digits."""


class DigestWriter:
    """A new file whose digest is known as soon as it is written; synced to disk when closed."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self.size = 0

    def write(self, block: bytes | memoryview) -> None:
        """Append a block."""
        rest = memoryview(block).cast("B")
        self._sha256.update(rest)
        self._crc32 = zlib.crc32(rest, self._crc32)
        self.size += len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]

    def digest(self) -> Digest:
        """The digest of what was written so far."""
        return Digest(self.size, f"{self._crc32:08x}", self._sha256.hexdigest())

    def __enter__(self) -> DigestWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                os.fsync(self._file.fileno())


def write_file(path: Path, contents: bytes) -> Digest:
    """Write a new file, synced to disk."""
    with DigestWriter(path) as file:
        file.write(contents)
    return file.digest()
