"""Messages between a process and the ranks it has started: JSON over a socket, arrays in memory.

An array is never pickled or sent: its writer puts the bytes into a memory file that both sides have
mapped, and the message says dtype, shape and offset. The file has no name, so nothing of it is left
when its users end, however they end.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy then knows bfloat16 and its kin by name
import numpy as np

SOCKET = "ranks.socket"
"""Name of the socket, in the job's directory of records."""
ALIGNMENT = 64
_LENGTH = struct.Struct("<q")

Message = dict[str, Any]
Entry = Sequence[Any]
"""dtype, shape and offset of an array in a memory file."""


def listen(folder: Path) -> socket.socket:
    """A socket that ranks can connect to; only users who may enter `folder` can."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _Short(folder) as path:
        listener.bind(path)
    listener.listen(1024)
    return listener


def connect(folder: Path) -> socket.socket:
    """Connect to the process that listens in `folder`."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _Short(folder) as path:
        link.connect(path)
    return link


class _Short:
    """A short path of the socket in a folder, as an address may have 107 bytes only."""

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._handle}/{SOCKET}"

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)


def send(link: socket.socket, message: Mapping[str, Any], file: int | None = None) -> None:
    """Send a message, and with it an open file. Raises OSError if the other side is gone."""
    send_packed(link, pack(message), file)


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as it travels."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


def send_packed(link: socket.socket, packed: bytes, file: int | None = None) -> None:
    """Send what `pack` gives, as `send` does."""
    if file is None:
        link.sendall(packed)
    else:
        socket.send_fds(link, [packed[: _LENGTH.size]], [file])
        link.sendall(packed[_LENGTH.size :])


def receive(link: socket.socket) -> tuple[Message, int | None] | None:
    """The next message and the file that came with it; None when the other side is gone."""
    try:
        head, files, _, _ = socket.recv_fds(link, _LENGTH.size, 1)
        head += _exactly(link, _LENGTH.size - len(head)) if head else b""
        body = _exactly(link, _LENGTH.unpack(head)[0]) if head else b""
    except (OSError, EOFError):
        return None
    return (json.loads(body), files[0] if files else None) if body else None


def _exactly(link: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = link.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Written:
    """A memory file that this process writes arrays to; it grows as they need."""

    def __init__(self) -> None:
        self.file = os.memfd_create("tpcore", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None
        self._size = 0

    def write(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Entry]:
        """Overwrite what is there with these arrays; what a reader must know of each."""
        entries: dict[str, Entry] = {}
        end = 0
        for name, array in arrays.items():
            entries[name] = (_name(array.dtype), array.shape, end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._grow(end)
        for name, array in arrays.items():
            if array.nbytes and self._map is not None:
                _view(self._map, entries[name])[...] = array
        return entries

    def _grow(self, size: int) -> None:
        if size > self._size:
            self._size = 1 << (size - 1).bit_length()
            os.ftruncate(self.file, self._size)
            self._map = mmap.mmap(self.file, self._size)

    def close(self) -> None:
        """Close the file; views of it stay valid."""
        os.close(self.file)
        self._map = None


class Mapped:
    """A memory file that another process writes arrays to."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._map: mmap.mmap | None = None

    def read(self, entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
        """Views of the arrays, valid until the writer writes again."""
        size = os.fstat(self._file).st_size
        if size and (self._map is None or len(self._map) < size):
            self._map = mmap.mmap(self._file, size)
        return {name: _view(self._map, entry) for name, entry in entries.items()}

    def close(self) -> None:
        """Close the file; views of it stay valid."""
        os.close(self._file)
        self._map = None


_dtype = cache(np.dtype)


@cache
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def _view(memory: mmap.mmap | None, entry: Entry) -> np.ndarray:
    name, shape, offset = entry
    dtype = _dtype(name)
    count = math.prod(shape)
    if not count or memory is None:
        return np.empty(shape, dtype)
    return np.frombuffer(memory, dtype, count, offset).reshape(shape)
