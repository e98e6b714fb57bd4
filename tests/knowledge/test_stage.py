"""The knowledge stage: no narrative tells of its pair's own future, each fact has its source."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ckd_ehr.contracts.config import KnowledgeConfig, RunConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, write_table
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import (
    DRUG_NAME,
    EFFICACY,
    GUIDELINES,
    NARRATIVES,
    PAIRS,
    VISITS,
    Code,
    Reader,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.cohort import write_cohort
from ckd_ehr.data.events import write_events
from ckd_ehr.data.histories import index_histories, visit_phenotypes
from ckd_ehr.knowledge import telling
from ckd_ehr.knowledge.facts import KnowledgeBase
from ckd_ehr.knowledge.pieces import CountTokens, PieceCounter
from ckd_ehr.knowledge.sources import cite_narrative
from ckd_ehr.knowledge.stage import guidelines_digests, read_digests, write_knowledge
from site_guidelines import DIGEST, STATEMENT, write_site
from small_hospital import FREQUENT

READERS: tuple[Reader, Reader] = ("teacher", "student")
CURED = "Essential hypertension"
EVERYTHING = {"max_tokens": 512, "categories": True, "efficacy": True, "guidelines": True}
Change = Callable[[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]


def words(text: str) -> int:
    return len(text.split())


def with_cure(visits: pa.Table, pairs: pa.Table, config: RunConfig) -> pa.Table:
    """A drug of 95 % of those who lost a disease until the next visit, 10 % of the others."""
    kept = np.array(pairs["labels"].fill_null([False] * 25).to_pylist())
    present = index_histories(visits, pairs).at_last(
        visit_phenotypes(visits, config.labels.selected)
    )
    label = [phenotype.name for phenotype in config.labels.selected].index(CURED)
    cured = present[:, label] & ~kept[:, label] & np.asarray(pairs["labels"].is_valid())
    draws = np.random.default_rng(5).random(len(kept))
    lasts = [history[-1] for history in pairs["history"].to_pylist()]
    treated = set(np.array(lasts)[draws < np.where(cured, 0.95, 0.1)].tolist())
    rows = visits.to_pylist()
    for row in rows:
        if row["visit_id"] in treated:
            row["medications"].append({"system": DRUG_NAME, "code": "curall", "title": "curall"})
    return pa.Table.from_pylist(rows, schema=VISITS)


class Hospital:
    """A cohort, whose knowledge stage can be run again on changed tables."""

    def __init__(self, root: Path) -> None:
        self.root = root
        knowledge = {
            "teacher": EVERYTHING,
            "student": EVERYTHING,
            "efficacy": {"min_support": 5},
            "guidelines": {"pack": None, "folder": write_site(root / "site")},
        }
        simulator = {"patients": 700, "seed": 3, **FREQUENT}
        data = {"source": "simulated", "simulator": simulator}
        self.config: RunConfig = build_config({"name": "t", "data": data, "knowledge": knowledge})
        for name, stage, inputs in (
            ("events", write_events, {}),
            ("cohort", write_cohort, {"events": root / "events"}),
        ):
            (root / name).mkdir()
            stage(StageContext(self.config, root / name, inputs, lambda _: None))
        self.pairs = read_table(root / "cohort" / "pairs.parquet", PAIRS)
        visits = read_table(root / "cohort" / "visits.parquet", VISITS)
        self.visits = with_cure(visits, self.pairs, self.config)

    def know(self, name: str, change: Change = lambda visits, pairs: (visits, pairs)) -> Path:
        """Run the stage on changed tables; its folder, beside its cohort's."""
        cohort, folder = self.root / name / "cohort", self.root / name / "knowledge"
        shutil.copytree(self.root / "cohort", cohort)
        folder.mkdir()
        visits, pairs = change(self.visits, self.pairs)
        write_table(visits, cohort / "visits.parquet", visits.schema)
        write_table(pairs, cohort / "pairs.parquet", pairs.schema)
        context = StageContext(self.config, folder, {"cohort": cohort}, lambda _: None)
        write_knowledge(context, dict.fromkeys(READERS, words))
        return folder


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def known(hospital: Hospital) -> Path:
    return hospital.know("as_it_is")


