"""What the teacher knows, written once: soft labels, what they rest on, and concept attention.

In: the fold teachers, the teacher's narratives, and what the other members of the committee read.
Out: `soft_labels.parquet` with a source a row, `evidence.parquet`, `committee.json`, and per train
pair the teacher's attention in safetensors shards, found through `index.parquet`. A pair's signals
carry the hash of everything they came from. Ignores: how the student uses them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from safetensors.torch import save_file

from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, write_fitted
from ckd_ehr.contracts.processes import is_leader
from ckd_ehr.contracts.records import SOFT_LABELS, Narrative, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.code_members import code_opinions
from ckd_ehr.learning.committee import COMMITTEE, Stack, read_external, stacked_sources
from ckd_ehr.learning.evidence import EVIDENCE, evidence_rows, evidence_table
from ckd_ehr.learning.examples import PairTable, read_pairs
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.labelling import FoldLabeller
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.learning.signal_store import INDEX, KEPT, FoldTeacher
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
from ckd_ehr.learning.teacher import teacher_reader

TEACHER = "teacher"


@dataclass
class _Sources:
    """What has been gathered so far."""

    soft: list[SoftLabels] = field(default_factory=list)
    fitted: list[FittedOn] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


def write_signals(context: StageContext) -> None:
    """Label every pair with models that have not seen its patient; calibrate; stack; write."""
    pairs = read_pairs(context.inputs["cohort"])
    narratives = read_narratives(context.inputs["knowledge"], "teacher")
    labellers = _labellers(context, pairs, narratives)
    for labeller in labellers:
        labeller.read()
    meet()
    if not is_leader():
        return
    sources = _Sources()
    _add_teacher(context, pairs, narratives, sources, labellers)
    settings = context.config.signals.committee
    for member in settings.members:
        if member != TEACHER:
            context.say(f"    {member}: one model a label and fold, on codes")
            opinions, fitted = code_opinions(context, pairs, member=member)
            sources.fitted += fitted
            _add(context, pairs, sources, member, opinions)
    for name, path in settings.external.items():
        log_odds = read_external(path, name, pairs)
        _add(context, pairs, sources, name, _external_opinions(log_odds, pairs))
    _stack(context, pairs, sources)
    schema = with_label_names(SOFT_LABELS, pairs.label_names)
    table = pa.concat_tables([soft_label_table(soft, pairs) for soft in sources.soft])
    write_table(table, context.folder / "soft_labels.parquet", schema)
    index = [row for labeller in labellers for row in _publish(context, labeller, narratives)]
    write_table(pa.Table.from_pylist(index, INDEX), context.folder / "index.parquet", INDEX)
    write_json(context.folder / "committee.json", sources.facts)
    write_fitted(context.folder / FITTED, sources.fitted)


def _labellers(
    context: StageContext, pairs: PairTable, narratives: Mapping[str, Narrative]
) -> list[FoldLabeller]:
    reader = teacher_reader(context.config, pairs.label_names)
    return [
        FoldLabeller(context, fold, pairs=pairs, narratives=narratives, reader=reader)
        for fold in range(context.config.splits.folds)
    ]


def _add_teacher(
    context: StageContext,
    pairs: PairTable,
    narratives: Mapping[str, Narrative],
    sources: _Sources,
    labellers: Sequence[FoldLabeller],
) -> None:
    """The teacher's soft labels, and the table of what they rest on."""
    opinions = [labeller.opinion() for labeller in labellers]
    calibrations = _add(context, pairs, sources, TEACHER, opinions)
    rows = _evidence(labellers, calibrations, narratives, pairs)
    write_table(evidence_table(rows), context.folder / "evidence.parquet", EVIDENCE)


