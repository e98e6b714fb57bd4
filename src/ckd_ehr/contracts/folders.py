"""Folders that a command makes for its user: whole, or not there at all.

In: where one is wanted. Out: a place to fill, put there when it is full. Ignores: what is in it;
a run's stages have their own way (runs.py).
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckd_ehr.contracts.errors import CkdEhrError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, renamed to it when the block succeeds, else deleted.

    Raises:
        CkdEhrError: `folder` holds anything, cannot be replaced as a whole, or cannot be made.
    """
    target = folder.resolve()
    if target.is_dir() and any(target.iterdir()):
        raise CkdEhrError(f"{folder}: not empty; take a new folder")
    if target.is_mount() or target == Path.cwd():
        raise CkdEhrError(
            f"{folder}: cannot be replaced as a whole, being a mount or where you are; take "
            "a new folder in it"
        )
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise CkdEhrError(
            f"{folder}: no folder can be made there ({error.strerror}); "
            "take a place you may write to"
        ) from None
    try:
        yield partial
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def work_tree_of(folder: Path) -> Path | None:
    """The git work tree that a folder is in, or would be in; None outside of any."""
    parents = (folder.resolve(), *folder.resolve().parents)
    return next((place for place in parents if (place / ".git").exists()), None)
