"""A run's labelled pairs → instruction files in the paper's phrasing, for LLaMA-Factory.

In: the cohort stage's visits and pairs, and if wanted what is known of each history. Out:
`train.jsonl`, `tuning.jsonl`, `held_out.jsonl`, a pair a line, and `dataset_info.json`; the source
`instructions` reads them back, and passes over the knowledge. Ignores: unlabelled pairs,
demographics, times, and all of the next visit but its labels. The files are patient data: they
hold no id in clear, and whole histories.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, write_json
from ckd_ehr.contracts.folders import whole_folder
from ckd_ehr.contracts.records import (
    PAIRS,
    VISITS,
    Code,
    Kind,
    Visit,
    label_names,
    visits_from_table,
)
from ckd_ehr.data.sources.instruction_files import DATASET_INFO
from ckd_ehr.data.sources.instruction_labels import LabelNames, LabelStyle
from ckd_ehr.data.sources.instruction_text import ANSWER, VisitWords, write_history
from ckd_ehr.data.splits import SPLIT_NAMES
from ckd_ehr.knowledge.facts import Facts
from ckd_ehr.knowledge.ontology import title_of

TASK = (
    "This is what a patient was treated for in hospital. Which of the following diseases may the "
    "patient have at the next visit? Answer with their names, separated by commas, or with None. "
    "Diseases: {labels}."
)
# Knowledge comes last, its words in quotes, so that it is read as nothing of the patient's own.
HINTS: Mapping[Kind, str] = {
    "category": "The kinds of disease are",
    "efficacy": "Medications after which these diseases were less often coded in past records, "
    "which is an association and no effect, are",
    "guideline": "Guideline digests say:",
}
# A history and its pair's fold → what is told besides, a sentence a kind.
FactsOf = Callable[[Sequence[Visit], int], Sequence[Facts]]
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


@dataclass(frozen=True, slots=True)
class Exported:
    """How many pairs were written for each split, and how many had no labels."""

    pairs: Mapping[str, int]
    unlabelled: int


def export_instructions(
    cohort: Path,
    out: Path,
    *,
    label_style: LabelStyle = "ours",
    subject_secret: bytes | None = None,
    facts_of: FactsOf | None = None,
) -> Exported:
    """Write the labelled pairs of a cohort as instruction files.

    Args:
        cohort: the folder of a finished cohort stage.
        out: a new or empty folder; it appears with all its files or not at all.
        label_style: our names of the labels, or the paper's where it has one.
        subject_secret: given, each line names its patient under `subject_id` by a hash with this
            key, so that one patient's lines can be told as such.
        facts_of: given, each input ends with what it says of the history.

    Raises:
        CkdEhrError: no pair is labelled, or `out` holds anything.
    """
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    visits = visits_from_table(read_table(cohort / "visits.parquet", VISITS))
    rows = [row for row in pairs.to_pylist() if row["labels"] is not None]
    if not rows:
        raise CkdEhrError(f"{cohort}: no pair has labels, so there is nothing to export")
    rows.sort(key=lambda row: row["pair_id"])  # a hash: neighbours tell nothing of one another
    labels = label_names(pairs.schema)
    names = LabelNames(labels)
    shown = [names.paper(label) if label_style == "paper" else label for label in labels]
    counts: dict[str, int] = {}
    with whole_folder(out) as folder:
        for split in SPLIT_NAMES:
            lines = [
                _line(
                    row, [visits[visit_id] for visit_id in row["history"]], shown, names, facts_of
                )
                | _subject(row["subject_id"], subject_secret)
                for row in rows
                if row["split"] == split
            ]
            counts[split] = len(lines)
            _write_lines(lines, folder / f"{split}.jsonl")
        write_json(folder / DATASET_INFO, _dataset_info(counts))
    return Exported(counts, unlabelled=pairs.num_rows - len(rows))


def words_of(visit: Visit) -> VisitWords:
    """What a visit's codes are called, each name once."""
    return VisitWords(
        diagnoses=_titles(visit.diagnoses),
        medications=_titles(visit.medications),
        procedures=_titles(visit.procedures),
    )


def _titles(codes: Sequence[Code]) -> tuple[str, ...]:
    titles = (title_of(code.system, code.code, code.title).text for code in codes)
    return tuple(dict.fromkeys(titles))


def _line(
    row: Mapping[str, Any],
    history: Sequence[Visit],
    shown: Sequence[str],
    names: LabelNames,
    facts_of: FactsOf | None,
) -> dict[str, str]:
    present = [name for name, on in zip(shown, row["labels"], strict=True) if on]
    told = write_history([words_of(visit) for visit in history], names.join)
    known = facts_of(history, row["fold"]) if facts_of else ()
    return {
        "instruction": TASK.format(labels=names.join(shown)),
        "input": " ".join([told, *map(_hint, known)]),
        "output": f"{ANSWER} {names.join(present)}",
    }


def _hint(facts: Facts) -> str:
    """Facts of one kind as a sentence.

    >>> from ckd_ehr.knowledge.facts import Fact
    >>> _hint((Fact("guideline", "GUIDELINE", "a.md#L1", 'So-called "silent" stroke recurs'),))
    'Guideline digests say: "So-called ""silent"" stroke recurs".'
    """
    quoted = ['"' + fact.text.replace('"', '""') + '"' for fact in facts]
    return f"{HINTS[facts[0].kind]} {', '.join(quoted)}."


def _subject(subject_id: int, secret: bytes | None) -> dict[str, str]:
    """The patient by a hash that nobody without the key can make from a list of ids."""
    if secret is None:
        return {}
    digest = hmac.new(secret, str(subject_id).encode(), hashlib.sha256).hexdigest()
    return {"subject_id": digest[:16]}


def _write_lines(lines: Sequence[Mapping[str, str]], path: Path) -> None:
    """One JSON object a line; no file for no line, which trainers would refuse."""
    if lines:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _dataset_info(counts: Mapping[str, int]) -> dict[str, object]:
    """What LLaMA-Factory wants to know of each file (its data/README.md)."""
    return {
        f"ckd_ehr_{split}": {
            "file_name": f"{split}.jsonl",
            "formatting": "alpaca",
            "columns": COLUMNS,
        }
        for split, rows in counts.items()
        if rows
    }
