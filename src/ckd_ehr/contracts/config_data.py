"""Settings from source tables to visit pairs: sources, engine, splits, cohort, labels, audit.

Declared apart from config.py, which reads the YAML file and holds the sections of the models.
Ignores: how a setting is carried out.
"""

import difflib
import re
import zoneinfo
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ckd_ehr.contracts.database_url import refuse_secrets
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import PHENOTYPES_25, Phenotype

# Those that weigh chances. The others are about what must not be, and cannot be accepted.
ACCEPTABLE_CHECKS = (
    "one patient under two ids",
    "label prevalence across splits",
    "one feature tells a label",
)

LEAST_MEMORY_BYTES = 64_000_000
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # C:/ is a drive


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class SimulatorConfig(Section):
    """The simulated hospital (source `simulated`, command `simulate`)."""

    patients: int = Field(1_000, ge=2, le=100_000_000, description="Number of simulated patients.")
    seed: int = Field(2026, ge=0, description="Seed of the simulated hospital.")
    visits_per_patient: float = Field(
        1.4,
        ge=1,
        le=14,
        description="Mean number of visits were there no deaths; 1.4 is MIMIC-III's spread, in "
        "which one patient in six comes back.",
    )
    coding: Literal["icd9", "icd10"] = Field(
        "icd9", description="Code system of diagnoses and procedures; the patients are the same."
    )
    hospital: Literal["a", "b"] = Field(
        "a",
        description="b: other prevalences, habits of coding and names of drugs, for transfer "
        "between sites.",
    )
    detail: float = Field(
        1.0,
        ge=0,
        le=1,
        description="How much is recorded of what bears on none of the 25 labels: multiplies the "
        "chance that another condition is coded and that a drug without effect or a procedure is "
        "given. Less makes short histories.",
    )
    broken_rows: bool = Field(
        True, description="Add a few broken rows, of the kinds that real tables hold."
    )
    replayed_patients: int = Field(
        400,
        ge=0,
        description="Of how many patients who came back the best risk that the record alone "
        "allows is estimated (a tenth of a second each).",
    )


class OmopConfig(Section):
    """An OMOP CDM database (source `omop`)."""

    url: str | None = Field(
        None, description="PostgreSQL: postgresql://USER@HOST/DATABASE, without a password."
    )
    table_schema: str | None = Field(None, description="Schema of the CDM tables in a database.")
    codes: Literal["auto", "source", "standard"] = Field(
        "auto",
        description="ICD codes from source values, or from standard concepts by CONCEPT tables.",
    )
    icd_version: Literal["auto", 9, 10] = Field(
        "auto",
        description="What a code without a source concept is that exists in ICD-9-CM and "
        "ICD-10-CM (V4581, E8809); auto: what the other codes of its stay are.",
    )
    visit_concepts: tuple[int, ...] = Field(
        (9201, 262, 8717), min_length=1, description="visit_concept_ids that count as a stay."
    )

    @field_validator("url")
    @classmethod
    def _is_a_url_without_password(cls, url: str | None) -> str | None:
        # A CkdEhrError passes pydantic as it is: its own error would show the url.
        return None if url is None else refuse_secrets(url)


class MedsRule(Section):
    """What the events are whose code begins with a prefix (source `meds`)."""

    role: Literal[
        "diagnosis", "medication", "procedure", "admission", "discharge", "death", "birth",
        "sex", "ethnicity", "age", "none",
    ] = Field(description="What such an event is; none: it is not read.")  # fmt: skip
    system: str | None = Field(
        None,
        pattern=r"^[A-Z0-9_]+$",
        description="Vocabulary of a diagnosis, medication or procedure: ICD10CM, NAME, SNOMED, …",
    )
    value: str | None = Field(
        None, min_length=1, description="Stands for what follows the prefix: DIED, WHITE."
    )
    given: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Read only codes that say one of these after the next //: Administered.",
    )

    @model_validator(mode="after")
    def _coded_roles_have_a_system(self) -> "MedsRule":
        coded = self.role in ("diagnosis", "medication", "procedure")
        if coded != (self.system is not None):
            raise ValueError(
                "a rule for diagnosis, medication or procedure names a system, any other none"
            )
        return self


