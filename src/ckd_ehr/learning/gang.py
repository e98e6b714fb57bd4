"""Several processes as one: words from the leader, and places to wait for each other.

In: what torchrun set in the environment. Out: PyTorch's process group, for Trainer and for us.
Ignores: what is computed.
"""

from datetime import timedelta
from functools import lru_cache

import torch.distributed as dist
from accelerate import PartialState

from ckd_ehr.contracts.processes import world_size

LONGEST_WAIT = timedelta(days=30)  # for what the leader does alone


class TorchGang:
    """The processes of one `torchrun`; words go through gloo, whatever tensors take.

    Args:
        device: `auto`, `cpu` or `cuda`, as in the settings.
    """

    def __init__(self, device: str) -> None:
        PartialState(cpu=device == "cpu")
        _words()  # made by all at the start, or the first to speak waits for it

    def tell(self, word: object) -> None:
        """Say a word to all followers."""
        dist.broadcast_object_list([word], src=0, group=_words())

    def hear(self) -> object:
        """Wait for the leader's next word."""
        heard: list[object] = [None]
        dist.broadcast_object_list(heard, src=0, group=_words())
        return heard[0]


def meet() -> None:
    """Wait until all processes are here; at once for a process alone."""
    if world_size() > 1:
        dist.barrier(group=_words())


@lru_cache
def _words() -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return group
