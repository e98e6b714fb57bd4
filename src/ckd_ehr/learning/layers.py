"""The stack of equal blocks that a Transformer is made of, and a smaller one from it.

In: a loaded backbone. Out: its blocks, or the backbone with fewer of them. Ignores: training.
"""

from typing import Any

from torch import nn

from ckd_ehr.contracts.errors import CkdEhrError


def blocks_of(backbone: Any) -> tuple[str, nn.ModuleList]:
    """The backbone's stack of blocks and its name among the modules.

    Raises:
        CkdEhrError: it has no list of as many blocks as its configuration says.
    """
    depth = int(backbone.config.num_hidden_layers)
    for name, part in backbone.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            return name, part
    raise CkdEhrError(
        f"{type(backbone).__name__}: no list of its {depth} layers is found in it; "
        "take another model, or leave its layers as they are"
    )


def evenly_spaced(depth: int, layers: int) -> list[int]:
    """Which of `depth` layers a model of `layers` keeps, from 0: round((m + 1)·L / M) − 1.

    The last is always kept, since what a head reads comes from it. Halves are rounded to even.

    >>> evenly_spaced(6, 4), evenly_spaced(6, 2), evenly_spaced(12, 4)
    ([1, 2, 3, 5], [2, 5], [2, 5, 8, 11])
    """
    return [round((m + 1) * depth / layers) - 1 for m in range(layers)]


def select_layers(backbone: Any, layers: int | None) -> None:
    """Keep `layers` evenly spaced layers of a pretrained encoder, in place; None keeps all.

    Of 6 layers, 4 are the 2nd, 3rd, 4th and 6th, and 2 are the 3rd and 6th (`evenly_spaced`).
    The start is that of DistilBERT (Sanh et al. 2019).

    Raises:
        CkdEhrError: more layers than there are, or layers that cannot take each other's place.
    """
    depth = int(backbone.config.num_hidden_layers)
    if layers is None or layers == depth:
        return
    if layers > depth:
        raise CkdEhrError(f"student.layers={layers}: the model has {depth} layers; lower it")
    name, blocks = blocks_of(backbone)
    kept = evenly_spaced(depth, layers)
    for place, layer in enumerate(kept):  # saved weights must fit when the model is built again
        if blocks[place].state_dict().keys() != blocks[layer].state_dict().keys():
            raise CkdEhrError(
                f"student.layers={layers}: layer {layer + 1} of {type(backbone).__name__} cannot "
                f"stand in place of layer {place + 1}; set student.layers=null"
            )
    backbone.set_submodule(name, nn.ModuleList(blocks[layer] for layer in kept))
    backbone.config.num_hidden_layers = layers