class MedsConfig(Section):
    """A MEDS dataset made elsewhere (source `meds`)."""

    visit_id: str | None = Field(
        None,
        description="Column that names the stay; null looks for visit_id, hadm_id, "
        "visit_occurrence_id, encounter_id; none tells stays by time alone.",
    )
    roles: dict[str, MedsRule] = Field(
        default_factory=dict,
        description="What codes mean, by prefix; adds to the built-in table and overrides it: "
        "DX//: {role: diagnosis, system: ICD10CM}.",
    )

    @field_validator("roles")
    @classmethod
    def _prefixes_are_not_empty(cls, roles: dict[str, MedsRule]) -> dict[str, MedsRule]:
        if not all(prefix.strip("/ ") for prefix in roles):
            raise ValueError("a prefix is empty; write the beginning of a code, as DX//")
        return roles


class InstructionsConfig(Section):
    """Instruction files as of the paper (source `instructions`)."""

    subject_id: str = Field(
        "subject_id", description="Key that names a line's patient, where lines have one."
    )
    labels: tuple[str, ...] = Field(
        (), description="Names of labels beside the 25 and the paper's for them."
    )


class DataConfig(Section):
    """Where the records come from (stage `events`)."""

    source: str = Field(
        "simulated",
        description="mimic3, mimic4, omop, meds, instructions, uci_diabetes, simulated, …",
    )
    root: Path | None = Field(None, description="Folder or file with the source's tables.")
    columns: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Renamed columns: data.columns.PRESCRIPTIONS.drug=drugname.",
    )
    timezone: str | None = Field(
        None,
        description="The hospital's time zone (Europe/Berlin), into which times that state an "
        "offset are moved; needed only where offsets are mixed.",
    )
    omop: OmopConfig = OmopConfig()
    meds: MedsConfig = MedsConfig()
    instructions: InstructionsConfig = InstructionsConfig()
    simulator: SimulatorConfig = SimulatorConfig()

    @field_validator("root", mode="before")
    @classmethod
    def _is_no_url(cls, root: object) -> object:
        # Before a Path makes one slash of two. A CkdEhrError passes pydantic as it is: its own
        # error would show the url, and with it a password.
        if isinstance(root, str | Path) and _URL.match(str(root)):
            raise CkdEhrError(
                "data.root holds a url; a url goes into data.omop.url, here stands a folder or file"
            )
        return root

    @field_validator("timezone")
    @classmethod
    def _is_a_known_zone(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError("no known time zone; write it as Europe/Berlin")
        return name


class EngineConfig(Section):
    """What computes events and cohort. The results are the same, whatever is set here."""

    backend: Literal["duckdb", "spark"] = Field(
        "duckdb", description="DuckDB in this process, or Spark (extra `spark`, Java 17 or 21)."
    )
    memory_limit: str = Field(
        "1GB",
        description="DuckDB's memory, at least 64MB; beyond it, it spills into the run's folder.",
    )
    spark: dict[str, str] = Field(
        default_factory=dict,
        description="Spark properties, in the YAML file: spark.master: yarn.",
    )

    @field_validator("memory_limit")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        written = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT])(i?)B", size, flags=re.IGNORECASE)
        if not written:
            raise ValueError("write it as 512MB or 4GB")
        number, prefix, binary = written.groups()
        step = 1024 if binary else 1000
        if float(number) * step ** ("KMGT".index(prefix.upper()) + 1) < LEAST_MEMORY_BYTES:
            raise ValueError("too little to work in; give it at least 64MB")
        return size


class SplitsConfig(Section):
    """How patients are divided (stage `cohort`)."""

    method: Literal["random", "temporal", "file", "source"] = Field(
        "random",
        description="random: by patient hash. temporal: patients first admitted last are held "
        "out. file: as splits.file says. source: as the MEDS dataset says.",
    )
    file: Path | None = Field(
        None, description="CSV or Parquet with subject_id and split (method `file`)."
    )
    shift_expected: bool = Field(
        False,
        description="The splits of a file differ on purpose (by site, by time), so that the audit "
        "does not fail when their label prevalences do.",
    )
    seed: int = Field(0, ge=0, description="Seed of the patient hash.")
    tuning: float = Field(0.1, gt=0, lt=1, description="Share of patients for tuning.")
    held_out: float = Field(0.2, gt=0, lt=1, description="Share of patients held out.")
    folds: int = Field(2, ge=2, le=5, description="Patient folds of the cross-fitted teacher.")

    @model_validator(mode="after")
    def _leaves_room_for_training(self) -> "SplitsConfig":
        if self.tuning + self.held_out >= 1:
            raise ValueError("tuning + held_out must be below 1, so that patients remain to train")
        if (self.method == "file") != (self.file is not None):
            raise ValueError("splits.file goes with splits.method=file, and only with it")
        if self.shift_expected and self.method == "random":
            raise ValueError("a random split cannot be expected to shift")
        return self

    @property
    def may_shift(self) -> bool:
        """Whether label prevalences may differ between the splits beyond chance."""
        return self.method == "temporal" or self.shift_expected


