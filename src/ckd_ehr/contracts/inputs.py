"""The input of a prediction: `visits.jsonl`, one patient a line, in; histories of `Visit`s out.

The published schema (docs/visits.schema.json) is generated from these models. An error names the
file, the line, the field and the remedy, never what stands there: lines hold patients. Ignores:
what is predicted from them.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NaiveDatetime,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ckd_ehr.contracts.code_patterns import plain_code
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import UCI_ICD9, Code, Visit, normal_form

SHOWN_PROBLEMS = 20
SCHEMA_HINT = "docs/visits.schema.json has the schema, docs/examples/visits.jsonl an example"
# A misspelt key is shown only if it can hardly be anything else: lines hold patients.
KEY_LIKE = re.compile(r"[A-Za-z][A-Za-z_]{0,30}$")
KEY_CLOSENESS = 0.6

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


def _has_content(code: str) -> str:
    if not any(letter.isalnum() for letter in code):
        raise ValueError("no letter or digit in the code; write the code, or leave the entry out")
    return code


CodeText = Annotated[Text, AfterValidator(_has_content)]


class _Input(BaseModel):
    """A part of a line: exact JSON types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DiagnosisInput(_Input):
    """A billing diagnosis of a visit."""

    system: Literal["ICD9CM", "ICD10CM", "UCI_ICD9"] = Field(description="Code system.")
    code: CodeText = Field(description="The code as a string, with or without its dot.")
    title: Text | None = Field(None, description="Own wording; null takes the ontology's.")


class MedicationInput(_Input):
    """A drug given or prescribed during a visit."""

    system: Literal["NAME"] = Field(description="Code system: drugs go by their names.")
    code: CodeText = Field(description="The drug's name; dose and form are left out.")
    title: Text | None = Field(None, description="Not read: a drug goes by its name.")


class ProcedureInput(_Input):
    """A procedure of a visit."""

    system: Literal["ICD9PROC", "ICD10PCS"] = Field(description="Code system.")
    code: CodeText = Field(description="The code as a string, with or without its dot.")
    title: Text | None = Field(None, description="Own wording; null takes the ontology's.")


class VisitInput(_Input):
    """One hospital stay that has ended."""

    visit_id: Text = Field(description="Unique within the patient.")
    admit_time: NaiveDatetime = Field(description="ISO 8601, local time without zone.")
    discharge_time: NaiveDatetime = Field(description="ISO 8601, not before admit_time.")
    age_years: float | None = Field(None, ge=0, le=130, description="Age at admission.")
    sex: Literal["F", "M"] | None = Field(None, description="Sex, if recorded.")
    ethnicity: Text | None = Field(None, description="As the training records have it.")
    admission_type: Text | None = Field(None, description="As the training records have it.")
    diagnoses: tuple[DiagnosisInput, ...] = ()
    medications: tuple[MedicationInput, ...] = ()
    procedures: tuple[ProcedureInput, ...] = ()

    @model_validator(mode="after")
    def _is_a_stay(self) -> "VisitInput":
        if self.discharge_time < self.admit_time:
            raise ValueError("discharge_time is before admit_time; correct the one that is wrong")
        if not (self.diagnoses or self.medications or self.procedures):
            raise ValueError(
                "the visit is empty: it has no diagnosis, medication or procedure; leave it out"
            )
        return self


class PatientInput(_Input):
    """One line: a patient's visits, oldest first; risks are for the visit after the last."""

    subject_id: int = Field(
        ge=-(2**63), lt=2**63, description="The patient's number; the output repeats it."
    )
    visits: tuple[VisitInput, ...] = Field(min_length=1, description="Oldest first.")

    @model_validator(mode="after")
    def _visits_follow_each_other(self) -> "PatientInput":
        ids = [visit.visit_id for visit in self.visits]
        for number, visit_id in enumerate(ids):
            if visit_id in ids[:number]:
                first = ids.index(visit_id)
                raise ValueError(
                    f"visits[{number}] has the visit_id of visits[{first}]; give each stay once"
                )
        for number, (earlier, later) in enumerate(pairwise(self.visits), start=1):
            if later.admit_time < earlier.admit_time:
                raise ValueError(
                    f"visits[{number}] was admitted before visits[{number - 1}]; "
                    "put the visits in order of admit_time, oldest first"
                )
            if later.discharge_time < earlier.discharge_time:
                raise ValueError(
                    f"visits[{number}].discharge_time is before that of visits[{number - 1}]: at "
                    "the last discharge both must be known; leave out the visit that was going on"
                )
        return self

    def history(self) -> tuple[Visit, ...]:
        """The visits as the rest of the package knows them (dots of ICD codes left out)."""
        return tuple(_visit(self.subject_id, visit) for visit in self.visits)


