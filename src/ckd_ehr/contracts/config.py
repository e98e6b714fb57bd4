"""Settings of a run: one YAML file plus dotted overrides in, one frozen `RunConfig` out.

Every section belongs to a stage; `pipeline.py` says which sections a stage reads, and only those
enter its fingerprint. Unknown keys are refused with the nearest known one. The sections from
tables to pairs are declared in config_data.py, those of the models in config_models.py.
Ignores: which stage runs when.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from ckd_ehr.contracts.config_data import (
    AuditConfig,
    CohortConfig,
    DataConfig,
    EngineConfig,
    InstructionsConfig,
    LabelsConfig,
    MedsConfig,
    OmopConfig,
    SampleConfig,
    Section,
    SimulatorConfig,
    SplitsConfig,
)
from ckd_ehr.contracts.config_models import (
    EMBEDDED_STUDENT,
    EMBEDDED_TEACHER,
    CommitteeConfig,
    CommitteeMember,
    ConceptVocabularyConfig,
    LoraConfig,
    PaperConfig,
    Pooling,
    SignalsConfig,
    StudentConfig,
    TeacherConfig,
    TrainingConfig,
)
from ckd_ehr.contracts.database_url import masked
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Reader

__all__ = [
    "EMBEDDED_STUDENT",
    "EMBEDDED_TEACHER",
    "AuditConfig",
    "CohortConfig",
    "CommitteeConfig",
    "CommitteeMember",
    "ConceptVocabularyConfig",
    "DataConfig",
    "EfficacyConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FaithfulnessConfig",
    "GuidelinesConfig",
    "InstructionsConfig",
    "KnowledgeConfig",
    "LabelsConfig",
    "LoraConfig",
    "MedsConfig",
    "OmopConfig",
    "PaperConfig",
    "Pooling",
    "ReaderConfig",
    "RunConfig",
    "SampleConfig",
    "Section",
    "SignalsConfig",
    "SimulatorConfig",
    "SplitsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TeacherReaderConfig",
    "TrainingConfig",
    "build_config",
    "load_config",
    "with_places_of",
]

GUIDELINE_DIGESTS = "pypi://open-medicine==0.12.0/open_medicine/guidelines"
SHOWN_CHARACTERS = 80  # of a refused value
# A sign, or a token that PyYAML names ('<scalar>', '<block end>'); anything else is of the file.
_QUOTED = re.compile(r"""(['"])(?:.|<[a-z ]+>)\1|(['"]).*?\2""")


class ReaderConfig(Section):
    """What one reader is told, within how many tokens; knowledge is cut first."""

    max_tokens: int = Field(512, ge=16, le=32768, description="Token budget of a narrative.")
    categories: bool = Field(False, description="Tell the categories of the last diagnoses.")
    efficacy: bool = Field(False, description="Tell what goes with the diseases' resolution.")
    guidelines: bool = Field(False, description="Tell what guideline digests say of them.")


class TeacherReaderConfig(ReaderConfig):
    """As for the student, but knowledge is told: the teacher is to be medically informed."""

    efficacy: bool = Field(True, description="Tell what goes with the diseases' resolution.")
    guidelines: bool = Field(True, description="Tell what guideline digests say of them.")


class EfficacyConfig(Section):
    """How treatments are compared (stage `knowledge`)."""

    kinds: tuple[Literal["medication", "procedure"], ...] = Field(
        ("medication",), min_length=1, description="What counts as a treatment."
    )
    min_support: int = Field(
        20,
        ge=5,
        description="Patients with and without a treatment, at least; also rid of it or not.",
    )
    top: int = Field(3, ge=1, description="Treatments told of each present disease, at most.")


class GuidelinesConfig(Section):
    """Which guideline digests there are, and how much is told of them (stage `knowledge`)."""

    pack: str | None = Field(
        GUIDELINE_DIGESTS, description="pypi:// name or folder of digests; null for none."
    )
    folder: Path | None = Field(None, description="A site's own Markdown files, besides.")
    max_tokens: int = Field(96, ge=8, description="Tokens of statements in a narrative, at most.")


class KnowledgeConfig(Section):
    """How histories become text (stage `knowledge`)."""

    efficacy: EfficacyConfig = EfficacyConfig()
    guidelines: GuidelinesConfig = GuidelinesConfig()
    teacher: TeacherReaderConfig = TeacherReaderConfig()
    student: ReaderConfig = ReaderConfig()

    @property
    def readers(self) -> dict[Reader, ReaderConfig]:
        """Both readers' settings."""
        return {"teacher": self.teacher, "student": self.student}

    @property
    def uses_guidelines(self) -> bool:
        """Whether any reader is told of guidelines, so that digests are needed."""
        return any(reader.guidelines for reader in self.readers.values())


class FaithfulnessConfig(Section):
    """Whether the students' explanations hold: concepts are erased (stage `evaluation`)."""

    pairs: int = Field(30, ge=0, description="Held-out pairs, one a patient; 0 for none.")
    random_orders: int = Field(3, ge=1, description="Orders by chance, averaged.")
    gate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The gain over chance, in probability, that the whole interval must exceed.",
    )


