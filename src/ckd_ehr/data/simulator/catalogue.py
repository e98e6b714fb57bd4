"""What the simulated hospital knows of medicine: tables beside this module in, arrays out.

A condition is one CCS category. `conditions.csv` says how it behaves, `onsets.csv` how frequent it
is (fitted by fit.py to the prevalences of `conditions.csv`), `progressions.csv` what follows it,
`codes.csv` how it is coded, `drugs.csv` and `procedures.csv` what it brings about, `effects.csv`
which drugs truly help. Written by hand from general medical knowledge and published frequencies;
nothing is fitted to anybody's records. Ignores: patients.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
import numpy.typing as npt

from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import ICD9CM, ICD10CM
from ckd_ehr.data.ccs import icd9_leaves, icd10_leaves

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Coding = Literal["icd9", "icd10"]
HospitalName = Literal["a", "b"]

SYSTEMS = ("heart", "metabolic", "kidney", "lung", "gut", "infection", "brain", "general")
CODING_SYSTEMS: Mapping[Coding, str] = {"icd9": ICD9CM, "icd10": ICD10CM}
# The 25 phenotypes stand first, in the order of the labels; each is one CCS category.
LABELS = len(PHENOTYPES_25)
# Of two exclusive conditions a coder writes the worse: (spared, worse) by CCS.
EXCLUSIVE = ((49, 50), (98, 99))
FALSELY_CODED = 0.002  # chance that an absent condition is coded, whatever went before
TAIL_OF_CODES = 0.1  # share of a condition's codes that are none of its listed ones
ANYWAY = 0.004  # least chance of a drug or procedure, for reasons that are no condition here
B_CODED = 0.9  # hospital b's coders find nine in ten of what hospital a's find,
B_COPIES = 2.0  # and copy old diagnoses twice as often.


@dataclass(frozen=True)
class Condition:
    """One CCS category as a state a patient is in or not; the columns of conditions.csv."""

    ccs: int
    name: str
    system: str
    course: str
    prevalence: float
    persistence: float
    per_decade: float
    male: float
    surge: float
    lethality: float
    coded: float
    history: float
    elsewhere: float


@dataclass(frozen=True)
class CodeChoice:
    """The codes of one condition in one system, and where each one's share of draws ends."""

    codes: Texts
    ends: Floats


@dataclass(frozen=True)
class Causes:
    """What conditions bring about: drugs or procedures.

    An item comes with probability 1 − (1 − everyone) · Π (1 − caused) over the conditions present:
    a noisy "or".
    """

    everyone: Floats  # (items,)
    caused: Floats  # (conditions, items)

    def log_absent(self, state: Bools) -> Floats:
        """Log-probability that each item does not come, (…, items)."""
        present = state.astype(self.caused.dtype)
        spared: Floats = present @ np.log1p(-self.caused) + np.log1p(-self.everyone)
        return spared


@dataclass(frozen=True)
class Drug:
    """A line of drugs.csv: its two names, and how a pharmacy writes it down."""

    name: str
    other_name: str
    strength: str
    route: str


@dataclass(frozen=True)
class Catalogue:
    """A hospital's medicine as arrays, conditions in the order of conditions.csv."""

    conditions: tuple[Condition, ...]
    onset: Floats  # (conditions,) log-odds of a woman of 65 with nothing else
    persistence: Floats  # (conditions,) log-odds
    fades: Floats  # (conditions,) share of the persistence that fades with time
    per_decade: Floats
    male: Floats
    surge: Floats  # (conditions,) log-odds in a stay that is one deviation worse than usual
    lethality: Floats
    of_system: Floats  # (systems, conditions) 0 or 1
    progression: Floats  # (conditions before, conditions after) log-odds
    coded: Floats  # (conditions,) probability that a present condition is coded
    copied: Floats  # (conditions,) that one is coded which is over since the stay before
    drugs: tuple[Drug, ...]
    prescribed: Causes
    effects: Floats  # (drugs, conditions) log-odds added to the persistence
    procedures: Mapping[Coding, Texts]
    performed: Causes
    exclusive: tuple[tuple[int, int], ...]  # (spared, worse) as positions

    def in_single_precision(self) -> "Catalogue":
        """The same in float32, for many draws at once."""
        short: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                short[field.name] = value.astype(np.float32)
            elif isinstance(value, Causes):
                short[field.name] = Causes(
                    *(part.astype(np.float32) for part in vars(value).values())
                )
        return replace(self, **short)  # type: ignore[arg-type]


