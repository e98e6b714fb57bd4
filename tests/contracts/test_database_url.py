"""PostgreSQL urls: which may stand in a config, and that no error repeats one."""

from pathlib import Path

import pytest

from ckd_ehr.contracts.config import build_config, load_config
from ckd_ehr.contracts.database_url import masked, refuse_secrets, split_url
from ckd_ehr.contracts.errors import CkdEhrError


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://jo@db.example.org:5433/cdm",
        "postgres://db/cdm?sslmode=require&connect_timeout=3",
        "postgresql:///cdm?host=/var/run/postgresql&user=jo",
        "postgresql://jo%40realm@[::1]:5432,other:5433/cdm?target_session_attrs=any",
    ],
)
def test_a_url_without_a_password_stays_as_it_is(url: str) -> None:
    config = build_config({"name": "t", "data": {"omop": {"url": url}}})
    assert config.data.omop.url == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://jo:a#sesame@db/cdm", "holds a password"),
        ("postgresql://jo:a?sesame@db/cdm", "holds a password"),
        ("postgresql://jo:a/sesame@db/cdm", "holds a password"),
        ("postgresql://jo:a@sesame@db/cdm", "holds a password"),
        ("postgresql://jo%3Asesame@db/cdm", "holds a password"),
        ("postgresql://jo@db/cdm?%70assword=sesame", "holds a password"),
        ("postgresql://jo@db/cdm?sslpassword=sesame", "holds a password"),
        ("postgresql://jo@db/cdm;password=sesame", "holds a password"),
        ("host=db user=jo password=sesame", "holds a password"),
        ("postgresql://jo@db/cdm#sesame", "stands where it cannot"),
        ("postgresql://jo#sesame@db/cdm", "stands where it cannot"),
        ("postgresql://db/cdm?sesame=1@db", "stands where it cannot"),
        ("postgresql://jo@db/cdm sesame", "stands where it cannot"),
        ("postgresql://jo:sesame/cdm", "no host with a port in numbers"),
        ("postgresql://jo@db/cdm?sesame=1", "an unknown key; known are host, "),
        ("postgresql://jo@db/cdm?sslmode=require&sesame", "an unknown key"),
        ("mysql://sesame@db/cdm", "not of PostgreSQL"),
        ("db/sesame", "not of PostgreSQL"),
    ],
)
def test_what_holds_or_may_hide_a_password_is_refused_unseen(url: str, words: str) -> None:
    with pytest.raises(CkdEhrError) as error:
        refuse_secrets(url)
    assert words in str(error.value)
    assert "sesame" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "data.omop=postgresql://jo:open?a=b#sesame@db/cdm",
        "data.omop.url=[postgresql://jo:sesame@db/cdm]",
        f"data.omop=postgresql://jo:{'sesame' * 20}@db/cdm",
        "data.omop.url postgresql://jo:sesame@db/cdm",
        "postgresql://jo:sesame=1@db/cdm",
        "seed.url=postgresql://jo:sesame@db/cdm",
        "data.omop.url=[postgresql://jo:sesame@db/cdm",
    ],
)
def test_a_refused_override_shows_no_user_info(tmp_path: Path, override: str) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(CkdEhrError) as error:
        load_config(path, [override])
    assert "postgresql://…@db/cdm" in str(error.value)
    assert "sesame" not in str(error.value)


def test_a_text_without_user_info_is_not_masked() -> None:
    assert masked("data.root='/tables//a'") == "data.root='/tables//a'"


def test_the_parts_of_a_url_are_without_percent_codes() -> None:
    parts = split_url("postgresql://%2Ftmp/cdm%20a")
    assert (parts.user_info, parts.hosts, parts.database) == ("", "/tmp", "cdm a")
