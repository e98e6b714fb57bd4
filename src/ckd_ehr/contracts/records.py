"""What travels between stages: codes, visits, pairs, and the Arrow schema of every table.

Rows are joined by key, never by position. The label names of a table stand in its schema's
metadata, so a file read on its own says what its K columns mean.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.code_patterns import plain_code
from ckd_ehr.contracts.errors import CkdEhrError

# The last three are pieces of medical knowledge, not of the record.
Kind = Literal[
    "demographics", "diagnosis", "medication", "procedure", "category", "efficacy", "guideline"
]
Split = Literal["train", "tuning", "held_out"]
Reader = Literal["teacher", "student"]

ICD9CM = "ICD9CM"
ICD10CM = "ICD10CM"
ICD9PROC = "ICD9PROC"
ICD10PCS = "ICD10PCS"
DRUG_NAME = "NAME"
# ICD-9-CM as in the UCI diabetes data: mostly the category alone, its leading zeros gone.
UCI_ICD9 = "UCI_ICD9"

# MEDS codes of our sources: ROLE//SYSTEM//CODE for what was coded, ROLE[//DETAIL] otherwise.
DIAGNOSIS = "DIAGNOSIS"
MEDICATION = "MEDICATION"
PROCEDURE = "PROCEDURE"
ADMISSION = "HOSPITAL_ADMISSION"
DISCHARGE = "HOSPITAL_DISCHARGE"
SEX = "GENDER"
ETHNICITY = "ETHNICITY"
AGE = "AGE"
DEATH = "MEDS_DEATH"
BIRTH = "MEDS_BIRTH"


@dataclass(frozen=True, slots=True)
class Code:
    """One coded item of a visit; `title` is the source's own wording, if it has one."""

    system: str
    code: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """One hospital stay, as a row of the `visits` table holds it."""

    visit_id: str
    subject_id: int
    admit_time: datetime.datetime
    discharge_time: datetime.datetime
    age_years: float | None
    sex: str | None
    ethnicity: str | None
    admission_type: str | None
    died: bool
    diagnoses: tuple[Code, ...]
    medications: tuple[Code, ...]
    procedures: tuple[Code, ...]


class Span(NamedTuple):
    """Where a concept stands in a narrative's text: characters `start` up to `end`."""

    start: int
    end: int
    concept_id: str
    kind: Kind
    system: str
    code: str
    visit_index: int
    from_knowledge: bool = False


@dataclass(frozen=True, slots=True)
class Narrative:
    """A history as text, the concepts in it, and what the token budget cut.

    `concepts_cut` counts concepts of the record, `knowledge_cut` pieces of knowledge.
    """

    text: str
    spans: tuple[Span, ...]
    concepts_cut: int
    knowledge_cut: int = 0


@dataclass(frozen=True, slots=True)
class ConceptEvidence:
    """What one concept adds to a label's calibrated log-odds (signed).

    `citation` says where a piece of knowledge is from; empty for concepts of the record.
    """

    concept_id: str
    text: str
    kind: Kind
    visit_index: int
    log_odds: float
    citation: str = ""


@dataclass(frozen=True, slots=True)
class LabelExplanation:
    """One label's risk and what it rests on.

    `base_log_odds` + `reading_state_log_odds` + the concepts' log-odds = logit(probability).
    The reading state sums up the whole text; what rests on it cannot be attributed to a concept.
    `spread` is the standard deviation of several opinions' log-odds, if there are several.
    """

    label: str
    probability: float
    prevalence: float
    base_log_odds: float
    reading_state_log_odds: float
    concepts: tuple[ConceptEvidence, ...]
    spread: float | None = None

    @property
    def reading_state_share(self) -> float:
        """The reading state's share of all log-odds but the base, signs aside: in [0, 1].

        >>> fever = ConceptEvidence("0/diagnosis/ICD9CM/78060/0", "Fever", "diagnosis", 0, -0.5)
        >>> LabelExplanation("Shock", 0.3, 0.1, -2.0, 1.5, (fever,)).reading_state_share
        0.75
        """
        return self._share(abs(self.reading_state_log_odds))

    @property
    def knowledge_share(self) -> float:
        """As `reading_state_share`, of what is of medical knowledge and not of the record."""
        return self._share(sum(abs(c.log_odds) for c in self.concepts if c.citation))

    def _share(self, part: float) -> float:
        total = abs(self.reading_state_log_odds) + sum(abs(c.log_odds) for c in self.concepts)
        return part / total if total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """A pair's narrative and the explanation of each label, in the order of the labels."""

    pair_id: str
    model: str
    narrative: Narrative
    labels: tuple[LabelExplanation, ...]


