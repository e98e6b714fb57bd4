"""The students of a run explained: whether explanations hold, and one example of them.

In: a run's students, narratives and scored pairs. Out: a part of metrics.json, and of simulated
patients one explanation. Ignores: how either is shown.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.records import Explanation, Narrative
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import iter_narratives
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.metrics.ceiling import is_simulated
from ckd_ehr.metrics.faithfulness import measure_faithfulness
from ckd_ehr.metrics.labelled_pairs import LabelledPairs
from ckd_ehr.metrics.results import Faithfulness

VARIANTS = ("hard", "distilled")


def faithfulness_of_run(
    inputs: Mapping[str, Path], config: RunConfig, held_out: pa.Table
) -> dict[str, Faithfulness]:
    """What erasing concepts does to each student's risks, on one held-out pair a patient."""
    settings = config.evaluation.faithfulness
    ids = one_a_patient(held_out, at_most=settings.pairs)
    wanted = set(ids)
    told = {one: text for one, text in iter_narratives(inputs["knowledge"], "student")
            if one in wanted}  # fmt: skip
    results = {}
    for variant in VARIANTS if ids else ():
        found = _faithfulness(inputs["student"] / variant, config, [told[one] for one in ids])
        if found is not None:
            results[f"student_{variant}"] = found
    return results


def one_a_patient(pairs: pa.Table, *, at_most: int) -> list[str]:
    """Ids of pairs of so many patients, each one's first by id; ids are hashes, so any patient's.

    >>> table = pa.table({"pair_id": ["c", "a", "b"], "subject_id": [1, 1, 2]})
    >>> one_a_patient(table, at_most=2), one_a_patient(table, at_most=1)
    (['a', 'b'], ['a'])
    """
    first: dict[int, str] = {}
    for pair_id, subject_id in sorted(
        zip(pairs["pair_id"].to_pylist(), pairs["subject_id"].to_pylist(), strict=True)
    ):
        first.setdefault(subject_id, pair_id)
    return sorted(first.values())[:at_most]


def _faithfulness(
    student: Path, config: RunConfig, narratives: list[Narrative]
) -> Faithfulness | None:
    from ckd_ehr.learning.inference import StudentPredictor

    predictor = StudentPredictor(student, device=config.device)

    def evidence(narrative: Narrative) -> Floats:
        labels = predictor.explain("", narrative).labels
        parts = [[one.reading_state_log_odds, *(c.log_odds for c in one.concepts)]
                 for one in labels]  # fmt: skip
        return np.array(parts)

    settings = config.evaluation
    return measure_faithfulness(
        narratives,
        predict=predictor.risks,
        explain=evidence,
        random_orders=settings.faithfulness.random_orders,
        draws=settings.bootstrap_draws,
        gate=settings.faithfulness.gate,
        seed=config.seed,
    )


def explained_example(
    context: StageContext, pairs: LabelledPairs, probabilities: Floats, *, scored: str
) -> Explanation | None:
    """The scored pair with the highest risk of a disease new to it; simulated patients only."""
    if not is_simulated(context.inputs["events"], context.config.data.source):
        return None
    from ckd_ehr.learning.inference import explain_by_student

    new_onset = pairs.rows(scored)[:, None] & ~pairs.previously_present
    risks = np.where(new_onset, probabilities, -1.0).max(axis=1)
    pair_id = str(pairs.ids[int(np.argmax(risks))].as_py())
    return explain_by_student(context.inputs, pair_id, context.config)
