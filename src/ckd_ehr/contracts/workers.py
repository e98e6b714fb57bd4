"""The same work on several cores: a share here, each other share in a process of its own.

In: a function and its shares of the work. Out: what it gives for each. Ignores: what is done.
Processes of torchrun, which run all stages together, are processes.py's.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
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

    A process that fails, by an error or for want of memory, costs time only: its share is done
    again here, where an error is seen.

    Args:
        work: a function of a module; it and the shares are pickled.
        shares: one at least; the first is done here.
    """
    context = multiprocessing.get_context("spawn")
    helpers = []
    try:
        for share in shares[1:]:
            ours, theirs = context.Pipe(duplex=False)
            helper = context.Process(target=_help, args=(theirs, work, share), daemon=True)
            helpers.append((helper, ours))
            helper.start()
            theirs.close()  # so that its end is the pipe's
        results = [work(shares[0])]
        for share, (_, ours) in zip(shares[1:], helpers, strict=True):
            try:
                results.append(ours.recv())
            except EOFError:
                results.append(work(share))
        return results
    finally:
        for helper, _ in helpers:
            if helper.pid is not None:
                helper.terminate()
                helper.join()


def _help(results: Connection, work: Callable[[Share], Result], share: Share) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    try:
        result = work(share)
    except Exception:  # the first process does it again, and says what is wrong
        return
    results.send(result)