def narratives(folder: Path, pair_ids: set[str]) -> dict[tuple[str, str], Any]:
    rows = [
        row
        for reader in READERS
        for row in read_table(folder / f"{reader}.parquet", NARRATIVES).to_pylist()
        if row["pair_id"] in pair_ids
    ]
    return {(row["reader"], row["pair_id"]): row for row in rows}


def test_all_kinds_of_knowledge_are_told(known: Path) -> None:
    for reader in READERS:
        table = read_table(known / f"{reader}.parquet", NARRATIVES)
        kinds = pc.list_flatten(table["spans"]).combine_chunks().field("kind")
        assert {"category", "efficacy", "guideline"} <= set(kinds.to_pylist())
        assert any(f"curall, {CURED} (" in row["text"] for row in table.to_pylist())
    assert read_table(known / "guidelines.parquet", GUIDELINES)["text"].to_pylist() == [STATEMENT]


def test_a_pair_s_own_labels_never_reach_its_text(hospital: Hospital, known: Path) -> None:
    labelled = hospital.pairs.filter(hospital.pairs["labels"].is_valid()).to_pylist()
    mine = {row["pair_id"] for row in labelled if row["split"] == "train" and row["fold"] == 0}
    mine |= {row["pair_id"] for row in labelled if row["split"] != "train"}
    assert len(mine) > 100

    def flip(visits: pa.Table, pairs: pa.Table) -> tuple[pa.Table, pa.Table]:
        rows = pairs.to_pylist()
        for row in rows:
            if row["pair_id"] in mine:
                row["labels"] = [not label for label in row["labels"]]
        return visits, pa.Table.from_pylist(rows, schema=pairs.schema)

    before, after = narratives(known, mine), narratives(hospital.know("flipped", flip), mine)
    of_fold = {row["pair_id"] for row in labelled if row["fold"] == 0 and row["split"] == "train"}
    assert {key: row for key, row in after.items() if key[1] in of_fold} == {
        key: row for key, row in before.items() if key[1] in of_fold
    }
    table = read_table(hospital.root / "flipped" / "knowledge" / "efficacy.parquet", EFFICACY)
    assert not table.equals(read_table(known / "efficacy.parquet", EFFICACY))


def test_nobody_outside_train_contributes(hospital: Hospital, known: Path) -> None:
    def delete(visits: pa.Table, pairs: pa.Table) -> tuple[pa.Table, pa.Table]:
        train = pairs.filter(pc.equal(pairs["split"], "train"))
        of_train = pc.is_in(visits["subject_id"], pc.unique(train["subject_id"]))
        return visits.filter(of_train), train

    alone = hospital.know("train_alone", delete)
    for name, schema in (("efficacy", EFFICACY), ("guidelines", GUIDELINES)):
        path = f"{name}.parquet"
        assert read_table(alone / path, schema).equals(read_table(known / path, schema))
    is_train = pc.equal(hospital.pairs["split"], "train")
    train = set(hospital.pairs.filter(is_train)["pair_id"].to_pylist())
    assert narratives(alone, train) == narratives(known, train)


def test_every_piece_of_knowledge_has_its_source(hospital: Hospital, known: Path) -> None:
    folders = {"cohort": hospital.root / "cohort", "knowledge": known}
    seen: set[str] = set()
    for pair_id in hospital.pairs["pair_id"].to_pylist()[:60]:
        narrative, sources = cite_narrative(
            folders, hospital.config, pair_id=pair_id, reader="teacher"
        )
        told = {span.concept_id: span for span in narrative.spans if span.from_knowledge}
        assert sources.keys() == told.keys()
        for concept_id, span in told.items():
            seen.add(span.kind)
            if span.kind == "guideline":
                assert "10.1000/own; heart_failure.md, line 8" in sources[concept_id]
                text = narrative.text[span.start : span.end]
                assert text in DIGEST.splitlines()[7]
            if span.kind == "efficacy":
                assert "odds ratio" in sources[concept_id]
    assert seen == {"category", "efficacy", "guideline"}


