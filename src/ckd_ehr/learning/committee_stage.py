"""The committee stage: soft labels of the teacher and of every other member, calibrated, stacked.

In: the teacher's signals, and what the other members read. Out: `soft_labels.parquet` with a
source a row, `evidence.parquet`, `committee.json`. Ignores: how the student uses them. The
teacher's hours of reading are in an earlier stage: settings of the committee cost minutes.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, write_fitted
from ckd_ehr.contracts.records import SOFT_LABELS, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.code_members import code_opinions
from ckd_ehr.learning.committee import COMMITTEE, Stack, read_external, stacked_sources
from ckd_ehr.learning.evidence import EVIDENCE, evidence_rows, evidence_table
from ckd_ehr.learning.examples import PairTable, read_pairs
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.learning.signal_store import read_evidence, read_opinions
from ckd_ehr.learning.soft_labels import (
    Calibration,
    FoldOpinion,
    SoftLabels,
    calibrate,
    reliability,
    rows_to_label,
    soft_label_table,
    soft_labels_of,
)

TEACHER = "teacher"


@dataclass
class _Sources:
    """What has been gathered so far."""

    soft: list[SoftLabels] = field(default_factory=list)
    fitted: list[FittedOn] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


def write_committee(context: StageContext) -> None:
    """Calibrate every member out of fold, stack them, write."""
    pairs = read_pairs(context.inputs["cohort"])
    settings = context.config.committee
    external = {name: read_external(path, name, pairs) for name, path in settings.external.items()}
    sources = _Sources()
    opinions = [
        read_opinions(
            context.inputs["signals"], fold, pairs, unlabelled=context.config.signals.unlabelled
        )
        for fold in range(context.config.splits.folds)
    ]
    calibration = _add(context, pairs, sources, TEACHER, opinions)
    rows = _evidence(context, calibration, pairs)
    write_table(evidence_table(rows), context.folder / "evidence.parquet", EVIDENCE)
    for member in settings.members:
        if member != TEACHER:
            context.say(f"    {member}: one model a label and fold, on codes")
            opinions, fitted = code_opinions(context, pairs, member=member)
            sources.fitted += fitted
            _add(context, pairs, sources, member, opinions)
    for name, log_odds in external.items():
        _add(context, pairs, sources, name, _external_opinions(log_odds, pairs), opinionated=False)
    _stack(context, pairs, sources)
    schema = with_label_names(SOFT_LABELS, pairs.label_names)
    table = pa.concat_tables([soft_label_table(soft, pairs) for soft in sources.soft])
    write_table(table, context.folder / "soft_labels.parquet", schema)
    write_json(context.folder / "committee.json", sources.facts)
    write_fitted(context.folder / FITTED, sources.fitted)


def _add(
    context: StageContext,
    pairs: PairTable,
    sources: _Sources,
    name: str,
    opinions: Sequence[FoldOpinion],
    *,
    opinionated: bool = True,
) -> Calibration:
    """Calibrate a source's folds, and keep its soft labels, without a spread of one opinion."""
    settings = context.config.committee
    calibration, fitted = calibrate(
        opinions,
        pairs,
        source=name,
        ridge=settings.calibration_ridge,
        isotonic=settings.calibration == "isotonic",
    )
    soft = soft_labels_of(opinions, calibration, pairs, source=name)
    if not opinionated:
        soft.spread[:] = np.nan
    scores = reliability(opinions, soft, pairs)
    sources.soft.append(soft)
    sources.fitted += fitted
    platt = [
        {"slope": line.slope.tolist(), "intercept": line.intercept.tolist()}
        for line in calibration.platt
    ]
    sources.facts[name] = {
        "calibration": settings.calibration,
        "platt": platt,
        "one_class": calibration.one_class,
        "tuning": scores,
    }
    if calibration.one_class:
        context.say(
            f"    {name}: {calibration.one_class} times a label has one class in a fold; it is "
            "calibrated there by the line of all folds"
        )
    if scores["after"]:
        context.say(
            f"    {name}: tuning macro-AUPRC {_shown(scores['after']['macro_auprc'])}, ECE "
            f"{_shown(scores['before']['ece'])} before calibration, "
            f"{_shown(scores['after']['ece'])} after"
        )
    return calibration


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _external_opinions(log_odds: Floats, pairs: PairTable) -> list[FoldOpinion]:
    """A member whose probabilities were made elsewhere, as if by a model a fold."""
    folds = sorted({int(fold) for fold in pairs.fold[pairs.split == "train"]})
    rows = [rows_to_label(pairs, fold) for fold in folds]
    return [FoldOpinion(f, at, log_odds[None, at]) for f, at in zip(folds, rows, strict=True)]


def _stack(context: StageContext, pairs: PairTable, sources: _Sources) -> None:
    """The committee of the members, and what is lost without each."""
    settings = context.config.committee
    wanted = [*settings.members, *settings.external]
    members = {soft.source: soft.logits for soft in sources.soft if soft.source in wanted}
    stacked = stacked_sources(members, pairs, ridge=settings.ridge)
    for source, (log_odds, spread, _) in stacked.items():
        sources.soft.append(SoftLabels(source, log_odds, spread))
        ids = [pairs.pair_ids[row] for row in pairs.rows(split="train", labelled=True)]
        sources.fitted.append(fitted_on(f"{source}/weights", ids, split="train"))
    stack = stacked[COMMITTEE].stack
    sources.facts[COMMITTEE] = _weights(stack, list(members), pairs.label_names)
    shown = ", ".join(
        f"{name} {weight:.2f}" for name, weight in zip(members, stack.weights.mean(1), strict=True)
    )
    context.say(f"    committee: mean weights {shown}")


def _weights(stack: Stack, members: list[str], labels: Sequence[str]) -> dict[str, object]:
    by_label = {
        label: dict(zip(members, stack.weights[:, k].round(4).tolist(), strict=True))
        for k, label in enumerate(labels)
    }
    mean = dict(zip(members, stack.weights.mean(1).round(4).tolist(), strict=True))
    return {"members": members, "mean_weights": mean, "weights": by_label}


def _evidence(
    context: StageContext, calibration: Calibration, pairs: PairTable
) -> Iterator[dict[str, object]]:
    """Rows of the table `evidence`; on later splits of the mean over the fold teachers."""
    narratives = read_narratives(context.inputs["knowledge"], "teacher")
    is_train = dict(zip(pairs.pair_ids, (pairs.split == "train").tolist(), strict=True))
    later: defaultdict[str, Floats | float] = defaultdict(float)
    for fold, line in enumerate(calibration.platt):
        for pair_id, raw in read_evidence(context.inputs["signals"], fold):
            evidence = line.slope[:, None] * raw
            if is_train[pair_id]:
                yield from evidence_rows(pair_id, evidence, narratives[pair_id], pairs.label_names)
            else:
                later[pair_id] = later[pair_id] + evidence / len(calibration.platt)
    for pair_id, mean in later.items():
        yield from evidence_rows(pair_id, np.asarray(mean), narratives[pair_id], pairs.label_names)
