"""What calibration.py counts in one data set: a run's visits and labelled pairs in, rates out.

Of real patients no cell of fewer than five is shown, which does not keep anybody from subtracting
one cell from another. Ignores: what is compared with what.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binomtest

from ckd_ehr.contracts.phenotype import PHENOTYPES_25, Phenotype
from ckd_ehr.contracts.records import label_names
from ckd_ehr.data.flow import labelled_of
from ckd_ehr.data.histories import index_histories, visit_phenotypes

FEWEST = 5  # patients of a real hospital in a cell that is shown
FEW = 1_000  # trials; fewer get an interval
SEEN_BY_UCI = 3  # diagnoses of a stay
TABLES = {"DIAGNOSES_ICD": "diagnoses", "PROCEDURES_ICD": "procedures", "PRESCRIPTIONS": "drugs"}
NUMBERS = ("age_years", "stay_days", "diagnoses", "procedures", "drugs")
DIABETES = ("Diabetes mellitus with complications", "Diabetes mellitus without complication")

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rate = dict[str, float]
Report = dict[str, Any]


@dataclass(frozen=True)
class Cohort:
    """A data set after the pipeline's second stage."""

    visits: pa.Table  # in the schema VISITS
    pairs: pa.Table  # the labelled ones
    phenotypes: tuple[Phenotype, ...]
    rows: Mapping[str, int]  # read of each table
    hides: bool  # cells of fewer than FEWEST patients

    def as_uci_sees_it(self, phenotypes: Sequence[Phenotype]) -> "Cohort":
        """Whoever is diabetic at any stay; the first diagnoses of each stay, no drugs."""
        present = visit_phenotypes(self.visits, self.phenotypes)
        names = [phenotype.name for phenotype in self.phenotypes]
        is_diabetic = present[:, [names.index(name) for name in DIABETES]].any(axis=1)
        diabetics = pc.unique(self.visits["subject_id"].filter(pa.array(is_diabetic)))
        visits, pairs = (
            table.filter(pc.is_in(table["subject_id"], value_set=diabetics))
            for table in (self.visits, self.pairs)
        )
        first = pc.list_slice(visits["diagnoses"], 0, SEEN_BY_UCI)
        place = visits.schema.get_field_index("diagnoses")
        visits = visits.set_column(place, visits.schema.field(place), first)
        return Cohort(visits, pairs, tuple(phenotypes), rows={}, hides=self.hides)


@dataclass(frozen=True)
class Flags:
    """Which phenotypes are coded: at all stays, and around each pair's prediction."""

    patients: Ints  # of the stays
    at_stay: Bools  # (stays, labels)
    pair_patients: Ints
    now: Bools  # (pairs, labels) at the last stay
    before: Bools  # (pairs, labels) at any stay so far
    later: Bools  # (pairs, labels) at the next stay


def run_pipeline(config: Path, out: Path, *overrides: str, hides: bool) -> Cohort:
    """Run events and cohort in a process of its own, and read what they wrote."""
    run("run", str(config), *overrides, "--out", str(out), "--until", "cohort")
    return read_cohort(out, hides=hides)


def read_cohort(run_folder: Path, *, hides: bool) -> Cohort:
    """The visits and labelled pairs of a finished run."""
    pairs = pq.read_table(run_folder / "02_cohort" / "pairs.parquet")
    named = {phenotype.name: phenotype for phenotype in PHENOTYPES_25}
    read = json.loads((run_folder / "01_events" / "rows.json").read_text(encoding="utf-8"))
    rows = {
        kind: counts["read"]
        for table, kind in TABLES.items()
        for name, counts in read.items()
        if name.partition(".")[0] == table
    }
    return Cohort(
        visits=pq.read_table(run_folder / "02_cohort" / "visits.parquet"),
        pairs=labelled_of(pairs),
        phenotypes=tuple(named[name] for name in label_names(pairs.schema)),
        rows=rows,
        hides=hides,
    )


def run(*arguments: str) -> None:
    """Call `ckd-ehr`; what it says is its own affair unless it fails."""
    command = [sys.executable, "-m", "ckd_ehr.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")


def flags_of(cohort: Cohort) -> Flags:
    """Look the phenotypes of every stay and pair up."""
    at_stay = visit_phenotypes(cohort.visits, cohort.phenotypes)
    histories = index_histories(cohort.visits, cohort.pairs)
    place = {visit: row for row, visit in enumerate(cohort.visits["visit_id"].to_pylist())}
    following = [place[visit] for visit in cohort.pairs["next_visit_id"].to_pylist()]
    return Flags(
        patients=cohort.visits["subject_id"].to_numpy(),
        at_stay=at_stay,
        pair_patients=cohort.pairs["subject_id"].to_numpy(),
        now=histories.at_last(at_stay),
        before=histories.ever(at_stay),
        later=at_stay[following],
    )


