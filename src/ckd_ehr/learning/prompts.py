"""A narrative within the chat that a model was tuned on: instruction, record, place of the answer.

In: a model's tokenizer and the labels. Out: encoded prompts, read at their last token. What does
not fit is cut from the record's beginning, never from the instruction or the reading position.
Ignores: what is learnt from prompts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Narrative
from ckd_ehr.data.sources.instruction_text import ANSWER
from ckd_ehr.knowledge.instructions import TASK
from ckd_ehr.learning.alignment import Encoded, concept_index_of
from ckd_ehr.learning.batches import Example
from ckd_ehr.learning.examples import TextReader
from ckd_ehr.learning.weights import resolve_model

DATE = "26 Jul 2024"  # some templates would tell today's: a prompt is the same on any day
_RECORD = "\u241erecord\u241e"  # where the record goes, in no chat template


class PromptReader(TextReader):
    """Reads narratives within the model's chat template.

    Args:
        model: its name.
        labels: the diseases that the instruction lists.
        max_tokens: of a whole prompt.

    Raises:
        CkdEhrError: the instruction alone does not fit.
    """

    def __init__(self, model: str, labels: Sequence[str], *, max_tokens: int) -> None:
        super().__init__(model, "last")
        self.max_tokens = max_tokens
        before, after = _chat(model, TASK.format(labels=", ".join(labels)))
        self.before = tuple(self.tokenizer.encode(before, add_special_tokens=False).ids)
        self.after = tuple(self.tokenizer.encode(after, add_special_tokens=False).ids)
        self.room = max_tokens - len(self.before) - len(self.after)
        if self.room < 1:
            raise CkdEhrError(
                f"teacher.paper.max_tokens={max_tokens}: the instruction that lists "
                f"{len(labels)} diseases takes {max_tokens - self.room} tokens; raise it"
            )

    def example(self, pair_id: str, narrative: Narrative) -> Example:
        """The prompt of a narrative, without its answer."""
        encoding = self.tokenizer.encode(narrative.text, add_special_tokens=False)
        cut = max(0, len(encoding.ids) - self.room)
        index = concept_index_of(encoding.offsets[cut:], narrative.spans)
        ids = (*self.before, *encoding.ids[cut:], *self.after)
        return Example(
            pair_id=pair_id,
            encoded=Encoded.of(
                ids, self._placed(index), narrative.spans, reading_index=len(ids) - 1
            ),
        )

    def _placed(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The record's concepts in the whole prompt; nothing else is of a concept."""
        return np.pad(index, (len(self.before), len(self.after)))

    def answer(self, labels: NDArray[np.floating], names: Sequence[str]) -> tuple[int, ...]:
        """The tokens of what the model is to say, its end token included."""
        present = [name for name, on in zip(names, labels > 0.5, strict=True) if on]
        said = f"{ANSWER} {', '.join(present) or 'None'}"
        assert self.end_token is not None
        return (*self.tokenizer.encode(said, add_special_tokens=False).ids, self.end_token)


def _chat(model: str, task: str) -> tuple[str, str]:
    """The text before and after the record; without a chat template, headings."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    if tokenizer.chat_template is None:
        return f"{task}\n\n", "\n\nAnswer:"
    turn = [{"role": "user", "content": f"{task}\n\n{_RECORD}"}]
    text = str(
        tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, date_string=DATE
        )
    )
    before, _, after = text.partition(_RECORD)
    return before, after
