"""Whole concepts as tokens: a tokenizer with added tokens, and embeddings to begin with.

In: a model's tokenizer and texts. Out: a tokenizer that reads each text as one token, and all else
as before, without separators. Ignores: which texts, and why. Added tokens are sought in the text as
it is written, the longest first; what is left between them is read as word pieces.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.weights import counter_of, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

# What ends a concept, not the point of "2.5 mg"; a concept read as word pieces loses its own, too.
# White space alone would be a token to byte-level models.
SEPARATORS = r"^[;.,]?\s+$|[;.,](?=\s|$)"


def extended_tokenizer(base: "Tokenizer", texts: Sequence[str]) -> "Tokenizer":
    """The tokenizer, reading each of these texts as one token and no separators.

    A text that is a token already keeps its number; the others are numbered on in their order.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers

    tokenizer: Tokenizer = Tokenizer.from_str(base.to_str())
    tokenizer.add_tokens([AddedToken(text, single_word=True, normalized=False) for text in texts])
    steps = [normalizers.Replace(Regex(SEPARATORS), "")]
    steps += [base.normalizer] if base.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def write_extended(model: str, texts: Sequence[str], path: Path) -> Callable[[str], int]:
    """Write the model's tokenizer, extended by these texts; its token counter."""
    tokenizer = extended_tokenizer(load_tokenizer(model), texts)
    tokenizer.save(str(path))
    return counter_of(tokenizer)


def read_extended(model: str, path: Path) -> "Tokenizer":
    """A tokenizer of `write_extended`.

    Raises:
        CkdEhrError: the file is missing, no tokenizer, or not one of this model.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer: Tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library knows no kinds of its own
        raise CkdEhrError(
            f"{path}: missing or no tokenizer ({type(error).__name__}); rerun stage knowledge"
        ) from None
    if not load_tokenizer(model).get_vocab().items() <= tokenizer.get_vocab().items():
        raise CkdEhrError(
            f"{path}: extends another tokenizer than that of student.model={model}; "
            "rerun stage knowledge"
        )
    return tokenizer


def extend_embeddings(
    backbone: "PreTrainedModel", tokenizer: "Tokenizer", base_tokenizer: "Tokenizer"
) -> None:
    """Give each added token a row of the embeddings: the mean of its pieces in the base tokenizer.

    The matrix (tokens, size) grows in place; rows that the model has stay as they are.
    """
    import torch

    vocabulary, known = tokenizer.get_vocab(), base_tokenizer.get_vocab()
    embeddings = backbone.get_input_embeddings()
    rows = max(len(embeddings.weight), 1 + max(vocabulary.values()))
    backbone.resize_token_embeddings(rows, mean_resizing=False)
    table = backbone.get_input_embeddings().weight
    with torch.no_grad():
        for text in vocabulary.keys() - known.keys():
            pieces = base_tokenizer.encode(text, add_special_tokens=False).ids
            if pieces:  # none of a text of accents alone, which keeps its random row
                table[vocabulary[text]] = table[pieces].mean(0)
