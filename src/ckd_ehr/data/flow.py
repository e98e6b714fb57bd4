"""How many of what: the counts behind the cohort's flow diagram, and what each split holds.

In: the finished tables of a cohort and the counts of its steps. Out: `flow.json`'s content, and
lines for the user. Ignores: how the cohort was built.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.data.splits import SPLIT_NAMES


def describe_flow(
    visits_file: Path, pairs: pa.Table, counts: Mapping[str, int], label_names: Sequence[str]
) -> dict[str, object]:
    """What was read, left out and kept, and what each split holds."""
    visits = pq.read_table(visits_file, columns=["diagnoses", "died"])
    empty = pc.sum(pc.equal(pc.list_value_length(visits["diagnoses"]), 0)).as_py()
    return {
        "counts": {
            **counts,
            "visits_kept": visits.num_rows,
            "visits_without_diagnoses": empty,
            "visits_ended_in_death": pc.sum(visits["died"]).as_py(),
            "next_visits_before_exclusions": (
                counts["visits_read"] - counts["patients_with_visits"]
            ),
            "pairs": pairs.num_rows,
            "pairs_labelled": pairs.num_rows - pairs["labels"].null_count,
            "pairs_unlabelled": pairs["labels"].null_count,
        },
        "splits": {split: _describe_split(pairs, split, label_names) for split in SPLIT_NAMES},
    }


def _describe_split(pairs: pa.Table, split: str, label_names: Sequence[str]) -> dict[str, object]:
    mine = pairs.filter(pc.equal(pairs["split"], split))
    labelled = labelled_of(mine)
    positives = label_matrix(labelled, len(label_names)).sum(axis=0).tolist()
    return {
        "patients": len(mine["subject_id"].unique()),
        "pairs": mine.num_rows,
        "labelled": labelled.num_rows,
        "unlabelled": mine.num_rows - labelled.num_rows,
        "positives": dict(zip(label_names, positives, strict=True)),
        "prevalence": {
            name: round(float(n) / max(labelled.num_rows, 1), 6)
            for name, n in zip(label_names, positives, strict=True)
        },
    }


def label_matrix(
    labelled: pa.Table, n_labels: int
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """The labels of labelled pairs as an array (pairs, labels)."""
    flat = pc.list_flatten(labelled["labels"]).combine_chunks()
    values: np.ndarray[tuple[int], np.dtype[np.bool_]] = flat.to_numpy(zero_copy_only=False)
    return values.astype(bool).reshape(labelled.num_rows, n_labels)


def labelled_of(pairs: pa.Table) -> pa.Table:
    """The pairs that have labels."""
    return pairs.filter(pc.is_valid(pairs["labels"]))


def say_unread_facts(say: Callable[[str], None], counts: Mapping[str, int]) -> None:
    """Say which facts of a patient could not be used."""
    if born_later := counts["visits_with_birth_after_admission"]:
        say(f"{born_later:,} visits before their patient's birth: age left out")
    if impossible := counts["visits_with_age_below_zero"]:
        say(f"{impossible:,} visits with an age below zero: age left out")
    if unread := counts["patients_with_sex_not_read"]:
        say(f"{unread:,} patients with a sex other than F or M: sex left out")


def say_summary(say: Callable[[str], None], pairs: pa.Table, label_names: Sequence[str]) -> None:
    """Say how many pairs there are, and which labels nothing can be learned for."""
    unlabelled, labelled = pairs["labels"].null_count, labelled_of(pairs)
    shares = ", ".join(
        f"{split} {pc.sum(pc.equal(labelled['split'], split)).as_py():,}" for split in SPLIT_NAMES
    )
    say(f"{labelled.num_rows:,} labelled pairs ({shares}), {unlabelled:,} unlabelled")
    train = labelled.filter(pc.equal(labelled["split"], "train"))
    positives = label_matrix(train, len(label_names)).sum(axis=0).tolist()
    absent = [name for name, n in zip(label_names, positives, strict=True) if not n]
    if absent:
        say(
            f"warning: {len(absent)} of {len(label_names)} labels have no positive train pair, so "
            "that nothing can be learned for them; leave them out with labels.phenotypes or "
            f"labels.only_ccs: {' · '.join(absent)}"
        )
