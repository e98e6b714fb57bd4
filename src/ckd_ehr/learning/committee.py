"""A committee of soft labels: log-odds of several members, stacked per label.

In: each member's calibrated log-odds, out of fold on train. Out: per label non-negative weights,
and the stacked log-odds. Ignores: what the members are. A small LLM is not automatically the
better teacher; what each member is worth shows in its weight, and in what is lost without it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.optimize import minimize
from scipy.special import expit

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of
from ckd_ehr.learning.scoring import Bools, Floats, safe_logit

if TYPE_CHECKING:  # PyTorch comes with it, and a run that is current loads none
    from ckd_ehr.learning.examples import PairTable

COMMITTEE = "committee"
ROUNDING = 1e-6  # by which a probability in float32 may exceed 1
WITHOUT = "committee_without_"


@dataclass(frozen=True)
class Stack:
    """Per label weights (members, labels), never negative, and an intercept (labels,)."""

    weights: Floats
    intercept: Floats

    def apply(self, log_odds: Floats) -> Floats:
        """Stacked log-odds (pairs, labels) of the members' (members, pairs, labels).

        >>> stack = Stack(np.array([[0.5], [0.5]]), np.array([1.0]))
        >>> stack.apply(np.array([[[2.0]], [[4.0]]]))
        array([[4.]])
        """
        return np.asarray(np.einsum("mpk,mk->pk", log_odds, self.weights) + self.intercept)


def fit_stack(log_odds: Floats, labels: Bools, *, ridge: float) -> Stack:
    """Stack members per label by penalised logistic regression (Wolpert 1992; Breiman 1996).

    Minimises Σ_pairs log-loss + ridge/2 · (Σ_m (w_m − 1/M)² + b²) with w ≥ 0, so that a rare
    label keeps about equal weights. A label with one class has just those.

    Args:
        log_odds: (members, pairs, labels), calibrated, by models that have not seen the pairs.
        labels: (pairs, labels).
        ridge: pull to equal weights, in pseudo-pairs.
    """
    members, _, count = log_odds.shape
    stack = Stack(np.full((members, count), 1 / members), np.zeros(count))
    for k in range(count):
        if labels[:, k].any() and not labels[:, k].all():
            line = _fit_label(log_odds[:, :, k], labels[:, k], ridge)
            stack.weights[:, k], stack.intercept[k] = line[:-1], line[-1]
    return stack


def _fit_label(log_odds: Floats, labels: Bools, ridge: float) -> Floats:
    members = len(log_odds)
    inputs = np.vstack([log_odds, np.ones(log_odds.shape[1])])  # (members + 1, pairs)
    start = np.append(np.full(members, 1 / members), 0.0)

    def loss(line: Floats) -> tuple[float, Floats]:
        stacked = line @ inputs
        residual, pull = expit(stacked) - labels, line - start
        value = np.logaddexp(0, stacked).sum() - stacked[labels].sum() + ridge / 2 * pull @ pull
        return float(value), inputs @ residual + ridge * pull

    bounds = [*[(0.0, None)] * members, (None, None)]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


class Stacked(NamedTuple):
    """Stacked log-odds (pairs, labels), how far the members differ, and the stack.

    `spread` is the members' standard deviation, each counted by its weight; NaN for one member.
    """

    log_odds: Floats
    spread: Floats
    stack: Stack


def stacked_sources(
    members: Mapping[str, Floats], pairs: "PairTable", *, ridge: float
) -> dict[str, Stacked]:
    """The committee, and the committee without each of its members, by source.

    Args:
        members: calibrated log-odds (pairs, labels) by name, out of fold on train; NaN where a
            member has not read an unlabelled pair.
    """
    every = {COMMITTEE: list(members)}
    if len(members) > 2:
        every |= {f"{WITHOUT}{one}": [name for name in members if name != one] for one in members}
    return {
        source: _stacked({name: members[name] for name in names}, pairs, ridge=ridge)
        for source, names in every.items()
    }


def _stacked(members: Mapping[str, Floats], pairs: "PairTable", *, ridge: float) -> Stacked:
    """A pair that some members have not read (NaN) is left to a stack of the others."""
    rows = pairs.rows(split="train", labelled=True)
    opinions = np.stack(list(members.values()))
    stack = fit_stack(opinions[:, rows], pairs.labels[rows], ridge=ridge)
    stacked = Stacked(stack.apply(opinions), _spread(opinions, stack.weights), stack)
    unread = np.isnan(opinions).any(axis=(0, 2))
    others = {name: read for name, read in members.items() if not np.isnan(read[unread]).any()}
    if unread.any() and others:
        rest = _stacked(others, pairs, ridge=ridge)
        stacked.log_odds[unread], stacked.spread[unread] = (
            rest.log_odds[unread],
            rest.spread[unread],
        )
    return stacked


def _spread(opinions: Floats, weights: Floats) -> Floats:
    """Standard deviation (pairs, labels) of opinions (members, pairs, labels) by their weights."""
    if len(opinions) == 1:
        return np.full(opinions.shape[1:], np.nan)
    shares = (weights + 1e-12) / (weights + 1e-12).sum(0)  # all alike where no member counts
    mean = np.einsum("mpk,mk->pk", opinions, shares)
    return np.asarray(np.sqrt(np.einsum("mpk,mk->pk", (opinions - mean) ** 2, shares)))


def external_digests(external: Mapping[str, Path]) -> dict[str, str]:
    """What identifies the files of members from outside; an error if one is not there."""
    digests = {}
    for name, path in external.items():
        if not path.is_file():
            raise CkdEhrError(
                f"committee.external.{name}: {path}: no such file; it takes a Parquet file "
                "with pair_id and a column a label"
            )
        digests[f"committee.{name}"] = sha256_of(path)
    return digests


def read_external(path: Path, name: str, pairs: "PairTable") -> Floats:
    """A site's own model: log-odds (pairs, labels) from a Parquet with a column a label.

    Raises:
        CkdEhrError: the file cannot be read, lacks a label or a pair, names a pair twice, or
            holds something that is no probability.
    """
    origin = f"committee.external.{name}: {path}"
    columns = ["pair_id", *pairs.label_names]
    try:
        file = pq.ParquetFile(path)
        found = Counter(file.schema_arrow.names)
        for column in columns:
            if found[column] != 1:
                said = "is missing" if not found[column] else f"stands there {found[column]} times"
                raise CkdEhrError(
                    f"{origin}: column '{column}' {said}; write pair_id and one column a label, "
                    "named as in the labels' metadata of pairs.parquet"
                )
        table = file.read([*columns, *(["fold"] if found["fold"] == 1 else [])])
    except (OSError, pa.ArrowException) as error:
        raise CkdEhrError(f"{origin}: no Parquet file ({type(error).__name__})") from None
    try:
        ids = table["pair_id"].cast(pa.string()).combine_chunks()
    except pa.ArrowException:
        raise CkdEhrError(f"{origin}: column 'pair_id' holds no text") from None
    if len(pc.unique(ids)) != len(ids):
        raise CkdEhrError(f"{origin}: a pair_id stands there more than once; write each pair once")
    places = pc.index_in(pa.array(pairs.pair_ids), value_set=ids)
    if absent := places.null_count:
        raise CkdEhrError(
            f"{origin}: {absent:,} of {len(pairs.pair_ids):,} pairs are missing; it takes all "
            "of pairs.parquet, the unlabelled ones too"
        )
    taken = table.take(places)
    if "fold" in table.column_names and taken["fold"].to_pylist() != pairs.fold.tolist():
        raise CkdEhrError(
            f"{origin}: its folds are not those of pairs.parquet: it was made for another cohort "
            "or split, whose models may have seen the patients they speak of; make it anew"
        )
    values = _probabilities(
        [taken[label] for label in pairs.label_names], origin, pairs.label_names
    )
    return np.column_stack([_log_odds(column) for column in values.T])


def _log_odds(probabilities: Floats) -> Floats:
    """Log-odds; 0 and 1 count as half of what else comes nearest to them.

    A forest of 100 trees says 0 where it means less than 0.01: taken at its word, such a pair would
    outweigh all others in calibration.
    """
    inner = probabilities[(probabilities > 0) & (probabilities < 1)]
    nearest = np.minimum(inner, 1 - inner).min(initial=0.5)
    return safe_logit(probabilities, floor=max(float(nearest) / 2, 1e-6))


def _probabilities(
    columns: Sequence[pa.ChunkedArray], origin: str, labels: Sequence[str]
) -> Floats:
    values = np.empty((len(columns[0]), len(columns)))
    for k, column in enumerate(columns):
        try:
            values[:, k] = column.cast(pa.float64()).to_numpy()
        except (pa.ArrowException, ValueError):
            raise CkdEhrError(f"{origin}: column '{labels[k]}' holds no numbers") from None
        if not ((values[:, k] >= -ROUNDING) & (values[:, k] <= 1 + ROUNDING)).all():
            raise CkdEhrError(
                f"{origin}: column '{labels[k]}' holds something outside 0 to 1; write "
                "probabilities, without gaps"
            )
        if len(values) and np.isin(values[:, k], (0, 1)).all():
            raise CkdEhrError(
                f"{origin}: column '{labels[k]}' holds nothing but 0 and 1; write probabilities, "
                "not decisions"
            )
    return values.clip(0, 1)