def describe(cohort: Cohort, flags: Flags) -> Report:
    """All figures of one data set."""
    with duckdb.connect() as connection:
        connection.register("visits", cohort.visits)
        connection.register("pairs", cohort.pairs)
        connection.execute(
            "CREATE TABLE stays AS SELECT subject_id, age_years, sex, died, admission_type, "
            "epoch(discharge_time - admit_time) / 86400 AS stay_days, len(diagnoses) AS diagnoses, "
            "len(procedures) AS procedures, len(medications) AS drugs FROM visits"
        )
        numbers = {name: _numbers(connection, name, "stays") for name in NUMBERS}
        numbers["gap_days"] = _numbers(connection, "gap_days", "pairs")
        per_patient = connection.execute(
            "SELECT least(n, 6), count(*) FROM (SELECT count(*) AS n FROM stays GROUP BY "
            "subject_id) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        types = connection.execute(
            "SELECT coalesce(admission_type, 'not known'), count(*), count(DISTINCT subject_id) "
            "FROM stays GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
        sex, died = (
            np.array(connection.execute(f"SELECT {what} FROM stays").fetchall(), dtype=bool)[:, 0]
            for what in ("coalesce(sex, '') = 'F'", "died")
        )
    everyone = np.ones(len(died), dtype=bool)
    shown = [kind for kind, _, of in types if of >= FEWEST or not cohort.hides]
    return {
        "patients": len(np.unique(flags.patients)),
        "stays": len(died),
        "pairs": len(flags.now),
        "pair_patients": len(np.unique(flags.pair_patients)),
        "stays_per_patient": {
            f"{n}+" if n == 6 else str(n): None if cohort.hides and count < FEWEST else count
            for n, count in per_patient
        },
        "women": rate(sex, everyone, flags.patients, hides=cohort.hides),
        "died": rate(died, everyone, flags.patients, hides=cohort.hides),
        "admission_types": {kind: n for kind, n, _ in types if kind in shown},
        "numbers": numbers,
        "rows": dict(cohort.rows),
        "phenotypes": phenotype_rates(cohort, flags),
    }


def _numbers(
    connection: duckdb.DuckDBPyConnection, name: str, table: str
) -> dict[str, float] | None:
    """Mean and quartiles; None where nothing is known."""
    mean, quartiles = cast(
        tuple[float | None, list[float]],
        connection.execute(
            f"SELECT avg({name}), quantile_cont({name}::DOUBLE, [0.25, 0.5, 0.75]) FROM {table}"
        ).fetchone(),
    )
    if mean is None:
        return None
    names = ("mean", "q1", "median", "q3")
    return {key: round(value, 3) for key, value in zip(names, [mean, *quartiles], strict=True)}


def phenotype_rates(cohort: Cohort, flags: Flags) -> dict[str, dict[str, Rate | None]]:
    """By phenotype: how often at all stays, next, next if now, next if not now, and newly."""
    now, later, before = flags.now, flags.later, flags.before
    every_stay, every_pair = np.ones_like(flags.at_stay), np.ones_like(now)
    of_stays = {"stays": (flags.at_stay, every_stay)}
    of_pairs = {
        "next": (later, every_pair),
        "persistence": (later, now),
        "incidence": (later, ~now),
        "new_onset": (later, ~before),
    }
    return {
        phenotype.name: {
            name: rate(hits[:, k], among[:, k], patients, hides=cohort.hides)
            for patients, kinds in ((flags.patients, of_stays), (flags.pair_patients, of_pairs))
            for name, (hits, among) in kinds.items()
        }
        for k, phenotype in enumerate(cohort.phenotypes)
    }


def rate(hits: Bools, among: Bools, patients: Ints, *, hides: bool) -> Rate | None:
    """How many of how many, with a Wilson interval where these are few; None if too few to show.

    Too few are one to four patients with it, or without it.
    The interval takes trials for independent, which several of one patient are not.
    """
    of, count = int(among.sum()), int((hits & among).sum())
    if not of or (hides and len(np.unique(patients[among])) < FEWEST):
        return None
    cells = (patients[hits & among], patients[~hits & among])
    if hides and any(0 < len(np.unique(cell)) < FEWEST for cell in cells):
        return None
    found: Rate = {"count": count, "of": of, "share": round(count / of, 4)}
    if of < FEW:
        low, high = binomtest(count, of).proportion_ci(method="wilson")
        found |= {"low": round(float(low), 4), "high": round(float(high), 4)}
    return found


def phi_of(flags: Flags) -> Floats:
    """Correlation of each two phenotypes over all stays, (labels, labels); NaN if one is absent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(flags.at_stay.T.astype(np.float64)))


def some_labels(flags: Flags, cohort: Cohort, names: Sequence[str]) -> Flags:
    """The flags of these phenotypes alone."""
    all_names = [phenotype.name for phenotype in cohort.phenotypes]
    kept = [all_names.index(name) for name in names]
    labels = ("at_stay", "now", "before", "later")
    parts = {key: part[:, kept] if key in labels else part for key, part in vars(flags).items()}
    return Flags(**parts)
