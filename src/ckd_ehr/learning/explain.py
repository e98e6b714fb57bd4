"""What a model's risks for one pair rest on, as parts of its calibrated log-odds.

In: a run's folders and a pair. Out: an `Explanation`. Ignores: how it is shown, and whether
evidence is faithful.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table
from ckd_ehr.contracts.records import SOFT_LABELS, Explanation, Narrative
from ckd_ehr.knowledge.sources import cite_narrative
from ckd_ehr.learning.examples import TextReader, read_pairs
from ckd_ehr.learning.explanations import Evidence, calibrated_evidence, label_explanations
from ckd_ehr.learning.reading import pick_device, read_batch, reading
from ckd_ehr.learning.scoring import Floats, PlattScaling
from ckd_ehr.learning.teacher import load_teacher, teacher_reader, trained_in


def explain_by_teacher(inputs: Mapping[str, Path], pair_id: str, config: RunConfig) -> Explanation:
    """Explain the teacher's risks for one pair, as it reads the written order of the codes.

    A train pair is explained by the teacher that has not seen its patient, others by the mean of
    all fold teachers. Isotonic curves, if a run has them, are left out: they have no parts.

    Args:
        inputs: the folders of the stages `cohort`, `knowledge`, `teacher` and `committee`.

    Raises:
        CkdEhrError: the run has no such pair, or its teacher is of other labels.
    """
    narrative, citations = cite_narrative(inputs, config, pair_id=pair_id, reader="teacher")
    pairs = read_pairs(inputs["cohort"])
    own = int(pairs.fold[pairs.pair_ids.index(pair_id)])
    folds = [own] if own >= 0 else list(range(config.splits.folds))
    reader = teacher_reader(config, pairs.label_names)
    for fold in folds:
        _refuse_other_labels(inputs["teacher"] / f"fold_{fold}", pairs.label_names)
    opinions = [_teachers_evidence(inputs, config, reader, narrative, fold) for fold in folds]
    mean = Evidence(
        np.mean([opinion.parts for opinion in opinions], axis=0),
        np.mean([opinion.base for opinion in opinions], axis=0),
    )
    return Explanation(
        pair_id=pair_id,
        model="teacher",
        narrative=narrative,
        labels=label_explanations(
            mean,
            narrative,
            labels=pairs.label_names,
            prevalence=pairs.prevalence(),
            citations=citations,
            spread=_spread(inputs["committee"], pair_id),
        ),
    )


def _refuse_other_labels(teacher: Path, labels: Sequence[str]) -> None:
    if read_json(teacher / "head.json")["labels"] != list(labels):
        raise CkdEhrError(
            f"{teacher}: its labels, or their order, are not the cohort's; run stage teacher and "
            "those after it again"
        )


def _teachers_evidence(
    inputs: Mapping[str, Path],
    config: RunConfig,
    reader: TextReader,
    narrative: Narrative,
    fold: int,
) -> Evidence:
    folder, device = inputs["teacher"] / f"fold_{fold}", pick_device(config.device)
    precision = trained_in(folder)
    settings = config.teacher.model_copy(update={"precision": precision})
    model = load_teacher(settings, folder, device=device)
    with reading(device, precision):
        output = read_batch(
            model, [reader.example("", narrative)], pad_token=reader.pad_token, device=device
        )
    bias = model.head.bias.detach().cpu().double().numpy()
    return calibrated_evidence(
        output.evidence[0].double().numpy(), bias, _scaling(inputs["committee"], fold)
    )


def _scaling(committee: Path, fold: int) -> PlattScaling:
    facts = read_json(committee / "committee.json")["teacher"]
    assert isinstance(facts, dict)
    line = facts["platt"][fold]
    return PlattScaling(np.asarray(line["slope"]), np.asarray(line["intercept"]))


def _spread(committee: Path, pair_id: str) -> Floats | None:
    table = read_table(committee / "soft_labels.parquet", SOFT_LABELS)
    mine = pc.and_(pc.equal(table["pair_id"], pair_id), pc.equal(table["source"], "teacher"))
    [spread] = table.filter(mine)["spread"].to_pylist()
    return None if spread is None else np.asarray(spread)
