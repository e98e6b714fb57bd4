"""What the simulated hospital's other layouts share: MIMIC-III tables in, columns out.

In: the tables of tables.py. Out: facts looked up for their rows, such as the time of a stay's
discharge or a patient's death, and ICD codes with their dot. Ignores: what a layout makes of them;
omop.py and meds.py do that.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.data.simulator.catalogue import Coding
from ckd_ehr.data.simulator.titles import CodeKind

Layout = Literal["mimic3", "omop", "meds"]
Tables = Mapping[str, pa.Table]
Column: TypeAlias = pa.Array | pa.ChunkedArray

MAIN = "MAIN"  # DRUG_TYPE of a drug; the others are what it is dissolved in or added to
# Where the dot of a code stands: after three characters, four in ICD-9's causes (E878.8), two in
# ICD-9's procedures, nowhere in ICD-10's.
_BEFORE_DOT: dict[tuple[Coding, CodeKind], str] = {
    ("icd9", "diagnosis"): "E[0-9]{3}|[^E].{2}",
    ("icd9", "procedure"): ".{2}",
    ("icd10", "diagnosis"): ".{3}",
}


def with_dot(codes: Column, coding: Coding, kind: CodeKind) -> Column:
    """Codes as they are printed; nulls stay null.

    >>> with_dot(pa.chunked_array([["4280", "042", "E8788"]]), "icd9", "diagnosis").to_pylist()
    ['428.0', '042', 'E878.8']
    >>> with_dot(pa.chunked_array([["3722"]]), "icd9", "procedure").to_pylist()
    ['37.22']
    >>> with_dot(pa.chunked_array([["I509", "E119"]]), "icd10", "diagnosis").to_pylist()
    ['I50.9', 'E11.9']
    """
    if (coding, kind) not in _BEFORE_DOT:
        return codes
    pattern = f"^({_BEFORE_DOT[coding, kind]})(.+)$"
    return pc.replace_substring_regex(codes, pattern=pattern, replacement=r"\1.\2")


def look_up(keys: Column, table: pa.Table, key: str, column: str) -> Column:
    """A column of the row whose unique `key` equals each of `keys`; null where there is none."""
    return table[column].take(pc.index_in(keys, value_set=table[key].combine_chunks()))


def of_stay(rows: pa.Table, tables: Tables, column: str) -> Column:
    """A column of ADMISSIONS for each row that has a HADM_ID."""
    return look_up(rows["HADM_ID"], tables["ADMISSIONS"], "HADM_ID", column)


def least_of_patient(tables: Tables, column: str) -> Column:
    """The least value in a patient's ADMISSIONS, nulls aside, for each row of PATIENTS."""
    grouped = tables["ADMISSIONS"].group_by("SUBJECT_ID").aggregate([(column, "min")])
    return look_up(tables["PATIENTS"]["SUBJECT_ID"], grouped, "SUBJECT_ID", f"{column}_min")


def death_times(tables: Tables) -> Column:
    """When each of PATIENTS died: in hospital to the second, else at midnight, else null."""
    return pc.coalesce(least_of_patient(tables, "DEATHTIME"), tables["PATIENTS"]["DOD"])


def main_drugs(tables: Tables) -> pa.Table:
    """PRESCRIPTIONS without solutions and additives."""
    prescriptions = tables["PRESCRIPTIONS"]
    return prescriptions.filter(pc.equal(prescriptions["DRUG_TYPE"], MAIN))
