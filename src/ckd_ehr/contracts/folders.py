"""Folders that a command makes for its user: whole, or not there at all.

In: where one is wanted. Out: a place to fill, put there when it is full. Ignores: what is in it;
a run's stages have their own way (runs.py).
"""

import errno
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ckd_ehr.contracts.errors import CkdEhrError

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, renamed to it when the block succeeds, else deleted.

    An empty `folder` gives its mode and group to the new one. What a killed process left beside it
    is deleted first.

    Raises:
        CkdEhrError: `folder` holds anything, cannot be replaced as a whole, or cannot be made.
    """
    target = folder.resolve()
    if _is_there(folder, target) and any(target.iterdir()):
        raise CkdEhrError(f"{folder}: not empty; take a new folder")
    if target.is_mount() or target == Path.cwd():
        raise CkdEhrError(
            f"{folder}: cannot be replaced as a whole, being a mount or where you are; take "
            "a new folder in it"
        )
    _delete_leftovers(target)
    partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.partial")
    made = [parent for parent in partial.parents if not parent.exists()]  # the deepest first
    with _interrupted_when_terminated():
        try:
            _make(folder, partial)
            yield partial
            _put(partial, folder, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
            raise


def _is_there(folder: Path, target: Path) -> bool:
    try:
        return target.is_dir()
    except OSError as error:
        raise CkdEhrError(f"{folder}: {error.strerror}; give another name") from None


def _make(folder: Path, partial: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise CkdEhrError(
            f"{folder}: no folder can be made in {partial.parent} ({error.strerror}); take a place "
            f"you may write to"
        ) from None


def _put(partial: Path, folder: Path, target: Path) -> None:
    """Put the filled folder in its place, with the mode and group of an empty one there."""
    try:
        if target.is_dir():
            kept = target.stat()
            target.rmdir()
            if kept.st_gid != partial.stat().st_gid:
                os.chown(partial, -1, kept.st_gid)
            partial.chmod(kept.st_mode & 0o7777)
        partial.rename(target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise CkdEhrError(
            f"{folder}: somebody else has filled it meanwhile; take a new folder"
        ) from None


def _delete_leftovers(target: Path) -> None:
    """Delete what processes of this machine left that were killed while they filled a folder."""
    begin = f".{target.name}.{socket.gethostname()}."
    if not target.parent.is_dir() or not os.access(target.parent, os.R_OK):
        return
    for path in target.parent.iterdir():
        process = path.name.removeprefix(begin).removesuffix(".partial")
        is_partial = path.name == f"{begin}{process}.partial" and process.isdecimal()
        if is_partial and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


@contextmanager
def _interrupted_when_terminated() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP interrupt as Ctrl-C does, so that it can clean up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def work_tree_of(folder: Path) -> Path | None:
    """The git work tree that a folder is in, or would be in; None outside of any."""
    parents = (folder.resolve(), *folder.resolve().parents)
    return next((place for place in parents if (place / ".git").exists()), None)