def thirds(text: str) -> int:
    return -(-len(text) // 3)  # of which pieces do not add up


@pytest.mark.parametrize("count_tokens", [words, thirds])
def test_several_processes_tell_the_same_texts(
    hospital: Hospital, known: Path, count_tokens: CountTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "BATCH", 64)
    settings = hospital.config.knowledge
    base = KnowledgeBase.load(known, phenotypes=hospital.config.labels.selected, settings=settings)
    one, three = (
        telling.tell_all(
            hospital.visits,
            hospital.pairs,
            base,
            dict.fromkeys(READERS, count_tokens),
            processes=processes,
        )
        for processes in (1, 3)
    )
    for reader in READERS:
        assert three[reader][0].equals(one[reader][0])
        assert three[reader][1] == one[reader][1]
        assert one[reader][1]["narratives"] == hospital.pairs.num_rows > 3 * 64


def test_an_unknown_pair_is_refused(hospital: Hospital, known: Path) -> None:
    folders = {"cohort": hospital.root / "cohort", "knowledge": known}
    with pytest.raises(CkdEhrError, match="pair 0000 is not in this run"):
        cite_narrative(folders, hospital.config, pair_id="0000", reader="student")


def test_a_site_folder_that_has_disappeared_is_refused(tmp_path: Path) -> None:
    folder = Path(write_site(tmp_path / "site"))
    settings = KnowledgeConfig.model_validate({"guidelines": {"pack": None, "folder": folder}})
    assert guidelines_digests(settings).keys() == {"guidelines.folder"}
    shutil.rmtree(folder)
    with pytest.raises(CkdEhrError, match="no such folder"):
        guidelines_digests(settings)
    with pytest.raises(CkdEhrError, match="no such folder"):
        read_digests(settings.guidelines)


def test_equal_statements_are_told_once_and_each_for_its_own_condition(tmp_path: Path) -> None:
    site = Path(write_site(tmp_path / "site"))
    again = DIGEST.replace("own_heart_failure", "again").replace("[108]", "[157]")
    (site / "again.md").write_text(again)
    settings = KnowledgeConfig.model_validate({"guidelines": {"pack": None, "folder": site}})
    base = KnowledgeBase(
        efficacy=EFFICACY.empty_table(),
        snippets=read_digests(settings.guidelines).snippets,
        phenotypes=PHENOTYPES_25,
        settings=settings,
    )
    heart, kidney = Code("ICD9CM", "4280", None), Code("ICD9CM", "5849", None)
    for diagnoses in ((heart,), (kidney,), (heart, kidney)):
        facts = base._statements([base._of(code) for code in diagnoses], PieceCounter(words))
        assert [fact.text for fact in facts] == [STATEMENT]


def test_what_is_wrong_with_a_site_s_file_is_known_before_any_work(tmp_path: Path) -> None:
    site = Path(write_site(tmp_path / "site"))
    (site / "heart_failure.md").write_text(DIGEST.replace("title:", "titel:"))
    settings = KnowledgeConfig.model_validate({"guidelines": {"pack": None, "folder": site}})
    with pytest.raises(CkdEhrError, match="did you mean 'title'"):
        guidelines_digests(settings)


def test_an_id_of_the_pack_is_refused_in_a_site_folder(tmp_path: Path) -> None:
    pack, site = tmp_path / "pack", Path(write_site(tmp_path / "site"))
    name = "kdigo_aki_2012"
    (pack / "content" / name).mkdir(parents=True)
    (pack / "registry.json").write_text(f'[{{"id": "{name}", "title": "AKI"}}]')
    (pack / "content" / name / "a.md").write_text(f"- {STATEMENT}.\n")
    (site / "heart_failure.md").write_text(DIGEST.replace("own_heart_failure", name))
    settings = KnowledgeConfig.model_validate({"guidelines": {"pack": str(pack), "folder": site}})
    with pytest.raises(CkdEhrError, match=f"id '{name}' is also one of the pack's"):
        read_digests(settings.guidelines)
