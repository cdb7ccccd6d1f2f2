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
    mpich = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}
    assert detect_environment(mpich) == Placement(3, 4, 2, "mpich", 1)
    openmpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}
    assert detect_environment(openmpi) == Placement(2, 3, 3, "openmpi", 2)
    own = {"TPCORE_RANK": "1", "TPCORE_SIZE": "2"}
    assert detect_environment(own) == Placement(1, 2, 2, "tpcore", 1)
    assert [detect_environment(e).speaks_mpi for e in (mpich, openmpi, own)] == [True, True, False]


def test_torchrun_is_told_from_variables_that_anybody_sets() -> None:
    bare = {"RANK": "5", "WORLD_SIZE": "8"}
    assert detect_environment(bare) == Placement(0, 1, 1, "")
    torchrun = {**bare, "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    assert detect_environment(torchrun) == Placement(5, 8, 4, "torchrun", 1)
    assert detect_environment({**torchrun, "PMI_RANK": "0", "PMI_SIZE": "2"}).launcher == "mpich"


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
