"""Folders made for a user: whole or not at all, never over what is there."""

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
