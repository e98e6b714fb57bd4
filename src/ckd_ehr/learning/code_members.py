"""Members of the committee that read codes: logistic regression and LightGBM, cross-fitted.

In: visits and pairs. Out: for each fold the raw log-odds of a model that has not seen its patients.
Ignores: text, knowledge; nothing is chosen on tuning.
"""

import numpy as np
import pyarrow as pa

from ckd_ehr.contracts.config import CommitteeMember
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.fitted import FittedOn, fitted_on
from ckd_ehr.contracts.records import PAIRS, VISITS
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.learning.baselines import boosted_trees, code_features, label_regressions
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.scoring import safe_logit
from ckd_ehr.learning.soft_labels import FoldOpinion, rows_to_label


def code_opinions(
    context: StageContext, pairs: PairTable, *, member: CommitteeMember
) -> tuple[list[FoldOpinion], list[FittedOn]]:
    """The member's opinions of each fold, and what its models were fitted on."""
    visits = read_table(context.inputs["cohort"] / "visits.parquet", VISITS)
    table = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS)
    folds = range(context.config.splits.folds)
    fitted = [_fit_fold(context, pairs, visits, table, member=member, fold=f) for f in folds]
    return [opinion for opinion, _ in fitted], [record for _, record in fitted]


def _fit_fold(
    context: StageContext,
    pairs: PairTable,
    visits: pa.Table,
    table: pa.Table,
    *,
    member: CommitteeMember,
    fold: int,
) -> tuple[FoldOpinion, FittedOn]:
    settings = context.config.committee
    train = (pairs.split == "train") & pairs.labelled & (pairs.fold != fold)
    features = code_features(visits, table, fit_on=train)
    if member == "lightgbm":
        risks = boosted_trees(
            features, pairs.labels, train=train, trees=settings.trees, seed=context.config.seed
        )
    else:
        risks = label_regressions(features, pairs.labels, train=train, penalty=settings.penalty)
    rows = rows_to_label(pairs, fold)
    others = [other for other in range(context.config.splits.folds) if other != fold]
    seen = [pairs.pair_ids[row] for row in np.nonzero(train)[0]]
    record = fitted_on(f"{member}/fold_{fold}/weights", seen, split="train", folds=others)
    return FoldOpinion(fold, rows, safe_logit(risks[rows])[None]), record
