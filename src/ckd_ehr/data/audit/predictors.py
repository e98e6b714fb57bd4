"""Is there a feature of the history that alone tells a label of the next visit?

In: the tables of `tables.open_cohort`. Out: one result. Ignores: pairs outside train, and
combinations of features.

Features: each code, ever and at the last visit; sex, ethnicity and admission type of the last
visit; each as present or absent. Of numbers (age, length of stay, numbers of visits and codes) the
area under the ROC curve is looked at. A feature tells a label if both imply each other: their
correlation φ is near 1 or −1, for which P(label | feature) and P(feature | label) must both be
near 1. Every patient counts once, however many pairs.

A disease that stays is no leak. So a label's own codes must be nearer to it, each and all of them
together: not even a lifelong disease is coded at every visit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.data.audit.findings import CheckResult, result_of
from ckd_ehr.data.audit.structure import STAGE
from ckd_ehr.data.phenotypes import match_codes

CHECK = "one feature tells a label"
SUSPICIOUS_CORRELATION = 0.9
SUSPICIOUS_OF_OWN_CODES = 0.98
SUSPICIOUS_AUROC = 0.99
FEWEST_PATIENTS = 20  # with the label, without it, with the feature, without it
MOST_PAIRS = 20_000
SHOWN = 3

Floats = NDArray[np.float64]
Codes = sparse.csr_matrix
OwnCodes = tuple[set[int], ...]  # by label, keys of `items`
AT_LAST = "at the last visit"
NUMBERS = ("age", "length of stay", "visits", "diagnoses", "medications", "procedures")

# Whole patients in the order of a hash, so that a large cohort is sampled and not read.
_SAMPLE = f"""
    CREATE TABLE train AS
        WITH weighed AS (
            SELECT pair_no, subject_id, count(*) OVER (PARTITION BY subject_id) AS pairs,
                row_number() OVER (ORDER BY hash(subject_id), pair_no) AS place
            FROM pairs WHERE split = 'train' AND labels IS NOT NULL)
        SELECT row_number() OVER (ORDER BY pair_no) - 1 AS row_no, pair_no, 1 / pairs AS weight
        FROM weighed WHERE place <= {MOST_PAIRS};"""
_CODES = """
    SELECT DISTINCT row_no, item FROM train JOIN histories USING (pair_no)
        JOIN stays USING (visit_id) JOIN items USING (visit_no)"""
_LAST = " WHERE visit_index = visits - 1"
_FIELDS = """
    SELECT sex, ethnicity, admission_type, age_years AS age,
        epoch(discharge_time - admit_time) AS "length of stay", len(history) AS visits,
        len(diagnoses) AS diagnoses, len(medications) AS medications,
        len(procedures) AS procedures
    FROM train JOIN pairs USING (pair_no) JOIN visits ON visits.visit_id = history[-1]
    ORDER BY row_no"""


@dataclass(frozen=True)
class Told:
    """How well single features tell labels, and how well is too well: (features, labels)."""

    features: tuple[str, ...]
    strength: Floats
    limit: Floats


def single_predictors(
    connection: duckdb.DuckDBPyConnection,
    label_names: tuple[str, ...],
    phenotypes: Sequence[Phenotype] = (),
) -> CheckResult:
    """Features and labels of train that tell each other.

    Args:
        phenotypes: what the labels mean, as far as it is known.
    """
    connection.execute(_SAMPLE)
    labels, weight = _read_labels(connection, len(label_names))
    usable = _enough(labels.T @ weight, weight.sum())
    if not usable.any():
        note = f"no label with {FEWEST_PATIENTS} train patients who have it and who do not"
        return CheckResult(CHECK, STAGE, note=note, tested=False)
    names = tuple(name for name, use in zip(label_names, usable, strict=True) if use)
    own = _own_codes(connection, names, phenotypes)
    told = measure_features(connection, labels[:, usable], weight, own)
    found = [
        (told_.features[feature], names[label])
        for told_ in told
        for feature, label in np.argwhere(told_.strength >= told_.limit)
    ]
    shown = "; ".join(f"{feature} → {label}" for feature, label in found[:SHOWN])
    few = int((~usable).sum())
    return result_of(
        CHECK,
        STAGE,
        rows=len(found),
        problem=f"single features of the history nearly determine a label of the next visit "
        f"({shown}{'; …' if len(found) > SHOWN else ''})",
        remedy="find out when the feature is recorded: if only after the next visit, or because "
        "of the label, take it out of the source's tables and run again",
        note=f"{few} labels in fewer than {FEWEST_PATIENTS} patients not tested" if few else "",
    )


def measure_features(
    connection: duckdb.DuckDBPyConnection, labels: Floats, weight: Floats, own: OwnCodes
) -> list[Told]:
    """|φ| of everything that is present or absent, and the AUROC (or 1 − AUROC) of numbers.

    Args:
        labels: (pairs, labels), 0 or 1. weight: (pairs,), 1 in all for each patient.
        own: which codes set which label.
    """
    told = []
    for when, condition in (("ever", ""), (AT_LAST, _LAST)):
        codes, items = _read_codes(connection, _CODES + condition, len(labels))
        is_own = np.array([[int(item) in codes_ for codes_ in own] for item in items], dtype=bool)
        is_own = is_own.reshape(len(items), len(own))
        limit = np.where(is_own, SUSPICIOUS_OF_OWN_CODES, SUSPICIOUS_CORRELATION)
        names = _names_of(connection, items, when)
        told.append(Told(names, correlations(codes, labels, weight), limit))
        if when == AT_LAST:
            told.append(_carried_forward(codes, is_own, labels, weight))
    fields = connection.execute(_FIELDS).fetchnumpy()
    names, columns = _categories(fields)
    strength = correlations(columns, labels, weight)
    told.append(Told(names, strength, np.full(strength.shape, SUSPICIOUS_CORRELATION)))
    numbers = np.column_stack([_filled(fields[name]) for name in NUMBERS])
    separation = _separation(numbers, labels, weight)
    return [*told, Told(NUMBERS, separation, np.full(separation.shape, SUSPICIOUS_AUROC))]


def _carried_forward(
    last: Codes, is_own: NDArray[np.bool_], labels: Floats, weight: Floats
) -> Told:
    """Each label and whether the last visit has any of its own codes: (1, labels)."""
    present = sparse.csr_matrix((last @ is_own.astype(np.float64) > 0).astype(np.float64))
    strength = np.diagonal(correlations(present, labels, weight))[None, :]
    limit = np.full(strength.shape, SUSPICIOUS_OF_OWN_CODES)
    return Told((f"its own codes {AT_LAST}",), strength, limit)


def correlations(features: Codes, labels: Floats, weight: Floats) -> Floats:
    """|φ| of each feature and label, (features, labels); 0 for features of too few patients.

    >>> same = np.repeat([[1.0], [0.0]], 20, axis=0)
    >>> correlations(sparse.csr_matrix(same), same, np.ones(40)).round(3)
    array([[1.]])
    """
    total = weight.sum()
    weighted = sparse.csr_matrix(sparse.diags(weight) @ features)
    with_feature = np.asarray(weighted.sum(axis=0)).ravel() / total
    with_label = labels.T @ weight / total
    both = np.asarray(weighted.T @ labels) / total
    variance = np.outer(with_feature * (1 - with_feature), with_label * (1 - with_label))
    covariance = np.abs(both - np.outer(with_feature, with_label))
    usable = _enough(with_feature * total, total)[:, None] & (variance > 0)
    return np.where(usable, covariance / np.sqrt(np.where(usable, variance, 1)), 0.0)


def _enough(patients: Floats, total: float) -> NDArray[np.bool_]:
    return np.asarray((patients >= FEWEST_PATIENTS) & (total - patients >= FEWEST_PATIENTS))


def _separation(numbers: Floats, labels: Floats, weight: Floats) -> Floats:
    """AUROC of each number for each label, or 1 minus it if that is more: (numbers, labels)."""
    strength = np.zeros((numbers.shape[1], labels.shape[1]))
    for column, values in enumerate(numbers.T):
        ranks = rankdata(values)
        for k, label in enumerate(labels.T):
            mine, others = weight * label, weight * (1 - label)
            above = _weight_below(ranks, others)
            area = float(mine @ above / (mine.sum() * others.sum()))
            strength[column, k] = max(area, 1 - area)
    return strength


def _weight_below(ranks: Floats, weight: Floats) -> Floats:
    """The weight of lower ranks, and half that of equal ones, for each row."""
    _, place = np.unique(ranks, return_inverse=True)
    at = np.bincount(place, weights=weight)
    return np.asarray((np.cumsum(at) - at / 2)[place])


def _read_labels(connection: duckdb.DuckDBPyConnection, width: int) -> tuple[Floats, Floats]:
    query = "FROM train JOIN pairs USING (pair_no) ORDER BY row_no"
    weight = connection.execute(f"SELECT weight {query}").fetchnumpy()["weight"]
    flat = connection.execute(
        f"SELECT unnest(labels) AS label FROM (SELECT row_no, labels {query})"
    ).fetchnumpy()["label"]
    return flat.astype(np.float64).reshape(len(weight), width), weight.astype(np.float64)


def _own_codes(
    connection: duckdb.DuckDBPyConnection,
    label_names: tuple[str, ...],
    phenotypes: Sequence[Phenotype],
) -> OwnCodes:
    """The keys of the diagnoses that set each label."""
    diagnoses = connection.execute(
        "SELECT system, code, item FROM codes WHERE kind = 'diagnosis'"
    ).fetchall()
    item_of = {(system, code): int(item) for system, code, item in diagnoses}
    own: dict[str, set[int]] = {name: set() for name in label_names}
    for match in match_codes(dict.fromkeys(item_of, 1), phenotypes):
        for label in match.labels:
            if (name := phenotypes[label].name) in own:
                own[name].add(item_of[match.system, match.code])
    return tuple(own.values())


def _read_codes(
    connection: duckdb.DuckDBPyConnection, query: str, pairs: int
) -> tuple[Codes, NDArray[np.uint64]]:
    """Presence of codes, (pairs, codes), and their keys."""
    found = connection.execute(query).fetchnumpy()
    items, columns = np.unique(found["item"], return_inverse=True)
    ones = np.ones(len(columns))
    shape = (pairs, len(items))
    return sparse.csr_matrix((ones, (found["row_no"], columns)), shape=shape), items


def _names_of(
    connection: duckdb.DuckDBPyConnection, items: NDArray[np.uint64], when: str
) -> tuple[str, ...]:
    codes = connection.execute("SELECT item, kind || ' ' || system || ' ' || code FROM codes")
    name_of = dict(codes.fetchall())
    return tuple(f"{name_of[int(item)]} {when}" for item in items)


def _categories(fields: dict[str, NDArray[np.generic]]) -> tuple[tuple[str, ...], Codes]:
    """One column for each value of the fields that are names."""
    names, columns = [], []
    for field in ("sex", "ethnicity", "admission_type"):
        values = np.ma.filled(np.ma.asarray(fields[field]).astype(object), "")
        for value in sorted(set(values) - {""}):
            names.append(f"{field.replace('_', ' ')} {value}")
            columns.append(values == value)
    rows = len(fields["age"])
    stacked = np.column_stack([np.zeros((rows, 0)), *columns]).astype(np.float64)
    return tuple(names), sparse.csr_matrix(stacked)


def _filled(values: NDArray[np.generic]) -> Floats:
    """Numbers with what is unknown below all that is known."""
    known = np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    return np.asarray(np.nan_to_num(known, nan=-1.0), dtype=np.float64)
