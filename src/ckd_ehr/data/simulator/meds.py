"""The simulated hospital as a foreign MEDS 0.4 dataset: MIMIC-III tables in, a MEDS folder out.

It speaks the dialect of MIMIC-IV-MEDS (github.com/Medical-Event-Data-Standard/MIMIC_IV_MEDS):
`DIAGNOSIS//ICD//9//4280`, `MEDICATION//START//Furosemide`, a whole number `hadm_id` instead of
our `visit_id`, extra columns, splits of its own, several files a split. Unlike there, the start of
a drug has a `hadm_id`: MIMIC-III dates it to the day, so that time alone does not tell the stay.
Ignores: this project's own codes and splits.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import meds
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr import __version__
from ckd_ehr.contracts.files import write_json
from ckd_ehr.data.simulator.catalogue import Coding
from ckd_ehr.data.simulator.layouts import (
    Column,
    Tables,
    death_times,
    main_drugs,
    of_stay,
    with_dot,
)
from ckd_ehr.data.simulator.tables import CODE_COLUMNS
from ckd_ehr.data.simulator.titles import CodeKind

SHARD_PATIENTS = 250
SPLIT_EDGES = (0.8, 0.9)  # where train ends, and where tuning does
SPLITS = (meds.train_split, meds.tuning_split, meds.held_out_split)
UNKNOWN = "UNK"
DIED = "DIED"  # what MIMIC-IV calls MIMIC-III's DEAD/EXPIRED
STAY_COLUMNS = {"insurance": "INSURANCE", "marital_status": "MARITAL_STATUS", "race": "ETHNICITY"}
EVENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("hadm_id", pa.int64()),
        pa.field("seq_num", pa.int64()),
        *(pa.field(name, pa.string()) for name in STAY_COLUMNS),
        pa.field("route", pa.string()),
    ]
)

Ints = npt.NDArray[np.int64]


VERSIONS: Mapping[Coding, str] = {"icd9": "9", "icd10": "10"}
VOCABULARIES: Mapping[tuple[Coding, CodeKind], str] = {
    ("icd9", "diagnosis"): "ICD9CM",
    ("icd9", "procedure"): "ICD9Proc",
    ("icd10", "diagnosis"): "ICD10CM",
    ("icd10", "procedure"): "ICD10PCS",
}


class MedsFolder:
    """A MEDS dataset that grows by some patients at a time."""

    def __init__(self, folder: Path, fixed: Tables, coding: Coding) -> None:
        self._folder, self._fixed, self._coding = folder, fixed, coding
        self._shards = dict.fromkeys(SPLITS, 0)
        self._assigned: list[pa.Table] = []
        self._codes: set[str] = set()
        for split in SPLITS:
            (folder / meds.data_subdirectory / split).mkdir(parents=True)

    def add(self, tables: Tables) -> None:
        """Write some patients' events: `train/0.parquet` and so on, a patient in one file."""
        events = _events(tables, self._coding)
        subjects = tables["PATIENTS"]["SUBJECT_ID"].to_numpy()
        splits = _split_of(subjects)
        names = np.array(SPLITS)[splits]
        self._assigned.append(pa.table({"subject_id": subjects, "split": names}))
        self._codes.update(events["code"].unique().to_pylist())
        for split, rows in _shards(events, subjects, splits):
            table = events.take(rows)
            meds.DataSchema.validate(table)
            name = SPLITS[split]
            path = self._folder / meds.data_subdirectory / name / f"{self._shards[name]}.parquet"
            pq.write_table(table, path, compression="zstd")
            self._shards[name] += 1

    def finish(self) -> None:
        """Write the codes, the splits and the description."""
        (self._folder / "metadata").mkdir()
        self._write_codes(self._folder / meds.code_metadata_filepath)
        assigned = pa.concat_tables(self._assigned).sort_by("subject_id")
        path = self._folder / meds.subject_splits_filepath
        pq.write_table(meds.SubjectSplitSchema.align(assigned), path)
        facts: dict[str, object] = {
            "dataset_name": "simulated hospital",
            "etl_name": "ckd-ehr simulate",
            "etl_version": __version__,
            "meds_version": "0.4",
            "raw_source_id_columns": ["hadm_id"],
            "other_extension_columns": ["seq_num", *STAY_COLUMNS, "route"],
        }
        meds.DatasetMetadataSchema.validate(facts)
        write_json(self._folder / meds.dataset_metadata_filepath, facts)

    def _write_codes(self, path: Path) -> None:
        """Every code of the events, with its title and ICD code where it has them."""
        described = pa.concat_tables(
            [
                self._titles("D_ICD_DIAGNOSES", "DIAGNOSIS", "diagnosis"),
                self._titles("D_ICD_PROCEDURES", "PROCEDURE", "procedure"),
            ]
        )
        used = pa.array(sorted(self._codes))
        place = pc.index_in(used, value_set=described["code"].combine_chunks())
        table = pa.table(
            {
                "code": used,
                "description": described["description"].take(place),
                "parent_codes": described["parent_codes"].take(place),
            }
        )
        pq.write_table(meds.CodeMetadataSchema.align(table), path)

    def _titles(self, dictionary: str, role: str, kind: CodeKind) -> pa.Table:
        known = self._fixed[dictionary]
        codes = known[CODE_COLUMNS[self._coding]].combine_chunks()
        dotted = with_dot(codes, self._coding, kind)
        parents = pc.binary_join_element_wise(VOCABULARIES[self._coding, kind], dotted, "/")
        return pa.table(
            {
                "code": _joined(role, "ICD", VERSIONS[self._coding], codes),
                "description": known["LONG_TITLE"],
                "parent_codes": pa.ListArray.from_arrays(np.arange(len(codes) + 1), parents),
            }
        )