class EvaluationConfig(Section):
    """How the models are scored (stage `evaluation`)."""

    bootstrap_draws: int = Field(2000, ge=0, description="Patient-bootstrap draws; 0 for none.")
    calibration_bins: int = Field(15, ge=2, description="Bins of ECE and reliability.")
    min_cell: int = Field(20, ge=1, description="Pairs below which no subgroup is shown.")
    latency_pairs: int = Field(30, ge=1, description="Narratives timed one at a time.")
    faithfulness: FaithfulnessConfig = FaithfulnessConfig()


class RunConfig(Section):
    """Everything a run depends on."""

    name: str = Field(
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The run's name; the config file's stem by default.",
    )
    seed: int = Field(0, ge=0, description="Seed of training, baselines and bootstrap.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto takes a GPU if there is one."
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (),
        description="Where training is followed, by Hugging Face Trainer's own callbacks; each "
        "needs its package, and wandb sends scores and settings to its server.",
    )
    engine: EngineConfig = EngineConfig()
    data: DataConfig = DataConfig()
    splits: SplitsConfig = SplitsConfig()
    cohort: CohortConfig = CohortConfig()
    labels: LabelsConfig = LabelsConfig()
    audit: AuditConfig = AuditConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    teacher: TeacherConfig = TeacherConfig()
    signals: SignalsConfig = SignalsConfig()
    committee: CommitteeConfig = CommitteeConfig()
    student: StudentConfig = StudentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _student_is_taught_by_a_source(self) -> "RunConfig":
        members = [*self.committee.members, *self.committee.external]
        without = [f"committee_without_{name}" for name in members] if len(members) > 2 else []
        sources = ["committee", "teacher", *members, *without]
        if self.student.soft_labels not in sources:
            raise ValueError(
                f"student.soft_labels={self.student.soft_labels}: no such source; there are "
                f"{', '.join(dict.fromkeys(sources))}"
            )
        return self


def with_places_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """The config with the places of records of another: where they are decides nothing."""
    omop = config.data.omop.model_copy(update={"url": other.data.omop.url})
    data = config.data.model_copy(update={"root": other.data.root, "omop": omop})
    return config.model_copy(update={"data": data})


