"""Which treatments go with a disease's resolution: counted on train patients, folds apart.

In: visits and pairs, the labels' definitions. Out: the `efficacy` table, once for every fold left
out (what a train pair of that fold may be told) and once for all train pairs (fold -1, what other
pairs may be told). Among train pairs with a disease at the last visit of their history: how much
likelier is it gone at the next with a treatment than without, given age, sex, numbers of diagnoses,
of earlier visits and of other drugs, length and kind of stay, whether the disease is an old one,
the other diseases, and the other drugs that stand out? An association, not an effect. Ignores:
tuning and held-out patients, doses, and the order within a stay.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ckd_ehr.contracts.fitted import FittedOn, fitted_on
from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import EFFICACY, Kind
from ckd_ehr.data.histories import (
    CODED,
    Bools,
    CodeKey,
    HistoryIndex,
    index_histories,
    visit_codes,
    visit_phenotypes,
)
from ckd_ehr.knowledge.effects import (
    Effects,
    Floats,
    fit_effects,
    q_values,
    shrink,
    standardised,
)
from ckd_ehr.knowledge.ontology import words_of

ALL_TRAIN = -1
KIND_OF: Mapping[str, Kind] = {"medications": "medication", "procedures": "procedure"}
DRUGS: tuple[Kind, ...] = ("medication",)
# A disease is not gone that is coded in its other form, with complications or without (CCS).
OTHER_FORM = {49: 50, 50: 49, 98: 99, 99: 98}
MOST_TYPES = 4  # of admission that are told apart


@dataclass(frozen=True)
class Treated:
    """Labelled train pairs: what was true at the last visit, and what at the next."""

    present: Bools  # (pairs, labels) at the last visit
    resolved: Bools  # (pairs, labels) not there at the next
    treatments: Bools  # (pairs, treatments) at the last visit
    keys: Sequence[CodeKey]  # of the treatments
    visits: pa.Table  # the last visits
    last_visits: pa.Array  # (pairs,) their ids
    severity: Floats  # (pairs, n) what is adjusted for, of all diseases
    earlier: Bools  # (pairs, labels) at a visit before the last
    drug_counts: Floats  # (pairs,)
    subject_ids: NDArray[np.int64]
    folds: NDArray[np.int8]
    pair_ids: Sequence[str]


@dataclass(frozen=True)
class Efficacy:
    """The table, why combinations are not in it, and which pairs it was counted on."""

    table: pa.Table
    left_out: Mapping[str, int]
    fitted: Sequence[FittedOn]


def count_efficacy(
    visits: pa.Table,
    pairs: pa.Table,
    phenotypes: Sequence[Phenotype],
    *,
    kinds: Collection[Kind] = DRUGS,
    min_support: int = 20,
) -> Efficacy:
    """The `efficacy` table of a cohort.

    A disease and a treatment are left out, and counted, where fewer than `min_support` patients
    were treated or were not (given to everyone), or where fewer than that got rid of the disease
    or kept it.

    Args:
        visits: of the cohort.
        pairs: of the cohort; only labelled train pairs are looked at.
        phenotypes: the labels, in their order.
        kinds: what counts as a treatment.
        min_support: patients on either side of a comparison, at least.
    """
    train = pairs.filter(pc.equal(pairs["split"], "train"))
    folds = sorted(set(train["fold"].to_pylist()))
    seen = _observe(visits, train.filter(train["labels"].is_valid()), phenotypes, kinds)
    names = [phenotype.name for phenotype in phenotypes]
    tables, left_out, fitted = [EFFICACY.empty_table()], Counter[str](), []
    for fold in (ALL_TRAIN, *folds):
        rows = np.flatnonzero(seen.folds != fold)
        parts = [_of_disease(seen, rows, label, min_support) for label in range(len(names))]
        tables.append(_table(fold, names, seen, parts))
        if fold == ALL_TRAIN:
            for part in parts:
                left_out.update(part.left_out)
        kept = None if fold == ALL_TRAIN else [other for other in folds if other != fold]
        name = "efficacy/all" if fold == ALL_TRAIN else f"efficacy/without_fold_{fold}"
        ids = [seen.pair_ids[row] for row in rows.tolist()]
        fitted.append(fitted_on(name, ids, split="train", folds=kept))
    return Efficacy(pa.concat_tables(tables), dict(left_out), fitted)


def _observe(
    visits: pa.Table, pairs: pa.Table, phenotypes: Sequence[Phenotype], kinds: Collection[Kind]
) -> Treated:
    known = pc.unique(pc.list_flatten(pairs["history"]))
    visits = visits.filter(pc.is_in(visits["visit_id"], value_set=known))
    histories, (codes, keys) = index_histories(visits, pairs), visit_codes(visits)
    wanted = [n for n, key in enumerate(keys) if KIND_OF.get(key[0]) in kinds]
    last_codes = histories.last @ codes
    columns = {kind: [n for n, key in enumerate(keys) if key[0] == kind] for kind in CODED}
    counts = {k: np.asarray(last_codes[:, n].sum(axis=1)).ravel() for k, n in columns.items()}
    phenotypes_of_visits = visit_phenotypes(visits, phenotypes)
    before = histories.every - histories.last
    labels = np.array(pairs["labels"].to_pylist(), dtype=bool).reshape(len(pairs), len(phenotypes))
    last = pa.array(histories.last.indices)  # one a row
    return Treated(
        present=histories.at_last(phenotypes_of_visits),
        resolved=_resolved(labels, phenotypes),
        treatments=np.asarray(last_codes[:, wanted].toarray() > 0),
        keys=[keys[n] for n in wanted],
        visits=visits,
        last_visits=visits["visit_id"].take(last).combine_chunks(),
        severity=_severity(visits, histories, counts["diagnoses"]),
        earlier=np.asarray(before @ phenotypes_of_visits.astype(np.int32) > 0),
        drug_counts=counts["medications"],
        subject_ids=pairs["subject_id"].to_numpy(),
        folds=pairs["fold"].to_numpy(),
        pair_ids=pairs["pair_id"].to_pylist(),
    )


def _words(visits: pa.Table, keys: Sequence[CodeKey]) -> list[str]:
    """What each treatment is called; of several titles of a source the first by alphabet."""
    titles: dict[CodeKey, str | None] = {}
    for kind in {key[0] for key in keys}:
        codes = pc.list_flatten(visits[kind]).combine_chunks()
        named = pa.table({name: codes.field(name) for name in ("system", "code", "title")})
        first = named.group_by(["system", "code"]).aggregate([("title", "min")]).to_pylist()
        titles |= {(kind, row["system"], row["code"]): row["title_min"] for row in first}
    return [words_of(key[1], key[2], titles.get(key)) for key in keys]


def _resolved(labels: Bools, phenotypes: Sequence[Phenotype]) -> Bools:
    """Whether each disease is gone, and not because its other form stands in its place.

    >>> mild, grave = Phenotype(name="mild", ccs=(98,)), Phenotype(name="grave", ccs=(99,))
    >>> next_visit = np.array([[False, False], [False, True], [True, False]])
    >>> _resolved(next_visit, [mild, grave]).tolist()
    [[True, True], [False, False], [False, False]]
    """
    gone = ~labels
    for n, phenotype in enumerate(phenotypes):
        others = {OTHER_FORM[ccs] for ccs in phenotype.ccs if ccs in OTHER_FORM}
        for other, found in enumerate(phenotypes):
            if other != n and others & set(found.ccs):
                gone[:, n] &= ~labels[:, other]
    return gone


def _severity(visits: pa.Table, histories: HistoryIndex, diagnosis_counts: Floats) -> Floats:
    """Age (NaN if unknown), sex, log numbers of diagnoses and of earlier visits, log days of the
    last stay, and the most usual types of admission."""
    last = histories.last.indices  # one a row
    ages = visits["age_years"].to_numpy().astype(np.float64)
    stay = visits["discharge_time"].to_numpy() - visits["admit_time"].to_numpy()
    days = stay / np.timedelta64(1, "D")
    sex = np.asarray(visits["sex"].to_pylist(), dtype=object)
    earlier = np.asarray(histories.every.sum(axis=1)).ravel() - 1
    types = np.asarray(visits["admission_type"].to_pylist(), dtype=object)[last]
    usual = [name for name, _ in Counter(types.tolist()).most_common(MOST_TYPES)]
    return np.column_stack(
        [
            ages[last],
            sex[last] == "M",
            np.log1p(diagnosis_counts),
            np.log1p(earlier),
            np.log1p(np.maximum(days[last], 0)),
            *(types == name for name in sorted(map(str, usual))),
        ]
    ).astype(np.float64)


@dataclass(frozen=True)
class _Disease:
    """The treatments of one disease that could be compared, and those that could not."""

    label: int
    columns: NDArray[np.intp]  # of the treatments
    effects: Effects
    counts: Mapping[str, NDArray[np.int64]]  # of pairs, an entry a treatment
    left_out: Mapping[str, int]


def _of_disease(seen: Treated, rows: NDArray[np.intp], label: int, support: int) -> _Disease:
    rows = rows[seen.present[rows, label]]
    resolved, treated = seen.resolved[rows, label], seen.treatments[rows]
    given = treated.sum(axis=0)
    patients = _Patients(seen.subject_ids[rows])
    rare, usual = patients.of(treated) < support, patients.of(~treated) < support
    one_sided = patients.of(np.column_stack([resolved, ~resolved])).min() < support
    columns = np.flatnonzero(~rare & ~usual & (not one_sided))
    treated = treated[:, columns]
    left_out = {
        "diseases with too few patients who got rid of them or did not": int(one_sided),
        "treatments given to too few": 0 if one_sided else int((rare & (given > 0)).sum()),
        "treatments given to nearly everybody": 0 if one_sided else int((usual & ~rare).sum()),
    }
    had = treated[resolved].sum(axis=0)
    counts = {
        "treated": given[columns],
        "treated_resolved": had,
        "untreated": len(rows) - given[columns],
        "untreated_resolved": resolved.sum() - had,
    }
    effects = _compare(seen, rows, label, resolved, columns)
    return _Disease(label, columns, effects, counts, left_out)


class _Patients:
    """Counts patients, not rows: many rows of a few patients prove little."""

    def __init__(self, subject_ids: NDArray[np.int64]) -> None:
        self.order = np.argsort(subject_ids, kind="stable")
        ordered = subject_ids[self.order]
        self.starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))

    def of(self, rows: Bools) -> NDArray[np.int64]:
        """How many patients have a true row in each column (rows, columns)."""
        if not len(self.order):
            return np.zeros(rows.shape[1], dtype=np.int64)
        any_row = np.logical_or.reduceat(rows[self.order], self.starts, axis=0)
        return np.asarray(any_row.sum(axis=0))


def _compare(
    seen: Treated, rows: NDArray[np.intp], label: int, resolved: Bools, columns: NDArray[np.intp]
) -> Effects:
    """Adjusted for severity, an old disease, the other ones, and the number of other drugs."""
    if not len(columns):
        return Effects(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    treated = seen.treatments[rows][:, columns]
    diseases = np.delete(seen.present[rows], label, axis=1)
    severity = np.column_stack([seen.severity[rows], seen.earlier[rows, label], diseases])
    is_drug = np.array([seen.keys[column][0] == "medications" for column in columns.tolist()])
    others = np.log1p(seen.drug_counts[rows, None] - (treated & is_drug))
    return fit_effects(
        resolved,
        treated,
        covariates=standardised(severity),
        others=standardised(others),
        clusters=seen.subject_ids[rows],
    )


def _table(fold: int, names: Sequence[str], seen: Treated, parts: Sequence[_Disease]) -> pa.Table:
    """One fold's rows: by label, the best first."""
    keys = seen.keys
    last_visits = seen.last_visits.filter(pa.array(seen.folds != fold))
    words = _words(
        seen.visits.filter(pc.is_in(seen.visits["visit_id"], value_set=last_visits)), keys
    )
    columns = np.concatenate([part.columns for part in parts])
    labels = np.repeat([part.label for part in parts], [len(part.columns) for part in parts])
    effects = Effects(
        *(np.concatenate([getattr(part.effects, field.name) for part in parts])
          for field in fields(Effects))
    )  # fmt: skip
    shrunk = shrink(effects.log_odds, effects.standard_error)
    values = {
        "fold": np.full(len(columns), fold, dtype=np.int8),
        "label": [names[label] for label in labels],
        "kind": [KIND_OF[keys[column][0]] for column in columns],
        "system": [keys[column][1] for column in columns],
        "code": [keys[column][2] for column in columns],
        "treatment": [words[column] for column in columns],
        **{name: np.concatenate([part.counts[name] for part in parts]) for name in parts[0].counts},
        **{field.name: getattr(effects, field.name) for field in fields(Effects)},
        "q_value": q_values(effects.log_odds, effects.standard_error),
        "shrunk_log_odds": shrunk.mean,
        "low": shrunk.low,
        "high": shrunk.high,
    }
    codes = [keys[column] for column in columns]
    order = sorted(range(len(columns)), key=lambda n: (labels[n], -shrunk.low[n], codes[n]))
    table = pa.table({name: values[name] for name in EFFICACY.names}).cast(EFFICACY)
    return table.take(pa.array(order, pa.int64()))