CODE = pa.struct([("system", pa.string()), ("code", pa.string()), ("title", pa.string())])

# MEDS 0.4 data plus the visit an event belongs to (null: to none).
EVENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("visit_id", pa.string()),
    ]
)

VISITS = pa.schema(
    [
        pa.field("visit_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("admit_time", pa.timestamp("us"), nullable=False),
        pa.field("discharge_time", pa.timestamp("us"), nullable=False),
        pa.field("age_years", pa.float32()),
        pa.field("sex", pa.string()),
        pa.field("ethnicity", pa.string()),
        pa.field("admission_type", pa.string()),
        pa.field("died", pa.bool_(), nullable=False),
        pa.field("diagnoses", pa.list_(CODE), nullable=False),
        pa.field("medications", pa.list_(CODE), nullable=False),
        pa.field("procedures", pa.list_(CODE), nullable=False),
    ]
)

# fold is -1 outside the train split.
PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("history", pa.list_(pa.string()), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("next_visit_id", pa.string()),
        pa.field("gap_days", pa.float32()),
        pa.field("labels", pa.list_(pa.bool_())),
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.int8(), nullable=False),
    ]
)

SPAN = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("concept_id", pa.string()),
        ("kind", pa.string()),
        ("system", pa.string()),
        ("code", pa.string()),
        ("visit_index", pa.int16()),
        ("from_knowledge", pa.bool_()),
    ]
)

NARRATIVES = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("reader", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("spans", pa.list_(SPAN), nullable=False),
        pa.field("concepts_cut", pa.int32(), nullable=False),
        pa.field("knowledge_cut", pa.int32(), nullable=False),
    ]
)

