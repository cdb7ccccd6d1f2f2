"""Takes memory from `heap.c` and gives it back at random, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from mmap import PAGESIZE

from backends import native

HEAP_BYTES = 64 << 20
HEAD_BYTES = 64


def main() -> None:
    """Check that pieces keep apart and keep their contents, and that free ones come together."""
    library = native.library()
    number, place = ctypes.c_int64, ctypes.c_void_p
    for name in ("tpcore_alloc", "tpcore_reserve"):
        getattr(library, name).argtypes, getattr(library, name).restype = (number,), place
    library.tpcore_free.argtypes = (place,)
    library.tpcore_heap_offset.argtypes, library.tpcore_heap_offset.restype = (place,), number

    elsewhere = library.tpcore_alloc(100)
    assert library.tpcore_heap_offset(elsewhere) == -1, "there is no heap yet"
    file = os.memfd_create("heaps")
    os.ftruncate(file, 2 * HEAP_BYTES)
    start = library.tpcore_heaps_map(file, HEAP_BYTES, 2)
    assert start and start % PAGESIZE == 0
    library.tpcore_heap_use(start, file, HEAP_BYTES, 1, 2)
    library.tpcore_free(elsewhere)

    random.seed(int(sys.argv[1]))
    held: dict[int, tuple[int, int]] = {}
    for _ in range(20_000):
        if held and random.random() < (0.3 if len(held) < 300 else 0.7):
            taken = random.choice(list(held))
            _expect_kept(taken, *held.pop(taken))
            library.tpcore_free(taken)
            continue
        size = int(2 ** random.uniform(0, 18))
        taken, mark = library.tpcore_alloc(size), random.randrange(256)
        offset = library.tpcore_heap_offset(taken)
        assert taken % HEAD_BYTES == 0 and 0 <= offset <= HEAP_BYTES - size
        assert taken == start + HEAP_BYTES + offset, "rank 1 has the second heap"
        ctypes.memset(taken, mark, size)
        held[taken] = size, mark
    for taken, kept in held.items():
        _expect_kept(taken, *kept)
        library.tpcore_free(taken)

    # All is one piece again, which is as large as the heap; beyond it memory is the process's own.
    whole = library.tpcore_alloc(HEAP_BYTES - 2 * HEAD_BYTES)
    assert library.tpcore_heap_offset(whole) == HEAD_BYTES
    beyond = library.tpcore_alloc(1)
    assert library.tpcore_heap_offset(beyond) == -1
    for size in (1, 4096, (2 << 20) - HEAD_BYTES, 2 << 20, (7 << 20) + 5):
        own = library.tpcore_reserve(size)
        assert own % HEAD_BYTES == 0 and library.tpcore_heap_offset(own) == -1
        ctypes.memset(own, 1, size)
        library.tpcore_free(own)
    assert library.tpcore_reserve(2**63 - 100) is None and library.tpcore_alloc(2**62) is None
    library.tpcore_free(beyond)
    library.tpcore_free(whole)
    library.tpcore_free(None)
    _fork(library)

    # Given up, it is as if it were not there.
    kept = library.tpcore_alloc(1000)
    ctypes.memset(kept, 7, 1000)
    library.tpcore_heap_abandon()
    library.tpcore_free(kept)
    assert library.tpcore_heap_offset(library.tpcore_alloc(1000)) == -1
    _expect_kept(kept, 1000, 7)
    print("held")


def _fork(library: ctypes.CDLL) -> None:
    """A child reads what its parent has, lets it go, and writes to a copy."""
    os.register_at_fork(after_in_child=library.tpcore_heap_forked)
    taken = library.tpcore_alloc(5000)
    ctypes.memset(taken, 3, 5000)
    child = os.fork()
    if child == 0:
        _expect_kept(taken, 5000, 3)
        ctypes.memset(taken, 4, 5000)
        library.tpcore_free(taken)
        own = library.tpcore_alloc(5000)
        os._exit(library.tpcore_heap_offset(own) != -1)
    assert os.waitpid(child, 0)[1] == 0
    _expect_kept(taken, 5000, 3)
    library.tpcore_free(taken)


def _expect_kept(place: int, size: int, mark: int) -> None:
    assert ctypes.string_at(place, size) == bytes([mark]) * size, "somebody wrote here"


if __name__ == "__main__":
    main()