def as_shared(config: RunConfig) -> dict[str, Any]:
    """The settings without the places of this site, as reports may show them.

    A folder of a model, of guidelines or of another member's file is named by its last part.
    """
    settings = config.model_dump(
        mode="json",
        exclude={"data": {"root": True, "omop": {"url": True}}, "splits": {"file": True}},
    )
    for reader in ("teacher", "student"):
        name = settings[reader]["model"]
        if Path(name).is_dir():
            settings[reader]["model"] = Path(name).resolve().name
    guidelines = settings["knowledge"]["guidelines"]
    for key in ("pack", "folder"):
        if guidelines[key] is not None and "://" not in guidelines[key]:
            guidelines[key] = Path(guidelines[key]).name
    external = settings["committee"]["external"]
    settings["committee"]["external"] = {name: Path(path).name for name, path in external.items()}
    return settings


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key.subkey=value` overrides, validate.

    The run's name defaults to the file's stem.

    Raises:
        CkdEhrError: the file is absent or no YAML mapping, an override has no `=`, a key is
            unknown (the nearest known one is named) or a value does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings = yaml.safe_load(text) or {}
    except FileNotFoundError:
        raise CkdEhrError(f"{path}: no such config file; shipped ones are in configs/") from None
    except IsADirectoryError:
        raise CkdEhrError(f"{path}: this is a folder; give the YAML file in it") from None
    except (ValueError, yaml.YAMLError) as error:  # ValueError: bytes not UTF-8, no such date
        raise CkdEhrError(f"{path}: not valid YAML in UTF-8: {_unseen(error)}") from None
    if not isinstance(settings, dict):
        raise CkdEhrError(f"{path}: the top level must be a mapping of settings")
    settings.setdefault("name", path.stem)
    for override in overrides:
        _apply_override(settings, override)
    return build_config(settings, origin=str(path), overrides=overrides)


def _unseen(error: ValueError | yaml.YAMLError) -> str:
    """What is wrong and where, without a word of the file: PyYAML cuts a snippet out of it.

    A snippet may begin or end within a password, and a problem may name a tag or an alias.

    >>> _unseen(yaml.MarkedYAMLError(problem="found undefined alias 'x1'"))
    "found undefined alias '…'"
    """
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)  # names a byte or a character and its position
    problem = _QUOTED.sub(lambda found: found[0] if found[1] else "'…'", error.problem or "")
    mark = error.problem_mark
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return problem + place


def build_config(
    settings: Mapping[str, Any], *, origin: str = "config", overrides: Sequence[str] = ()
) -> RunConfig:
    """Validate a mapping of settings.

    Errors name where a setting came from: one of the overrides in it, or else `origin`.
    """
    keys = {override.partition("=")[0].strip() for override in overrides}
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        lines = [_explain(problem, origin, keys) for problem in error.errors()]
        raise CkdEhrError("\n".join(lines)) from None


def _apply_override(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    shown = masked(override)
    # A url without its key: what stands before an '=' in it is no key to show.
    if not equals or not key.strip() or "://" in key:
        raise CkdEhrError(f"override '{shown}': write it as key.subkey=value, without spaces")
    *parents, last = key.strip().split(".")
    node = settings
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise CkdEhrError(f"override '{shown}': '{parent}' is a value, not a section")
        node = child
    try:
        parsed = yaml.safe_load(value) if value else None
    except (ValueError, yaml.YAMLError):
        raise CkdEhrError(f"override '{shown}': the value is not valid YAML") from None
    node[last] = _as_number(parsed)


def _as_number(value: object) -> object:
    """YAML 1.1 reads `1e-4` as text; a person means a number."""
    if isinstance(value, str) and value[:1] in "0123456789+-.":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(problem: Mapping[str, Any], origin: str, overridden: Collection[str]) -> str:
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location) or "config"
    if any(
        f"{dotted}.".startswith(f"{key}.") or key.startswith(f"{dotted}.") for key in overridden
    ):
        origin = "override"
    if problem["type"] != "extra_forbidden":
        message = str(problem["msg"]).removeprefix("Value error, ")
        return f"{origin}: {dotted} = {_shortened(problem['input'])}: {message}"
    known = _known_keys(location[:-1])
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
    *parents, _ = location
    suggestion = ".".join([*parents, near[0]]) if near else "none"
    return f"{origin}: unknown key '{dotted}'; did you mean '{suggestion}'?"


def _known_keys(parents: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for parent in parents:
        # A place in a list, or a key of a mapping, whose section is already found.
        if parent.isdigit() or parent not in model.model_fields:
            continue
        annotation = model.model_fields[parent].annotation
        kinds = (annotation, *get_args(annotation))
        model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(model.model_fields)


def _shortened(value: object) -> str:
    shown = masked(repr(value))
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + "…"
