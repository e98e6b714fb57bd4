"""Folders made for a user: whole or not at all, never over what is there."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.folders import whole_folder, work_tree_of


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_with_all_its_files(tmp_path: Path, is_there: bool) -> None:
    wanted = tmp_path / "a" / "wanted"
    if is_there:
        wanted.mkdir(parents=True)
    with whole_folder(wanted) as folder:
        (folder / "one.txt").write_text("1")
        assert not wanted.exists() or not [*wanted.iterdir()]
    assert [path.name for path in wanted.iterdir()] == ["one.txt"]
    assert [path.name for path in wanted.parent.iterdir()] == ["wanted"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "wanted") as folder:
        (folder / "one.txt").write_text("1")
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CkdEhrError, match="not empty"), whole_folder(tmp_path / "full"):
        pass
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CkdEhrError, match="where you are"), whole_folder(Path()):
        pass


def test_a_git_work_tree_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    assert work_tree_of(tmp_path / "repository" / "new" / "folder") == tmp_path / "repository"
    assert work_tree_of(tmp_path / "elsewhere") is None


def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_fills_is_not(
    tmp_path: Path,
) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    host = socket.gethostname()
    left = tmp_path / f".wanted.{host}.{done.pid}.partial"
    alive = tmp_path / f".wanted.{host}.{os.getppid()}.partial"
    elsewhere = tmp_path / f".wanted.another-{host}.{done.pid}.partial"
    for folder in (left, alive, elsewhere):
        folder.mkdir()
        (folder / "one.txt").write_text("1")
    with whole_folder(tmp_path / "wanted"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"wanted", alive.name, elsewhere.name}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_process_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a" / "b" / "wanted"):
        os.kill(os.getpid(), number)
    assert not [*tmp_path.iterdir()]
    assert signal.getsignal(number) == before


def test_a_folder_filled_by_another_meanwhile_is_kept(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    with pytest.raises(CkdEhrError, match="filled it meanwhile"), whole_folder(wanted):
        wanted.mkdir()
        (wanted / "theirs.txt").write_text("keep")
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["theirs.txt"]


def test_an_empty_folder_keeps_its_mode(tmp_path: Path) -> None:
    wanted = tmp_path / "private"
    wanted.mkdir(mode=0o700)
    with whole_folder(wanted):
        pass
    assert wanted.stat().st_mode & 0o7777 == 0o700


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match="name too long"), whole_folder(tmp_path / ("x" * 300)):
        pass
