"""Work in several processes: results in order, and a process that fails costs time only."""

import os
import signal
from multiprocessing import parent_process

import pytest

from ckd_ehr.contracts.workers import available_cores, in_processes

ERROR, KILLED = -1, -2


def process_that_did(share: int) -> tuple[int, int]:
    """The share, and the process that did it; helpers fail at the two special ones."""
    in_helper = parent_process() is not None
    if in_helper and share == ERROR:
        raise ValueError("of a helper")
    if in_helper and share == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return share, os.getpid()


def fails(share: int) -> int:
    raise ValueError(f"share {share}")


def test_each_share_is_done_in_a_process_of_its_own_and_stays_in_its_place() -> None:
    results = in_processes(process_that_did, [5, 6, 7])
    assert [share for share, _ in results] == [5, 6, 7]
    assert len({process for _, process in results}) == 3
    assert results[0][1] == os.getpid()


@pytest.mark.parametrize("share", [ERROR, KILLED])
def test_what_a_process_failed_at_is_done_again_here(share: int) -> None:
    assert in_processes(process_that_did, [1, share]) == [(1, os.getpid()), (share, os.getpid())]


def test_an_error_of_the_work_is_seen() -> None:
    with pytest.raises(ValueError, match="share 1"):
        in_processes(fails, [1, 2])


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