def hospital(name: HospitalName = "a", *, detail: float = 1.0) -> Catalogue:
    """The medicine of a hospital.

    Args:
        name: `b` has other prevalences, other habits of coding and other names of drugs.
        detail: how much of what bears on no label is in the records: multiplies the chance that
            a condition outside the 25 is coded, and that a drug or procedure is given, but for
            drugs that truly help.
    """
    conditions = read_conditions()
    columns = {
        field: np.array([getattr(condition, field) for condition in conditions], dtype=float)
        for field in ("persistence", "per_decade", "male", "surge", "lethality", "coded", "history")
    }
    onset = _onsets(conditions)
    coded, copied = columns["coded"], columns["history"]
    if name == "b":
        onset = onset + np.array([condition.elsewhere for condition in conditions])
        coded, copied = B_CODED * coded, np.minimum(B_COPIES * copied, 0.5)
    shown = np.where(np.arange(len(conditions)) < LABELS, 1.0, detail)
    drugs, prescribed = _drugs(conditions)
    effects = _effects(conditions, drugs)
    helps = effects.any(axis=1)
    codes, performed = _procedures(conditions)
    return Catalogue(
        conditions=conditions,
        onset=onset,
        persistence=columns["persistence"],
        fades=np.array([FADING_SHARE * (c.course == "acute") for c in conditions]),
        per_decade=columns["per_decade"],
        male=columns["male"],
        surge=columns["surge"],
        lethality=columns["lethality"],
        of_system=np.array([[c.system == s for c in conditions] for s in SYSTEMS], dtype=float),
        progression=_progression(conditions),
        coded=np.maximum(shown * coded, FALSELY_CODED),
        copied=shown * copied,
        drugs=drugs,
        prescribed=_thinned(prescribed, np.where(helps, 1.0, detail)),
        effects=effects,
        procedures=codes,
        performed=_thinned(performed, np.full(len(performed.everyone), detail)),
        exclusive=tuple(
            (_positions(conditions)[spared], _positions(conditions)[worse])
            for spared, worse in EXCLUSIVE
        ),
    )


FADING_SHARE = 0.6  # of what an acute condition adds to its own odds at the next stay


@cache
def read_conditions() -> tuple[Condition, ...]:
    """conditions.csv; the 25 phenotypes first."""
    types = Condition.__annotations__
    return tuple(
        Condition(**{name: types[name](value) for name, value in row.items()})
        for row in read_table("conditions.csv")
    )


@cache
def code_choices(coding: Coding, hospital_name: HospitalName = "a") -> tuple[CodeChoice, ...]:
    """How each condition is coded: its listed codes, and a long tail of its category's others.

    Hospital b prefers among the listed codes those that hospital a uses least.
    """
    system = CODING_SYSTEMS[coding]
    listed: dict[int, dict[str, float]] = {}
    for row in read_table("codes.csv"):
        if row["system"] == system:
            listed.setdefault(int(row["ccs"]), {})[row["code"]] = float(row["weight"])
    leaves: dict[int, list[str]] = {}
    for code, ccs in sorted((icd9_leaves() if coding == "icd9" else icd10_leaves()).items()):
        leaves.setdefault(ccs, []).append(code)
    choices = []
    for condition in read_conditions():
        top = listed[condition.ccs]
        weights = list(top.values())
        if hospital_name == "b":
            weights = weights[::-1]
        rest = [code for code in leaves[condition.ccs] if code not in top]
        shares = np.concatenate(
            [
                _shares(weights, 1 - TAIL_OF_CODES),
                _shares(1 / np.arange(1, len(rest) + 1), TAIL_OF_CODES),
            ]
        )
        choices.append(CodeChoice(np.array([*top, *rest]), np.cumsum(shares / shares.sum())))
    return tuple(choices)


def read_table(name: str) -> list[dict[str, str]]:
    """The lines of a table beside this module."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _shares(weights: Sequence[float] | Floats, total: float) -> Floats:
    array = np.asarray(weights, dtype=float)
    return total * array / array.sum() if len(array) else array


def _positions(conditions: tuple[Condition, ...]) -> dict[int, int]:
    return {condition.ccs: place for place, condition in enumerate(conditions)}


def _onsets(conditions: tuple[Condition, ...]) -> Floats:
    found = {int(row["ccs"]): float(row["onset"]) for row in read_table("onsets.csv")}
    return np.array([found[condition.ccs] for condition in conditions])


def _progression(conditions: tuple[Condition, ...]) -> Floats:
    place = _positions(conditions)
    matrix = np.zeros((len(conditions), len(conditions)))
    for row in read_table("progressions.csv"):
        matrix[place[int(row["before"])], place[int(row["after"])]] += float(row["log_odds"])
    return matrix


def _drugs(conditions: tuple[Condition, ...]) -> tuple[tuple[Drug, ...], Causes]:
    rows = read_table("drugs.csv")
    named = tuple(
        Drug(row["name"], row["other_name"], row["strength"], row["route"]) for row in rows
    )
    return named, _causes(conditions, rows)


def _procedures(conditions: tuple[Condition, ...]) -> tuple[Mapping[Coding, Texts], Causes]:
    rows = read_table("procedures.csv")
    codes: dict[Coding, Texts] = {
        "icd9": np.array([row["icd9"] for row in rows]),
        "icd10": np.array([row["icd10"] for row in rows]),
    }
    return codes, _causes(conditions, rows)


def _causes(conditions: tuple[Condition, ...], rows: Sequence[Mapping[str, str]]) -> Causes:
    place = _positions(conditions)
    caused = np.zeros((len(conditions), len(rows)))
    for item, row in enumerate(rows):
        for indication in row["indications"].split():
            ccs, _, probability = indication.partition(":")
            caused[place[int(ccs)], item] = float(probability)
    everyone = np.array([float(row["everyone"]) for row in rows])
    return Causes(np.maximum(everyone, ANYWAY), caused)


def _thinned(causes: Causes, share: Floats) -> Causes:
    return Causes(causes.everyone * share, causes.caused * share)


def _effects(conditions: tuple[Condition, ...], drugs: tuple[Drug, ...]) -> Floats:
    place = _positions(conditions)
    names = [drug.name for drug in drugs]
    matrix = np.zeros((len(drugs), len(conditions)))
    for row in read_table("effects.csv"):
        matrix[names.index(row["drug"]), place[int(row["ccs"])]] = float(row["log_odds"])
    return matrix
