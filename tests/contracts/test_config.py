"""Settings: what is refused, in which words; what an override does."""

import re
from pathlib import Path

import pytest

from ckd_ehr.contracts.config import RunConfig, build_config, load_config
from ckd_ehr.contracts.errors import CkdEhrError


def write(folder: Path, text: str) -> Path:
    path = folder / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("studnet", "student"),
        ("student.epoch", "student.epochs"),
        ("teacher.lora.rnk", "teacher.lora.rank"),
        ("data.simulator.patient", "data.simulator.patients"),
        ("cohort.sample.heldout", "cohort.sample.held_out"),
        ("knowledge.teacher.max_token", "knowledge.teacher.max_tokens"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, key: str, nearest: str
) -> None:
    with pytest.raises(CkdEhrError) as caught:
        load_config(write(tmp_path, "name: trial"), [f"{key}=1"])
    assert str(caught.value) == f"override: unknown key '{key}'; did you mean '{nearest}'?"


def test_an_error_says_whether_the_file_or_an_override_is_to_blame(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError) as caught:
        load_config(write(tmp_path, "seed: -1"), ["student.epochs=-1"])
    first, second = sorted(str(caught.value).splitlines(), reverse=True)
    assert "override: student.epochs = -1" in first or "override: student.epochs = -1" in second
    assert any("trial.yaml: seed = -1" in line for line in (first, second))


def test_an_unknown_key_of_a_phenotype_names_the_nearest() -> None:
    settings = {"name": "trial", "labels": {"phenotypes": [{"name": "A", "cs": [1]}]}}
    with pytest.raises(CkdEhrError, match=r"labels\.phenotypes\.0\.cs.*did you mean.*'.*ccs'"):
        build_config(settings)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError) as caught:
        load_config(write(tmp_path, "seeed: 1\nstudent: {epochs: -1}"))
    assert "'seeed'" in str(caught.value)
    assert "student.epochs = -1" in str(caught.value)


def test_overrides_reach_every_level_and_beat_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "student: {epochs: 3}\nteacher: {lora: {rank: 4}}")
    overrides = ["student.epochs=2", "teacher.lora.rank=16", "seed=7", "data.root=/tables"]
    config = load_config(path, [*overrides, "student.learning_rate=1e-4"])
    assert (config.student.epochs, config.teacher.lora.rank, config.seed) == (2.0, 16, 7)
    assert config.student.learning_rate == 1e-4
    assert config.data.root == Path("/tables")


def test_an_override_may_hold_a_list_or_null(tmp_path: Path) -> None:
    path = write(tmp_path, "cohort: {sample: {train: 100}}")
    config = load_config(path, ["cohort.sample.train=null", "labels.only_ccs=[49, 50]"])
    assert config.cohort.sample.train is None
    assert [phenotype.ccs for phenotype in config.labels.selected] == [(50,), (49,)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.epochs", "write it as key.subkey=value"),
        ("=3", "write it as key.subkey=value"),
        ("seed.more=3", "'seed' is a value, not a section"),
        ("student.epochs=[1", "not valid YAML"),
    ],
)
def test_a_malformed_override_says_how_to_write_it(
    tmp_path: Path, override: str, words: str
) -> None:
    with pytest.raises(CkdEhrError) as caught:
        load_config(write(tmp_path, "seed: 1"), [override])
    assert override in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["student: [", "- a\n- b\n", "just words", "a: \x00"])
def test_a_file_that_is_no_yaml_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(CkdEhrError, match=r"trial\.yaml: "):
        load_config(write(tmp_path, text))


