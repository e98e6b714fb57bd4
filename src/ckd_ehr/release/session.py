"""A released graph at work in ONNX Runtime: encoded narratives in, probabilities and evidence out.

Ignores: how texts are encoded. Texts are padded to buckets of lengths, and only texts of one bucket
share a batch: nobody's risk depends on who else is in it.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.workers import available_cores
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.learning.scoring import Floats

if TYPE_CHECKING:
    import onnx

INPUTS = ("input_ids", "attention_mask", "concept_index")
OUTPUTS = ("probabilities", "evidence")
SLOPE, INTERCEPT = "slope", "intercept"
FUSED, INT8 = "Attention", "MatMulIntegerToFloat"
BUCKET = 32  # tokens
BATCH_TOKENS = 4096
Feed = dict[str, NDArray[np.int64]]


class Output(NamedTuple):
    """Of one narrative: probabilities (labels,), evidence (labels, 1 + concepts)."""

    probabilities: Floats
    evidence: Floats


class Session:
    """A graph, loaded.

    Args:
        graph: its file, with those it refers to beside it.
        pad_token: what short texts are filled up with.
        most_tokens: that a text may have.
        threads: to compute with; as many as there are cores.
    """

    def __init__(
        self, graph: Path, *, pad_token: int, most_tokens: int, threads: int | None = None
    ) -> None:
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library knows no kinds of its own
            raise CkdEhrError(
                f"{graph}: no graph that this ONNX Runtime can load ({type(error).__name__}); "
                "take the bundle again from where it was published, or a newer onnxruntime"
            ) from None
        self._pad_token = pad_token
        self.most_tokens = most_tokens

    def run(self, texts: Sequence[Encoded], *, padded_to: int = 0) -> list[Output]:
        """What the graph says of each text, in their order; `padded_to` at least so many tokens."""
        outputs: dict[int, Output] = {}
        lengths = [max(self._bucket(text), padded_to) for text in texts]
        for rows in batches(lengths):
            some = [texts[row] for row in rows]
            feed = feed_of(some, tokens=lengths[rows[0]], pad_token=self._pad_token)
            probabilities, evidence = self._session.run(list(OUTPUTS), feed)
            for place, row in enumerate(rows):
                states = 1 + len(texts[row].concept_ids)
                outputs[row] = Output(
                    probabilities[place].astype(np.float64),
                    evidence[place, :, :states].astype(np.float64),
                )
        return [outputs[row] for row in range(len(texts))]

    def _bucket(self, text: Encoded) -> int:
        # A text has as many places for concepts as it has tokens.
        length = max(len(text.input_ids), len(text.concept_ids))
        return max(length, min(-(-length // BUCKET) * BUCKET, self.most_tokens))


def batches(lengths: Sequence[int], most: int = BATCH_TOKENS) -> list[list[int]]:
    """Row numbers in batches of one length each, whose tokens stay within the budget.

    >>> batches([64, 32, 64, 64], most=128)
    [[1], [0, 2], [3]]
    """
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows_of.setdefault(length, []).append(row)
    return [
        rows_of[length][start : start + step]
        for length in sorted(rows_of)
        for step in (max(1, most // length),)
        for start in range(0, len(rows_of[length]), step)
    ]


def feed_of(texts: Sequence[Encoded], *, tokens: int, pad_token: int) -> Feed:
    """The graph's inputs (texts, tokens): each text, filled up behind its end."""
    shape = len(texts), tokens
    ids = np.full(shape, pad_token, dtype=np.int64)
    mask, index = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        ids[row, :length], mask[row, :length] = text.input_ids, 1
        index[row, :length] = text.concept_index
    return dict(zip(INPUTS, (ids, mask, index), strict=True))


def runtime_operators(model: "onnx.ModelProto") -> Counter[str]:
    """How often ONNX Runtime runs each operator, after its own rewriting of the graph."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    with tempfile.TemporaryDirectory() as folder:
        options = SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3
        InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in optimised.graph.node)
