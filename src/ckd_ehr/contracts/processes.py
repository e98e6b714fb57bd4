"""Which of several processes this is, as torchrun says: one leads, the others follow.

In: the environment. Out: numbers, and the words that a leader says to its followers. Ignores: how
words travel; learning/gang.py carries them.
"""

import os
from typing import Protocol


class Gang(Protocol):
    """Processes that run the same stages together."""

    def tell(self, word: object) -> None:
        """Say a word to all followers."""

    def hear(self) -> object:
        """Wait for the leader's next word."""


def rank() -> int:
    """The number of this process; 0 leads, and is what a process alone is."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leader() -> bool:
    """Whether this process writes what all have computed."""
    return rank() == 0
