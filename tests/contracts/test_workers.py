"""Work in several processes: results in order, and a process that fails costs time only."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import parent_process
from pathlib import Path

import psutil
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


class KillsItsReader:
    """Cannot be read in a helper: the process is killed, or an error is raised."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.weight = bytes(5_000_000)  # far more than a pipe holds

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return read_again, (self.weight, self.how)


def read_again(weight: bytes, how: str) -> KillsItsReader:
    if parent_process() is not None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError
    return KillsItsReader(how)


def length(share: KillsItsReader) -> int:
    return len(share.weight)


@pytest.mark.parametrize("how", ["killed", "out of memory"])
def test_a_process_that_ends_while_it_reads_its_share_costs_time_only(how: str) -> None:
    shares = [KillsItsReader(how), KillsItsReader(how)]
    assert in_processes(length, shares) == [5_000_000, 5_000_000]


def killed_while_it_sends(share: int) -> bytes:
    if parent_process() is not None:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(50_000_000)
    if share == 0:
        time.sleep(3)  # the helper waits meanwhile: a pipe holds little
    return b"here"


def test_a_process_killed_while_it_sends_costs_time_only() -> None:
    assert in_processes(killed_while_it_sends, [0, 1]) == [b"here", b"here"]


def test_work_that_cannot_be_sent_is_done_here() -> None:
    assert in_processes(lambda share: share + 1, [1, 2]) == [2, 3]


def test_where_no_process_can_be_started_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen.__init__", refuse)
    assert in_processes(process_that_did, [1, 2]) == [(1, os.getpid()), (2, os.getpid())]


PARENT = """
import os, sys, time
from ckd_ehr.contracts.workers import in_processes

def work(share):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    in_processes(work, [1, 2])
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_helpers_end_with_their_parent(tmp_path: Path, how: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        [helper] = set(pids) - {parent.pid}
        parent.send_signal(how)
        for _ in range(100):
            if not psutil.pid_exists(helper):
                break
            time.sleep(0.1)
        assert not psutil.pid_exists(helper)
        parent.wait(10)
        said = parent.stderr.read()
    assert said.count("Traceback") == (how == signal.SIGINT)  # the parent's own


def test_an_error_of_the_work_is_seen() -> None:
    with pytest.raises(ValueError, match="share 1"):
        in_processes(fails, [1, 2])


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
