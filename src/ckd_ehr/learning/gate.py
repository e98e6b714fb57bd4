"""Which labels a teacher may teach: those it ranks better than a student of hard labels alone.

In: both models' log-odds on tuning. Out: a gate a label. Ignores: training.
"""

from dataclasses import dataclass

import numpy as np

from ckd_ehr.learning.scoring import Bools, Floats, label_ranking, macro

SMALLEST_SUPPORT = 20  # tuning positives below which a label follows the macro comparison


@dataclass(frozen=True)
class Gate:
    """`is_open` (labels,); `decided` (labels,): by its own tuning pairs, not by the macro score."""

    is_open: Bools
    decided: Bools

    @property
    def closed(self) -> int:
        """How many labels are learnt from hard labels alone."""
        return int((~self.is_open).sum())


def gate_of(teacher: Floats, student: Floats, labels: Bools) -> Gate:
    """Open where the teacher's tuning AUPRC is above that of the student on hard labels.

    Labels with fewer than 20 positives follow the comparison of macro-AUPRC. Where nothing can be
    ranked, all are open.

    Args:
        teacher, student: (pairs, labels), log-odds of labelled tuning pairs.
        labels: (pairs, labels).

    >>> labels = np.arange(40)[:, None] < [20, 20]
    >>> good, bad = -np.arange(40.0)[:, None], np.arange(40.0)[:, None]
    >>> gate_of(np.hstack([good, bad]), np.hstack([bad, good]), labels).is_open.tolist()
    [True, False]
    """
    mine, theirs = (label_ranking(one, labels).auprc for one in (teacher, student))
    better = np.ravel(mine) > np.ravel(theirs)
    ahead = float(macro(mine)[0]) - float(macro(theirs)[0])
    decided = np.asarray((labels.sum(0) >= SMALLEST_SUPPORT) & ~labels.all(0))
    follows = bool(ahead > 0) if np.isfinite(ahead) else True
    return Gate(np.where(decided, better, follows), decided)