def read_histories(path: Path) -> list[tuple[Visit, ...]]:
    """Read `visits.jsonl`: the history of each patient, oldest visit first. Empty lines are left
    out.

    Raises:
        CkdEhrError: the file is absent, not UTF-8 or empty, or lines break the schema; the first
            problems are all listed.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise CkdEhrError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CkdEhrError(f"{path}: this is a folder; give a file, one patient a line") from None
    except UnicodeDecodeError as error:
        raise CkdEhrError(
            f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    histories: dict[int, tuple[Visit, ...]] = {}
    line_of: dict[int, int] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            patient = PatientInput.model_validate_json(line)
        except ValidationError as error:
            problems += [f"{path}:{number}: {text}" for text in explain_all(error)]
            continue
        first = line_of.setdefault(patient.subject_id, number)
        if first != number:
            problems.append(
                f"{path}:{number}: subject_id: the patient of line {first} again; "
                "put all visits of a patient on one line"
            )
        histories[patient.subject_id] = patient.history()
    return _without_problems(path, list(histories.values()), problems)


def _without_problems(
    path: Path, histories: list[tuple[Visit, ...]], problems: Sequence[str]
) -> list[tuple[Visit, ...]]:
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"… and {more} more"] if more > 0 else []
        raise CkdEhrError("\n".join([*problems[:SHOWN_PROBLEMS], *tail, SCHEMA_HINT]))
    if not histories:
        raise CkdEhrError(f"{path}: no patient in this file; write one a line ({SCHEMA_HINT})")
    return histories


def _visit(subject_id: int, visit: VisitInput) -> Visit:
    return Visit(
        visit_id=visit.visit_id,
        subject_id=subject_id,
        admit_time=visit.admit_time,
        discharge_time=visit.discharge_time,
        age_years=visit.age_years,
        sex=visit.sex,
        ethnicity=visit.ethnicity,
        admission_type=visit.admission_type,
        died=False,
        diagnoses=_each_once(_diagnosis(d) for d in visit.diagnoses),
        medications=_each_once(Code(m.system, m.code) for m in visit.medications),
        procedures=_each_once(
            Code(p.system, plain_code(p.code), p.title) for p in visit.procedures
        ),
    )


def _each_once(codes: Iterable[Code]) -> tuple[Code, ...]:
    return tuple(dict.fromkeys(codes))


def _diagnosis(written: DiagnosisInput) -> Code:
    """The diagnosis with its code as the sources write it."""
    folded = normal_form if written.system == UCI_ICD9 else plain_code
    return Code(written.system, folded(written.code), written.title)


def explain_all(error: ValidationError) -> list[str]:
    """The problems of a patient, in words that repeat none of its content."""
    # Pydantic also calls a list too short when its items were refused.
    found = [problem for problem in error.errors() if problem["type"] != "too_short"]
    return [_explain(problem) for problem in found or error.errors()]


def _explain(problem: Mapping[str, Any]) -> str:
    """One problem of a line in words that repeat none of its content."""
    location = list(problem["loc"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _explain_unknown_key(location)
    where = f"{dotted}: " if (dotted := _dotted(location)) else ""
    if kind == "json_invalid":
        position = re.search(r"at line \d+ column (\d+)", str(problem["msg"]))
        column = f" at column {position[1]}" if position else ""
        return f"not valid JSON{column}; write one JSON object a line"
    if kind == "literal_error" and location[-1] == "system":
        near = difflib.get_close_matches(
            str(problem["input"]).upper(), _systems(location), n=1, cutoff=0.0
        )
        known = ", ".join(_systems(location))
        return f"{where}unknown code system; did you mean '{near[0]}'? (known: {known})"
    if kind == "too_short":
        return "visits: empty; a prediction needs at least one past visit"
    if kind == "missing":
        return f"{where}missing; add it"
    if kind.startswith(("datetime", "timezone")):
        return f"{where}not a time; write local time without zone, such as 2024-05-01T08:30:00"
    return where + str(problem["msg"]).removeprefix("Value error, ")


def _explain_unknown_key(location: Sequence[str | int]) -> str:
    *parents, key = location
    known = list(_model_at(parents).model_fields)
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=KEY_CLOSENESS)
    where = f"{_dotted(parents)}: " if parents else ""
    if not near or not KEY_LIKE.match(str(key)):
        return f"{where}an unknown key; leave it out (known: {', '.join(known)})"
    return (
        f"{where}unknown key '{key}'; did you mean '{near[0]}'? "
        "Leave out what the schema does not name"
    )


def _dotted(location: Sequence[str | int]) -> str:
    """A place in a line.

    >>> _dotted(["visits", 0, "diagnoses", 2, "code"])
    'visits[0].diagnoses[2].code'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".")


def _model_at(location: Sequence[str | int]) -> type[BaseModel]:
    items: dict[str, type[BaseModel]] = {
        "visits": VisitInput,
        "diagnoses": DiagnosisInput,
        "medications": MedicationInput,
        "procedures": ProcedureInput,
    }
    names = [step for step in location if isinstance(step, str)]
    return items[names[-1]] if names else PatientInput


def _systems(location: Sequence[str | int]) -> tuple[str, ...]:
    return get_args(_model_at(location[:-1]).model_fields["system"].annotation)