def _events(tables: Tables, coding: Coding) -> pa.Table:
    """All events; those of a patient at one time are in the order of this list."""
    return pa.concat_tables(
        [
            *_about_patients(tables),
            *_about_stays(tables),
            *_drugs(tables),
            _coded(tables["PROCEDURES_ICD"], tables, "PROCEDURE", coding),
            _coded(tables["DIAGNOSES_ICD"], tables, "DIAGNOSIS", coding),
            _deaths(tables),
        ]
    ).combine_chunks()


def _about_patients(tables: Tables) -> list[pa.Table]:
    patients = tables["PATIENTS"]
    never = pa.nulls(patients.num_rows, pa.timestamp("s"))
    return [
        _rows(patients, never, _joined("GENDER", patients["GENDER"])),
        _rows(patients, patients["DOB"], meds.birth_code),
    ]


def _about_stays(tables: Tables) -> list[pa.Table]:
    stays = tables["ADMISSIONS"]
    emergencies = stays.filter(pc.is_valid(stays["EDREGTIME"]))
    admission = _joined("HOSPITAL_ADMISSION", stays["ADMISSION_TYPE"], stays["ADMISSION_LOCATION"])
    discharge = _joined("HOSPITAL_DISCHARGE", _discharge_locations(stays))
    ids = {"hadm_id": stays["HADM_ID"]}
    about = {name: stays[column] for name, column in STAY_COLUMNS.items()}
    return [
        _rows(emergencies, emergencies["EDREGTIME"], "ED_REGISTRATION"),
        _rows(emergencies, emergencies["EDOUTTIME"], "ED_OUT"),
        _rows(stays, stays["ADMITTIME"], admission, ids | about),
        _rows(stays, stays["DISCHTIME"], discharge, ids),
    ]


def _drugs(tables: Tables) -> list[pa.Table]:
    drugs = main_drugs(tables)
    start, stop = (_joined("MEDICATION", what, drugs["DRUG"]) for what in ("START", "STOP"))
    about = {"hadm_id": drugs["HADM_ID"], "route": drugs["ROUTE"]}
    return [
        _rows(drugs, drugs["STARTDATE"], start, about),
        _rows(drugs, drugs["ENDDATE"], stop),
    ]


def _coded(rows: pa.Table, tables: Tables, role: str, coding: Coding) -> pa.Table:
    """Billed codes, at discharge."""
    return _rows(
        rows,
        of_stay(rows, tables, "DISCHTIME"),
        _joined(role, "ICD", VERSIONS[coding], rows[CODE_COLUMNS[coding]]),
        {"hadm_id": rows["HADM_ID"], "seq_num": rows["SEQ_NUM"]},
    )


def _deaths(tables: Tables) -> pa.Table:
    times = death_times(tables)
    dead = pc.is_valid(times)
    return _rows(tables["PATIENTS"].filter(dead), times.filter(dead), meds.death_code)


def _discharge_locations(stays: pa.Table) -> Column:
    died = pc.equal(stays["HOSPITAL_EXPIRE_FLAG"], 1)
    return pc.if_else(died, DIED, stays["DISCHARGE_LOCATION"])


def _joined(*parts: str | Column) -> Column:
    joined: Column = pc.binary_join_element_wise(
        *parts, "//", null_handling="replace", null_replacement=UNKNOWN
    )
    return joined


def _rows(
    rows: pa.Table, times: Column, codes: Column | str, more: Mapping[str, Column] | None = None
) -> pa.Table:
    """An event for each row, with the columns that are given and nulls for the others."""
    count = rows.num_rows
    columns: dict[str, Column] = {
        "subject_id": rows["SUBJECT_ID"],
        "time": times,
        "code": pa.repeat(codes, count) if isinstance(codes, str) else codes,
        **(more or {}),
    }
    return pa.table(
        {field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in EVENTS}
    ).cast(EVENTS)


def _split_of(subject_ids: Ints) -> Ints:
    """A split for each patient, as a place in SPLITS, by the hash SplitMix64 of the id.

    >>> np.bincount(_split_of(np.arange(10_000, 20_000))).tolist()
    [8015, 973, 1012]
    """
    mixed = subject_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    places = (mixed ^ (mixed >> np.uint64(31))) / 2.0**64
    found: Ints = np.searchsorted(SPLIT_EDGES, places, side="right")
    return found


def _shards(events: pa.Table, subjects: Ints, splits: Ints) -> Iterator[tuple[int, Ints]]:
    """The split and the rows, in order, of each file; a patient's events stand together."""
    of_event = np.searchsorted(subjects, events["subject_id"].to_numpy())
    shard = (splits * len(subjects) + _shard_numbers(splits))[of_event]
    times = pc.fill_null(events["time"].cast(pa.int64()), np.iinfo(np.int64).min).to_numpy()
    order = np.lexsort((times, of_event, shard))  # stable
    shards, starts = np.unique(shard[order], return_index=True)
    for key, rows in zip(shards, np.split(order, starts[1:]), strict=True):
        yield int(key) // len(subjects), rows


def _shard_numbers(splits: Ints) -> Ints:
    """Which file of its split each patient goes into.

    >>> _shard_numbers(np.array([0] * 251 + [1])).tolist()[248:]
    [0, 0, 1, 0]
    """
    ranks = np.zeros_like(splits)
    for split in range(len(SPLITS)):
        inside = splits == split
        ranks[inside] = np.arange(inside.sum())
    return ranks // SHARD_PATIENTS
