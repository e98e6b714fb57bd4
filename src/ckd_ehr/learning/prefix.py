"""A beginning that all prompts have in common, read once: its keys and values serve every batch.

In: a causal backbone and the tokens of the beginning. Out: a cache for each batch, and examples
without the beginning. Ignores: what the beginning says. A model that looks ahead has no such cache:
its beginning depends on what follows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ckd_ehr.learning.batches import Example


class Prefix:
    """The beginning's keys and values in each layer.

    Args:
        backbone: causal, where it runs; not changed.
        tokens: of the beginning.
        device: where to.
    """

    def __init__(self, backbone: nn.Module, tokens: Sequence[int], *, device: str) -> None:
        self.tokens = tuple(tokens)
        ids = torch.tensor([self.tokens], device=device)
        cache = backbone(input_ids=ids, use_cache=True).past_key_values
        self._layers: list[tuple[Tensor, Tensor]] = [
            (layer.keys, layer.values) for layer in cache.layers
        ]

    def cache(self, batch: int) -> DynamicCache:
        """A cache for one forward pass of `batch` prompts, which adds their own tokens to it."""
        return DynamicCache(
            [
                (keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1))
                for keys, values in self._layers
            ]
        )

    def mask(self, attention_mask: Tensor) -> Tensor:
        """The mask (batch, beginning + tokens) of prompts whose own is (batch, tokens)."""
        seen = attention_mask.new_ones(len(attention_mask), len(self.tokens))
        return torch.cat([seen, attention_mask], dim=1)

    def rest(self, example: Example) -> Example:
        """The example without the beginning."""
        length, encoded = len(self.tokens), example.encoded
        assert np.array_equal(encoded.input_ids[:length], self.tokens)
        return replace(
            example,
            encoded=replace(
                encoded,
                input_ids=encoded.input_ids[length:],
                concept_index=encoded.concept_index[length:],
                reading_index=encoded.reading_index - length,
            ),
        )
