"""The committee's members side by side: scores, weights, and what is lost without each.

In: soft labels by source, and the scored pairs with their bootstrap draws. Out: a part of
metrics.json. Ignores: how the members were fitted.
"""

from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from ckd_ehr.learning.scoring import DEFAULT_THRESHOLD, Floats
from ckd_ehr.metrics.compare import Measured, ScoredPairs, difference, figures_of, measure
from ckd_ehr.metrics.results import CommitteeResult, Figure, MemberResult

COMMITTEE = "committee"
SCORES = ("macro_auprc", "macro_auroc", "brier", "ece")


def committee_result(
    log_odds: Mapping[str, Floats], facts: Mapping[str, object], pairs: ScoredPairs
) -> CommitteeResult:
    """Score the committee, its members, and the committee without each of them.

    Args:
        log_odds: calibrated, (scored pairs, labels), by source; `committee_without_NAME` too,
            where there are more than two members.
        facts: the committee's part of `committee.json`.
        pairs: the scored pairs.
    """
    thresholds = np.full(pairs.labels.shape[1], DEFAULT_THRESHOLD)
    measured = {
        source: measure(expit(values), thresholds, pairs) for source, values in log_odds.items()
    }
    mean_weights, weights = facts["mean_weights"], facts["weights"]
    assert isinstance(mean_weights, dict)
    assert isinstance(weights, dict)
    members = [_member(name, float(weight), measured) for name, weight in mean_weights.items()]
    return CommitteeResult(members=members, weights=weights)


def _member(name: str, weight: float, measured: Mapping[str, Measured]) -> MemberResult:
    mine = measured[name]
    overall = figures_of(mine.point.overall, mine.resampled.overall)
    without = f"{COMMITTEE}_without_{name}"
    return MemberResult(
        name=name,
        mean_weight=weight,
        overall={score: overall[score] for score in SCORES},
        committee_gains=_less(measured, name),
        lost_without=_less(measured, without) if without in measured else {},
    )


def _less(measured: Mapping[str, Measured], source: str) -> dict[str, Figure]:
    """The committee's scores less those of a source, paired."""
    return difference(
        measured[COMMITTEE], measured[source], model=COMMITTEE, minus=source, names=SCORES
    ).figures