# What each code of the cohort is called and belongs to: categories from the broadest.
TITLES = pa.schema(
    [
        pa.field("system", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("title_origin", pa.string(), nullable=False),
        pa.field("categories", pa.list_(pa.string()), nullable=False),
        pa.field("categories_origin", pa.string(), nullable=False),
    ]
)

# Statements of guideline digests, each with the file and lines it stands in.
GUIDELINES = pa.schema(
    [
        pa.field("snippet_id", pa.string(), nullable=False),
        pa.field("guideline_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("doi", pa.string()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("first_line", pa.int32(), nullable=False),
        pa.field("last_line", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        # CCS categories: for whom the guideline is, and what the statement speaks of.
        pa.field("conditions", pa.list_(pa.int32()), nullable=False),
        pa.field("mentions", pa.list_(pa.int32()), nullable=False),
    ]
)

# Whether patients with a disease and a treatment at one visit are likelier rid of the disease at
# the next, counted on labelled train pairs. fold is the fold left out; -1: none. Log odds ratios.
EFFICACY = pa.schema(
    [
        pa.field("fold", pa.int8(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("system", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("treatment", pa.string(), nullable=False),  # in words
        pa.field("treated", pa.int32(), nullable=False),
        pa.field("treated_resolved", pa.int32(), nullable=False),
        pa.field("untreated", pa.int32(), nullable=False),
        pa.field("untreated_resolved", pa.int32(), nullable=False),
        pa.field("separated", pa.bool_(), nullable=False),
        # Adjusted, and its test over all rows of a fold.
        pa.field("log_odds", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64(), nullable=False),
        pa.field("q_value", pa.float64(), nullable=False),
        # Shrunk in the light of all rows of a fold, with the bounds of the central 95 %.
        pa.field("shrunk_log_odds", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
    ]
)

# fold is the teacher fold that labelled the pair; -1 is the mean over all folds.
SOFT_LABELS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("logits", pa.list_(pa.float32()), nullable=False),
        pa.field("spread", pa.list_(pa.float32())),
        pa.field("fold", pa.int8(), nullable=False),
    ]
)

PREDICTIONS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("labels", pa.list_(pa.bool_()), nullable=False),
    ]
)


def with_label_names(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The schema with the K label names in its metadata."""
    return schema.with_metadata(
        {**(schema.metadata or {}), b"label_names": json.dumps(list(names))}
    )


def label_names(schema: pa.Schema) -> tuple[str, ...]:
    """The label names a table was written with.

    >>> label_names(with_label_names(PAIRS, ["Shock", "Pneumonia"]))
    ('Shock', 'Pneumonia')
    """
    stored = (schema.metadata or {}).get(b"label_names")
    if stored is None:
        raise CkdEhrError("table without label names in its schema metadata; rerun its stage")
    return tuple(json.loads(stored))


def pair_id_of(subject_id: int, visit_id: str) -> str:
    """A stable key of the pair whose history ends with this visit (16 hex digits).

    >>> pair_id_of(10006, "142345") == pair_id_of(10006, "142345")
    True
    """
    return hashlib.sha256(f"{subject_id}:{visit_id}".encode()).hexdigest()[:16]


def normal_form(written: str) -> str:
    """A UCI_ICD9 code with its leading zeros back and without its dot.

    >>> [normal_form(code) for code in ("8", "250.83", "V27", "E812", "428")]
    ['008', '25083', 'V27', 'E812', '428']
    """
    category, _, decimals = written.strip().partition(".")
    return plain_code((category.zfill(3) if category.isdigit() else category) + decimals)


def concept_id_of(*, visit_index: int, kind: str, system: str, code: str, occurrence: int) -> str:
    """A concept's key, stable when the codes of a visit are reordered.

    >>> concept_id_of(visit_index=0, kind="diagnosis", system="ICD9CM", code="4280", occurrence=0)
    '0/diagnosis/ICD9CM/4280/0'
    """
    return f"{visit_index}/{kind}/{system}/{code}/{occurrence}"


def visits_from_table(table: pa.Table) -> dict[str, Visit]:
    """The rows of a `visits` table as `Visit`s by visit_id; equal codes are one object."""
    known: dict[tuple[str, str, str | None], Code] = {}
    coded = ("diagnoses", "medications", "procedures")
    plain = [name for name in VISITS.names if name not in coded]
    values = {name: table[name].to_pylist() for name in plain}
    values |= {name: _codes_from_column(table[name], known) for name in coded}
    return {
        row[0]: Visit(**dict(zip(values, row, strict=True)))
        for row in zip(*values.values(), strict=True)
    }


def _codes_from_column(
    column: pa.ChunkedArray, known: dict[tuple[str, str, str | None], Code]
) -> list[tuple[Code, ...]]:
    """Each row's codes; column-wise, since a hospital has millions of them."""
    rows: list[tuple[Code, ...]] = []
    for chunk in column.chunks:
        fields = [chunk.flatten().field(name).to_pylist() for name in ("system", "code", "title")]
        keys = zip(*fields, strict=True)
        codes = [known.get(key) or known.setdefault(key, Code(*key)) for key in keys]
        lengths = pc.list_value_length(chunk).to_pylist()
        position = 0
        for length in lengths:
            rows.append(tuple(codes[position : position + (length or 0)]))
            position += length or 0
    return rows