def _add(
    context: StageContext,
    pairs: PairTable,
    sources: _Sources,
    name: str,
    opinions: Sequence[FoldOpinion],
) -> list[Calibration]:
    """Calibrate a source's folds, and keep its soft labels."""
    settings = context.config.signals
    calibrated = [
        calibrate(
            opinion,
            pairs,
            source=name,
            ridge=settings.calibration_ridge,
            isotonic=settings.calibration == "isotonic",
        )
        for opinion in opinions
    ]
    calibrations = [calibration for calibration, _ in calibrated]
    soft = soft_labels_of(opinions, calibrations, pairs, source=name)
    scores = reliability(opinions, soft, pairs)
    sources.soft.append(soft)
    sources.fitted += [record for _, record in calibrated]
    platt = [
        {"slope": c.platt.slope.tolist(), "intercept": c.platt.intercept.tolist()}
        for c in calibrations
    ]
    sources.facts[name] = {"platt": platt, "tuning": scores}
    if scores["after"]:
        context.say(
            f"    {name}: tuning macro-AUPRC {_shown(scores['after']['macro_auprc'])}, ECE "
            f"{_shown(scores['before']['ece'])} before calibration, "
            f"{_shown(scores['after']['ece'])} after"
        )
    return calibrations


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _external_opinions(log_odds: Floats, pairs: PairTable) -> list[FoldOpinion]:
    """A member whose probabilities were made elsewhere, as if by a model a fold."""
    folds = sorted({int(fold) for fold in pairs.fold[pairs.split == "train"]})
    rows = [rows_to_label(pairs, fold) for fold in folds]
    return [FoldOpinion(f, at, log_odds[None, at]) for f, at in zip(folds, rows, strict=True)]


def _stack(context: StageContext, pairs: PairTable, sources: _Sources) -> None:
    """The committee of the members, and what is lost without each."""
    settings = context.config.signals.committee
    wanted = [*settings.members, *settings.external]
    members = {soft.source: soft for soft in sources.soft if soft.source in wanted}
    log_odds, stacks = stacked_sources(
        {name: soft.logits for name, soft in members.items()}, pairs, ridge=settings.ridge
    )
    disagreement = np.std([soft.logits for soft in members.values()], axis=0)
    for source, values in log_odds.items():
        spread = disagreement if len(members) > 1 else np.full_like(values, np.nan)
        sources.soft.append(SoftLabels(source, values, spread))
        ids = [pairs.pair_ids[row] for row in pairs.rows(split="train", labelled=True)]
        sources.fitted.append(fitted_on(f"{source}/weights", ids, split="train"))
    stack = stacks[COMMITTEE]
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
    labellers: Sequence[FoldLabeller],
    calibrations: Sequence[Calibration],
    narratives: Mapping[str, Narrative],
    pairs: PairTable,
) -> Iterator[dict[str, object]]:
    """Rows of the table `evidence`; on later splits of the mean over the fold teachers."""
    later: defaultdict[str, Floats | float] = defaultdict(float)
    for labeller, calibration in zip(labellers, calibrations, strict=True):
        slope = calibration.platt.slope[:, None]
        train = dict(zip(labeller.pair_ids, labeller.is_train.tolist(), strict=True))
        for _, pair_ids, tensors in labeller.chunks():
            for pair_id in pair_ids:
                evidence = slope * tensors[f"{pair_id}/evidence"].double().numpy()
                if train[pair_id]:
                    yield from evidence_rows(
                        pair_id, evidence, narratives[pair_id], pairs.label_names
                    )
                else:
                    later[pair_id] = later[pair_id] + evidence / len(labellers)
    for pair_id, evidence_mean in later.items():
        yield from evidence_rows(
            pair_id, np.asarray(evidence_mean), narratives[pair_id], pairs.label_names
        )


def _publish(
    context: StageContext, labeller: FoldLabeller, narratives: Mapping[str, Narrative]
) -> Iterator[dict[str, object]]:
    """Copy what the student reads into the stage's folder; rows of the index."""
    teacher = FoldTeacher.of(context.config, context.inputs["teacher"], labeller.fold)
    for start, pair_ids, tensors in labeller.chunks():
        kept = {name: value for name, value in tensors.items() if name.split("/")[1] in KEPT}
        if not kept:
            continue
        shard = f"signals-{labeller.fold}-{start:08d}.safetensors"
        save_file(kept, context.folder / shard)
        for pair_id in pair_ids:
            if f"{pair_id}/attention" in kept:
                yield {
                    "pair_id": pair_id,
                    "fold": labeller.fold,
                    "key": teacher.key(narratives[pair_id].text),
                    "shard": shard,
                    "concept_ids": [span.concept_id for span in narratives[pair_id].spans],
                }