def test_a_date_that_does_not_exist_is_an_error_of_the_file_or_the_override(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("splits: {temporal: 2020-13-45}\n", encoding="utf-8")
    with pytest.raises(CkdEhrError, match=r"trial.yaml: not valid YAML.*month"):
        load_config(path)
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(CkdEhrError, match="not valid YAML"):
        load_config(path, ["name=2020-13-45"])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{url: postgresql://jo:sesame-open-9@db/cdm, table_schema: cdm", "expected ',' or '}'"),
        ("[postgresql://jo:sesame-open-9@db/cdm", "expected ',' or ']'"),
        ("postgresql://research_user:sesame@db.org/cdm: x", "mapping values are not allowed here"),
        ("'postgresql://jo:sesame-open-sesame@db/cdm", "found unexpected end of stream"),
        ("*sesame", "found undefined alias '…'"),
        ("!sesame x", "could not determine a constructor for the tag '…'"),
    ],
)
def test_a_yaml_error_says_what_and_where_and_shows_nothing_of_the_file(
    tmp_path: Path, value: str, problem: str
) -> None:
    with pytest.raises(CkdEhrError) as caught:
        load_config(write(tmp_path, f"data:\n  omop:\n    url: {value}\nseed: 1\n"))
    assert problem in str(caught.value)
    assert re.search(r"\(line [345], column \d+\)", str(caught.value))
    assert "sesame" not in str(caught.value)
    assert "db" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(CkdEhrError, match=r"trial\.yaml: not valid YAML in UTF-8"):
        load_config(path)


def test_an_absent_file_says_where_the_shipped_ones_are(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"absent\.yaml: no such config file.*configs/"):
        load_config(tmp_path / "absent.yaml")


def test_a_folder_given_as_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match="folder"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "student.epochs=0",
        "student.soft_weight=1.5",
        "splits.tuning=0",
        "splits.folds=1",
        "knowledge.student.max_tokens=8",
        "teacher.precision=fp16",
        "name='../up'",
        "seed=many",
    ],
)
def test_values_out_of_bounds_are_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(CkdEhrError) as caught:
        load_config(write(tmp_path, ""), [override])
    assert f"{override.partition('=')[0]} = " in str(caught.value)


def test_splits_must_leave_patients_to_train() -> None:
    with pytest.raises(CkdEhrError, match="must be below 1"):
        build_config({"name": "a", "splits": {"tuning": 0.5, "held_out": 0.5}})


def test_only_ccs_of_no_phenotype_is_refused() -> None:
    with pytest.raises(CkdEhrError, match=r"only_ccs.*\[7\]"):
        build_config({"name": "a", "labels": {"only_ccs": [49, 7]}})


def test_the_name_defaults_to_the_file_and_settings_are_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""))
    assert config.name == "trial"
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_a_config_survives_json() -> None:
    config = build_config({"name": "a", "labels": {"only_ccs": [49]}, "data": {"root": "x"}})
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400"])
def test_numbers_are_finite(tmp_path: Path, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\n")
    with pytest.raises(CkdEhrError, match=r"student\.epochs"):
        load_config(path, [f"student.epochs={value}"])


@pytest.mark.parametrize(
    "root",
    [
        "postgresql://jo:sesame@db/cdm",
        " postgresql://jo:sesame@db/cdm",
        "POSTGRES://jo:sesame@db",
        Path("postgresql://jo:sesame@db/cdm"),  # its two slashes have become one
    ],
)
def test_a_url_given_as_root_is_refused_unseen(root: str | Path) -> None:
    with pytest.raises(CkdEhrError) as caught:
        build_config({"name": "a", "data": {"root": root}})
    assert "a url goes into data.omop.url" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("root", ["C:/tables", "/tables//jo@home", "a:b/tables"])
def test_a_folder_is_no_url(root: str) -> None:
    assert build_config({"name": "a", "data": {"root": root}}).data.root == Path(root)


@pytest.mark.parametrize("size", ["0GB", "0.0MB", "0.0001KB", "63.9MB", "0.06 gb", "62000KiB"])
def test_a_memory_limit_too_small_to_work_in_is_refused(size: str) -> None:
    with pytest.raises(CkdEhrError, match=r"engine\.memory_limit.*give it at least 64MB"):
        build_config({"name": "a", "engine": {"memory_limit": size}})


@pytest.mark.parametrize("size", ["64MB", "0.064GB", "62MiB", "62500 KiB", "1.5 tb"])
def test_a_memory_limit_may_have_any_unit(size: str) -> None:
    config = build_config({"name": "a", "engine": {"memory_limit": size}})
    assert config.engine.memory_limit == size
