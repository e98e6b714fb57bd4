"""What the teacher knows, written once: its log-odds of every pair, and what they rest on.

In: the fold teachers and the teacher's narratives. Out: of each pair raw log-odds in every order
and evidence; of train pairs also attention for the student, found through `index.parquet`. A pair's
signals carry the hash of everything they came from. Ignores: calibration, other members of the
committee, and how the student uses any of it.
"""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from ckd_ehr.contracts.files import write_table
from ckd_ehr.contracts.processes import is_leader
from ckd_ehr.contracts.records import Narrative
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.examples import read_pairs
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.labelling import FoldLabeller
from ckd_ehr.learning.signal_store import INDEX, INDEX_FILE, FoldTeacher
from ckd_ehr.learning.teacher import teacher_reader


def write_signals(context: StageContext) -> None:
    """Have each fold's teacher read the pairs whose patients it has not seen."""
    pairs = read_pairs(context.inputs["cohort"])
    narratives = read_narratives(context.inputs["knowledge"], "teacher")
    reader = teacher_reader(context.config, pairs.label_names)
    labellers = [
        FoldLabeller(context, fold, pairs=pairs, narratives=narratives, reader=reader)
        for fold in range(context.config.splits.folds)
    ]
    batch_tokens = context.config.signals.batch_tokens
    for labeller in labellers:
        batch_tokens = labeller.read(batch_tokens)
    meet()
    if not is_leader():
        return
    index = [row for labeller in labellers for row in _index(context, labeller, narratives)]
    for labeller in labellers:
        labeller.publish()
    write_table(pa.Table.from_pylist(index, INDEX), context.folder / INDEX_FILE, INDEX)


def _index(
    context: StageContext, labeller: FoldLabeller, narratives: Mapping[str, Narrative]
) -> Iterator[dict[str, object]]:
    """Where the signals of the fold's train pairs are, and what they came from."""
    teacher = FoldTeacher.of(context.config, context.inputs["teacher"], labeller.fold)
    for pair_id, shard in labeller.places():
        yield {
            "pair_id": pair_id,
            "fold": labeller.fold,
            "key": teacher.key(narratives[pair_id].text),
            "shard": shard,
            "concept_ids": [span.concept_id for span in narratives[pair_id].spans],
        }
