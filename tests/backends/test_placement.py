"""What a launcher's environment says, and what its noise looks like."""

from __future__ import annotations

import io
import os

from backends.launcher_noise import Filter
from backends.placement import Placement, detect_environment

BANNER = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   EXIT CODE: 9
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
"""


def test_rank_and_size_of_every_launcher() -> None:
    assert detect_environment({}) == Placement(0, 1, 1, "")
    mpich = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}
    assert detect_environment(mpich) == Placement(1, 4, 2, "mpich")
    openmpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}
    assert detect_environment(openmpi) == Placement(2, 3, 3, "openmpi")


def passed(text: str) -> tuple[str, str]:
    read, write = os.pipe()
    target = io.StringIO()
    os.write(write, text.encode())
    os.close(write)
    with open(read, "rb") as source:
        stream = Filter(source, target)
        stream.finish(5)
    return target.getvalue(), stream.noise


def test_a_launchers_banner_is_kept_back() -> None:
    assert passed("result 1\n" + BANNER) == ("result 1\n", BANNER)


def test_a_programs_own_lines_pass_even_if_they_look_like_it() -> None:
    text = "= heading =\n\n------------\non node 3\nno newline at the end ="
    assert passed(text) == (text, "")
