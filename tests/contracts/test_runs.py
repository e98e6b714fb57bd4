"""The run directory on tiny stages: skip, rerun, resume, and never a half-finished result."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import filelock
import pyarrow as pa
import pytest

from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_table
from ckd_ehr.contracts.manifests import MANIFEST, manifest_digest, read_manifest
from ckd_ehr.contracts.runs import RunDirectory, Stage, StageContext, fingerprint_of, publish

SCHEMA = pa.schema([pa.field("pair_id", pa.string(), nullable=False)])


class Killed(BaseException):
    """As a kill: nothing after it runs."""


class Pipeline:
    """Four stages: texts → two files; a teacher reads the first, a student both, then a score."""

    def __init__(self, root: Path) -> None:
        self.ran: list[str] = []
        self.said: list[str] = []
        self.before: dict[str, Callable[[StageContext], None]] = {}
        self.source = "1"
        self.directory = RunDirectory(root, self._stages())

    def _stages(self) -> list[Stage]:
        def stage(
            name: str,
            sections: tuple[str, ...],
            reads: tuple[str, ...],
            content: Callable[[StageContext], dict[str, str]],
        ) -> Stage:
            def function(context: StageContext) -> None:
                self.ran.append(name)
                for file, text in content(context).items():
                    (context.folder / file).write_text(text)
                self.before.get(name, lambda _: None)(context)

            return Stage(
                name=name,
                summary=f"makes {name}",
                function=function,
                sections=sections,
                reads=reads,
                externals=lambda _: {"source": self.source} if name == "texts" else {},
            )

        def texts(context: StageContext) -> dict[str, str]:
            budget = context.config.knowledge
            return {"teacher": str(budget.teacher), "student": str(budget.student)}

        def score(context: StageContext) -> dict[str, str]:
            return {"score": (context.inputs["student"] / "model").read_text()}

        return [
            stage("texts", ("knowledge",), (), texts),
            stage("teacher", ("teacher",), ("texts/teacher",), lambda c: {"model": c.config.name}),
            stage("student", ("student",), ("texts", "teacher"),
                  lambda c: {"model": str(c.config.student.epochs)}),
            stage("score", ("evaluation",), ("student",), score),
        ]  # fmt: skip

    def run(
        self, until: str | None = None, first: str | None = None, **sections: object
    ) -> list[str]:
        """Run with these settings; the stages that ran."""
        self.ran, self.said = [], []
        config = build_config({"name": "trial", **sections})
        self.directory.execute(
            config, command=["t"], say=self.said.append, first=first, until=until
        )
        return self.ran


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "run")


@pytest.fixture
def finished(pipeline: Pipeline) -> Pipeline:
    assert pipeline.run() == ["texts", "teacher", "student", "score"]
    return pipeline


def config(**sections: object) -> RunConfig:
    return build_config({"name": "trial", **sections})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("sections", "changes"),
    [
        ({"student": {"epochs": 9}}, True),
        ({"seed": 5}, False),
        ({"teacher": {"epochs": 9}}, False),
        ({"evaluation": {"bootstrap_draws": 3}}, False),
        ({"data": {"root": "x"}}, False),
        ({"name": "other"}, False),
    ],
)
def test_the_fingerprint_changes_exactly_with_the_sections_in_use(
    pipeline: Pipeline, sections: dict[str, object], changes: bool
) -> None:
    student = pipeline.directory.stages[2]
    before = fingerprint_of(student, config(), {"texts": "a"})
    after = fingerprint_of(student, config(**{"name": "trial", **sections}), {"texts": "a"})
    assert (before != after) is changes


def test_the_fingerprint_changes_with_inputs_and_version(pipeline: Pipeline) -> None:
    student = pipeline.directory.stages[2]
    newer = Stage(**{**vars(student), "version": 2})
    prints = {
        fingerprint_of(student, config(), {"texts": "a"}),
        fingerprint_of(student, config(), {"texts": "b"}),
        fingerprint_of(newer, config(), {"texts": "a"}),
    }
    assert len(prints) == 3


def test_stages_that_are_current_are_skipped(finished: Pipeline) -> None:
    before = contents(finished.directory.root)
    assert finished.run() == []
    assert all("unchanged, skipped" in line for line in finished.said)
    after = contents(finished.directory.root)
    assert {k: v for k, v in after.items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_a_changed_student_reruns_it_and_what_follows_only(finished: Pipeline) -> None:
    assert finished.run(student={"epochs": 2}) == ["student", "score"]
    assert (finished.directory.folder("score") / "score").read_text() == "2.0"


def test_a_stage_that_reads_one_file_ignores_the_others(finished: Pipeline) -> None:
    assert finished.run(knowledge={"student": {"max_tokens": 99}}) == ["texts", "student"]
    assert finished.run(knowledge={"teacher": {"max_tokens": 99}})[:2] == ["texts", "teacher"]


def test_equal_outputs_stop_a_rerun_from_spreading(finished: Pipeline) -> None:
    assert finished.run(teacher={"epochs": 9}) == ["teacher"]


def test_a_changed_source_reruns_what_reads_it(finished: Pipeline) -> None:
    finished.source = "2"
    assert finished.run() == ["texts"]


@pytest.mark.parametrize("harm", ["changed", "cut", "deleted", "no manifest", "half a manifest"])
def test_a_tampered_output_is_made_again(finished: Pipeline, harm: str) -> None:
    folder = finished.directory.folder("student")
    good = contents(folder)["model"]
    if harm == "changed":
        (folder / "model").write_text("9.0")
    elif harm == "cut":
        (folder / "model").write_text("")
    elif harm == "deleted":
        (folder / "model").unlink()
    elif harm == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40])
    assert finished.run() == ["student"]
    assert contents(folder)["model"] == good


def test_a_kill_keeps_scratch_and_earlier_results(finished: Pipeline) -> None:
    before = contents(finished.directory.folder("student"))

    def die(context: StageContext) -> None:
        (context.work / "checkpoint").write_text("step 7")
        raise Killed

    finished.before["student"] = die
    with pytest.raises(Killed):
        finished.run(student={"epochs": 2})
    assert contents(finished.directory.folder("student")) == before
    found: list[str] = []

    def resume(context: StageContext) -> None:
        found.extend(sorted(path.name for path in context.folder.iterdir()))
        found.append((context.work / "checkpoint").read_text())

    finished.before["student"] = resume
    assert finished.run(student={"epochs": 2}) == ["student", "score"]
    assert found == [".fingerprint", "model", "work", "step 7"]
    assert set(contents(finished.directory.folder("student"))) == {"model", MANIFEST}


def test_scratch_of_other_settings_is_not_found_again(finished: Pipeline) -> None:
    def die(context: StageContext) -> None:
        (context.work / "checkpoint").write_text("step 7")
        raise Killed

    finished.before["student"] = die
    with pytest.raises(Killed):
        finished.run(student={"epochs": 2})
    seen: list[bool] = []
    finished.before["student"] = lambda c: seen.append((c.work / "checkpoint").exists())
    finished.run(student={"epochs": 3})
    assert seen == [False]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_publishing_loses_nothing(
    finished: Pipeline, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    target = finished.directory.folder("student")
    rename, done = Path.rename, []

    def dying(self: Path, to: Path) -> Path:
        if self.name.startswith(target.name):
            if len(done) == renames:
                raise Killed
            done.append(self)
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(Killed):
            finished.run(student={"epochs": 2})
    assert target.exists() is (renames == 0)
    assert finished.run(student={"epochs": 2}) == ["score"]
    assert (finished.directory.folder("score") / "score").read_text() == "2.0"
    left = {path.suffix for path in finished.directory.root.glob("0*")}
    assert left == {""}


def test_after_a_kill_while_publishing_the_old_result_returns_if_the_new_is_lost(
    finished: Pipeline,
) -> None:
    target = finished.directory.folder("student")
    target.rename(target.with_name(target.name + ".stale"))
    assert finished.run() == []
    assert (target / "model").is_file()


def test_a_full_disk_leaves_earlier_results_intact(finished: Pipeline) -> None:
    before = {
        name: contents(finished.directory.folder(name)) for name in ("texts", "student", "score")
    }

    def fill(context: StageContext) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(context.folder / "model"))

    finished.before["student"] = fill
    with pytest.raises(OSError, match="No space left"):
        finished.run(student={"epochs": 2})
    for name, content in before.items():
        assert contents(finished.directory.folder(name)) == content
    del finished.before["student"]
    assert finished.run(student={"epochs": 2}) == ["student", "score"]


def test_until_stops_after_that_stage(pipeline: Pipeline) -> None:
    assert pipeline.run(until="teacher") == ["texts", "teacher"]
    assert not pipeline.directory.folder("student").exists()
    with pytest.raises(CkdEhrError, match=r"stage 'student' has not finished.*ckd-ehr run"):
        pipeline.directory.require("student")


def test_from_takes_what_comes_before_as_it_stands(finished: Pipeline) -> None:
    finished.source = "moved away"
    places = {"data": {"root": "nowhere"}}
    assert finished.run(first="student", student={"epochs": 2}, **places) == ["student", "score"]
    assert finished.directory.config().data.root is None
    assert finished.run(first="student", until="student", student={"epochs": 2}) == []
    assert not any("score" in line for line in finished.said)
    assert finished.directory.out_of_date("score") is None


def test_from_refuses_earlier_stages_of_other_settings(finished: Pipeline) -> None:
    before = contents(finished.directory.root)
    with pytest.raises(CkdEhrError, match="stage 'teacher' was made with other settings"):
        finished.run(first="student", teacher={"epochs": 9})
    assert contents(finished.directory.root) == before


def test_from_refuses_a_stage_that_has_read_what_was_made_anew_since(finished: Pipeline) -> None:
    longer = {"knowledge": {"teacher": {"max_tokens": 100}}}
    assert finished.run(until="texts", **longer) == ["texts"]
    before = contents(finished.directory.root)
    with pytest.raises(CkdEhrError, match=r"'texts/teacher' has changed since stage 'teacher' re"):
        finished.run(first="student", **longer)
    assert contents(finished.directory.root) == before
    assert finished.run(first="teacher", **longer)[:1] == ["teacher"]
    assert finished.run(first="student", **longer) == []


@pytest.fixture
def of_tables(tmp_path: Path) -> Pipeline:
    """A run whose first stage depends on where its records are; finished with those at A."""
    pipeline = Pipeline(tmp_path / "run")
    texts, *others = pipeline.directory.stages
    texts = replace(texts, sections=("data", "knowledge"))
    pipeline.directory = RunDirectory(pipeline.directory.root, [texts, *others])
    pipeline.run(data={"source": "mimic3", "root": "A"})
    return pipeline


def test_from_takes_the_places_that_stages_were_made_from_after_a_start_elsewhere_failed(
    of_tables: Pipeline,
) -> None:
    def fail(_: StageContext) -> None:
        raise CkdEhrError("B: broken tables")

    of_tables.before["texts"] = fail
    with pytest.raises(CkdEhrError, match="B: broken tables"):
        of_tables.run(data={"source": "mimic3", "root": "B"})
    places = {"data": {"source": "mimic3", "root": "A"}}
    with pytest.raises(CkdEhrError, match="stage 'teacher' was made with other settings"):
        of_tables.run(first="student", teacher={"epochs": 9}, **places)
    assert of_tables.run(first="student", student={"epochs": 2}, **places) == ["student", "score"]
    assert of_tables.directory.config().data.root == Path("A")
    assert of_tables.directory.out_of_date("score") is None


def test_from_keeps_the_places_of_the_last_start_if_others_are_given(of_tables: Pipeline) -> None:
    assert of_tables.run(first="student", data={"source": "mimic3", "root": "moved"}) == []
    assert of_tables.directory.config().data.root == Path("A")


@pytest.mark.parametrize("there", ["", "mine", "mine/deep/run"])
def test_a_start_that_fails_at_once_removes_the_folders_it_made_and_no_others(
    tmp_path: Path, there: str
) -> None:
    def absent(_: RunConfig) -> dict[str, str]:
        raise CkdEhrError("x: no such folder")

    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    stage = Stage(name="only", summary="", function=lambda _: None, sections=(), externals=absent)
    directory = RunDirectory(tmp_path / "mine" / "deep" / "run", [stage])
    with pytest.raises(CkdEhrError, match="no such folder"):
        directory.execute(config(), command=["t"], say=lambda _: None)
    assert sorted(tmp_path.rglob("*")) == before


def test_from_needs_what_comes_before(pipeline: Pipeline) -> None:
    with pytest.raises(CkdEhrError, match="stage 'texts' has not finished"):
        pipeline.run(first="teacher")
    with pytest.raises(CkdEhrError, match="'student' comes after 'texts'"):
        pipeline.run(first="student", until="texts")


def test_a_preview_is_said_before_any_work(tmp_path: Path) -> None:
    order: list[str] = []
    stage = Stage(
        name="only",
        summary="",
        function=lambda _: order.append("worked"),
        sections=(),
        externals=lambda _: order.append("hashed") or {},
        preview=lambda _: ["PATIENTS  missing"],
    )
    RunDirectory(tmp_path, [stage]).execute(config(), command=["t"], say=order.append)
    assert order[:2] == ["PATIENTS  missing", "hashed"]


def test_results_of_earlier_settings_are_told_apart(finished: Pipeline) -> None:
    directory = finished.directory
    assert directory.out_of_date("score") is None
    finished.run(until="student", student={"epochs": 2})
    assert directory.out_of_date("student") is None
    assert directory.out_of_date("score") == "'student' has changed since stage 'score' read it"
    finished.before["student"] = lambda _: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        finished.run(student={"epochs": 5})
    assert directory.out_of_date("student") == (
        "the settings of stage 'student' have changed since it ran"
    )
    assert directory.out_of_date("teacher") is None


def test_two_processes_cannot_run_in_one_folder(finished: Pipeline) -> None:
    root = finished.directory.root
    with filelock.FileLock(root / ".lock"), pytest.raises(CkdEhrError, match="another process"):
        finished.run()


def test_the_manifest_says_what_the_outputs_were(tmp_path: Path) -> None:
    def function(context: StageContext) -> None:
        table = pa.table({"pair_id": ["a", "b"]})
        write_table(table, context.folder / "pairs.parquet", SCHEMA)
        (context.folder / "deep").mkdir()
        (context.folder / "deep" / "note.txt").write_text("12345")
        (context.work / "scratch").write_text("gone")

    stage = Stage(name="only", summary="", function=function, sections=("splits",))
    directory = RunDirectory(tmp_path, [stage])
    directory.execute(config(seed=3), command=["t"], say=lambda _: None)
    manifest = read_manifest(directory.folder("only"))
    assert manifest is not None
    assert manifest.outputs["pairs.parquet"].rows == 2
    assert (manifest.outputs["deep/note.txt"].bytes, manifest.seed) == (5, 3)
    assert set(manifest.outputs) == {"pairs.parquet", "deep/note.txt"}
    assert {"python", "pyarrow"} <= set(manifest.packages)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["command"] == ["t"]
    assert directory.config() == config(seed=3)


def test_the_digest_of_a_file_that_a_stage_lacks_is_an_error(finished: Pipeline) -> None:
    with pytest.raises(CkdEhrError, match="holds no readme"):
        manifest_digest(finished.directory.folder("texts"), only="readme")


def test_publishing_removes_what_an_earlier_kill_left(finished: Pipeline) -> None:
    folder = finished.directory.folder("score")
    manifest = read_manifest(folder)
    assert manifest is not None
    partial = folder.with_name(folder.name + ".partial")
    shutil.copytree(folder, partial)
    shutil.copytree(folder, folder.with_name(folder.name + ".stale"))
    publish(partial, folder, manifest)
    names = {path.name for path in finished.directory.root.iterdir() if "score" in path.name}
    assert names == {folder.name}


def test_a_run_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match="no run here"):
        RunDirectory(tmp_path / "nothing", []).config()
    (tmp_path / "run.json").write_text('{"config": {"name": "a", "old_key": 1}}')
    with pytest.raises(CkdEhrError, match="written by another version"):
        RunDirectory(tmp_path, []).config()
    (tmp_path / "run.json").write_text('{"config": ')
    with pytest.raises(CkdEhrError, match=r"run\.json: not valid JSON"):
        RunDirectory(tmp_path, []).config()


def test_a_run_of_other_records_is_not_overwritten(finished: Pipeline) -> None:
    before = contents(finished.directory.root)
    with pytest.raises(CkdEhrError, match=r"holds a run of source 'simulated'.*--out"):
        finished.run(data={"source": "mimic3", "root": "x"})
    assert contents(finished.directory.root) == before


def test_a_refused_command_leaves_the_record_of_the_run(finished: Pipeline) -> None:
    before = (finished.directory.root / "run.json").read_bytes()

    def absent(_: RunConfig) -> dict[str, str]:
        raise CkdEhrError("x: no such folder")

    first, *others = finished.directory.stages
    broken = RunDirectory(
        finished.directory.root, [Stage(**{**vars(first), "externals": absent}), *others]
    )
    with pytest.raises(CkdEhrError, match="no such folder"):
        broken.execute(config(student={"epochs": 2}), command=["t"], say=lambda _: None)
    assert (finished.directory.root / "run.json").read_bytes() == before


def test_a_damaged_output_is_named_before_it_is_read(finished: Pipeline) -> None:
    model = finished.directory.folder("student") / "model"
    whole = model.read_bytes()
    model.write_bytes(whole + b"x")
    with pytest.raises(CkdEhrError, match=r"student/model: missing or damaged.*ckd-ehr run"):
        finished.directory.require("student")
    model.write_bytes(bytes(byte ^ 1 for byte in whole))
    assert finished.directory.require("student")
    with pytest.raises(CkdEhrError, match=r"student/model: changed since"):
        finished.directory.require_intact("student")
