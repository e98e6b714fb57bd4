"""The same work on several cores: a share here, each other share in a process of its own.

In: a function and its shares of the work. Out: what it gives for each. Ignores: what is done.
Processes of torchrun, which run all stages together, are processes.py's.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from multiprocessing.connection import Connection, wait
from typing import TypeVar

Share = TypeVar("Share")
Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(work: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """`work` of each share, in their order.

    A process that cannot be started, is killed or fails costs time only: its share is done again
    here, where an error is seen.

    Args:
        work: a function of a module; it and the shares are pickled.
        shares: one at least; the first is done here.
    """
    with _helpers(len(shares) - 1) as helpers:
        others = list(zip_longest(shares[1:], helpers))
        busy = [helper is not None and _tell(helper, (work, share)) for share, helper in others]
        results = [work(shares[0])]
        for (share, helper), is_busy in zip(others, busy, strict=True):
            heard: tuple[Result] | None = _hear(helper) if is_busy else None
            results.append(work(share) if heard is None else heard[0])
        return results


@contextmanager
def _helpers(count: int) -> Iterator[list[Connection]]:
    """As many processes as can be started, up to `count`; at the end there are none left."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        with suppress(OSError), _no_interrupts():  # an OSError: there is no room for another
            for _ in range(count):
                ours, theirs = context.Pipe()
                # Nothing large goes with a process: who sends it would wait for one that is dead.
                process = context.Process(target=_help, args=(theirs,), daemon=True)
                process.start()
                processes.append(process)
                connections.append(ours)
                theirs.close()  # so that the pipe ends with the process
        yield connections
    finally:
        for process in processes:
            process.terminate()
            process.join()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """What is started here is not ended by Ctrl-C, but by the process that has started it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(helper: Connection, task: tuple[object, object]) -> bool:
    """Whether a helper has taken its task: it may be dead, or the task cannot be pickled."""
    try:
        helper.send(task)
    except Exception:
        return False
    return True


def _hear(helper: Connection) -> tuple[Result] | None:
    """A helper's result; None if it has failed, or memory does not suffice for it here."""
    try:
        heard: tuple[Result] = helper.recv()
    except Exception:
        return None
    return heard


def _help(connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(Exception):  # the first process does it again, and says what is wrong
        work, share = connection.recv()
        connection.send((work(share),))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