class SampleConfig(Section):
    """Upper limits on pairs; whole patients are kept in hash order. null keeps all."""

    train: int | None = Field(None, ge=1, description="Labelled train pairs.")
    unlabelled: int | None = Field(None, ge=0, description="Unlabelled train pairs.")
    tuning: int | None = Field(None, ge=1, description="Tuning pairs.")
    held_out: int | None = Field(None, ge=1, description="Held-out pairs.")


class CohortConfig(Section):
    """Which visits become pairs (stage `cohort`)."""

    min_age_years: float = Field(0.0, ge=0, description="Age at the last history visit, at least.")
    min_history_visits: int = Field(1, ge=1, description="Shortest history.")
    max_history_visits: int = Field(16, ge=1, description="Older visits are left out.")
    admission_types: tuple[str, ...] | None = Field(
        None, min_length=1, description="Keep only stays of these admission types; null keeps all."
    )
    exclude_admission_types: tuple[str, ...] = Field(
        (), description="Leave out stays of these admission types: NEWBORN."
    )
    min_gap_days: float = Field(
        0.0, ge=0, description="An admission sooner after the discharge is no next visit."
    )
    max_gap_days: float | None = Field(
        None, gt=0, description="A next visit later than this labels nothing; null for any time."
    )
    label_window_days: float | None = Field(
        None,
        gt=0,
        description="Labels from all stays admitted within so many days of the prediction, the "
        "next one included; null: from the next stay alone.",
    )
    sample: SampleConfig = SampleConfig()

    @model_validator(mode="after")
    def _gaps_leave_room(self) -> "CohortConfig":
        if self.max_gap_days is not None and self.max_gap_days <= self.min_gap_days:
            raise ValueError("max_gap_days must be above min_gap_days")
        return self


class LabelsConfig(Section):
    """The diseases to predict (stage `cohort`)."""

    phenotypes: tuple[Phenotype, ...] = Field(
        PHENOTYPES_25,
        min_length=1,
        description="Names with CCS categories, code patterns or disease names "
        "(docs/phenotypes.md).",
    )
    only_ccs: tuple[int, ...] | None = Field(
        None, description="Keep only the phenotypes of these CCS categories."
    )

    @property
    def selected(self) -> tuple[Phenotype, ...]:
        """The phenotypes in use, in the order of the list."""
        if self.only_ccs is None:
            return self.phenotypes
        wanted = set(self.only_ccs)
        return tuple(p for p in self.phenotypes if wanted & set(p.ccs))

    @model_validator(mode="after")
    def _names_are_unique_and_categories_known(self) -> "LabelsConfig":
        names = [p.name for p in self.phenotypes]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"phenotype names must be unique: {', '.join(doubles)}")
        known = {ccs for p in self.phenotypes for ccs in p.ccs}
        unknown = sorted(set(self.only_ccs or ()) - known)
        if unknown or not self.selected:
            raise ValueError(f"only_ccs names categories of no phenotype: {unknown}")
        return self


class AuditConfig(Section):
    """Which findings of the leak audit are known (stage `cohort`)."""

    accept: tuple[str, ...] = Field(
        (),
        description="Checks whose findings were looked into and end no run: one patient under two "
        "ids, label prevalence across splits, one feature tells a label.",
    )

    @field_validator("accept")
    @classmethod
    def _can_be_accepted(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ACCEPTABLE_CHECKS:
                [near] = difflib.get_close_matches(name, ACCEPTABLE_CHECKS, n=1, cutoff=0.0)
                raise ValueError(
                    f"'{name}' is no check whose findings can be accepted; did you mean '{near}'?"
                )
        return names
