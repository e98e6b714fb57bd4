"""OMOP tables in PostgreSQL, on a real server: the same events as from files, and clear errors."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hospital import Stage
from omop_hospital import create_statements, omop_tables, write_csvs, write_duckdb, write_parquet
from postgres_server import LOGIN_WITH_PASSWORD, PASSWORD, PostgresServer, running_server

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources import omop
from ckd_ehr.data.sources.omop_postgres import open_postgres

DATABASE, SCHEMA = "hospital", "cdm"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as running:
        running.run([f"CREATE DATABASE {DATABASE}"])
        running.run(create_statements(omop_tables(), SCHEMA), DATABASE)
        running.run(
            [
                f"CREATE ROLE {LOGIN_WITH_PASSWORD} LOGIN PASSWORD '{PASSWORD}'",
                "CREATE ROLE blind LOGIN",
            ]
        )
        running.run(
            [
                f"GRANT USAGE ON SCHEMA {SCHEMA} TO {LOGIN_WITH_PASSWORD}, blind",
                f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO {LOGIN_WITH_PASSWORD}",
                f"GRANT SELECT ON {SCHEMA}.visit_occurrence TO blind",
            ],
            DATABASE,
        )
        yield running


def written(dataset: Path) -> dict[str, bytes]:
    """The bytes of a dataset's events and codes."""
    files = [*sorted((dataset / "data").iterdir()), dataset / "metadata" / "codes.parquet"]
    return {path.name: path.read_bytes() for path in files}


def digests(**omop_settings: object) -> dict[str, str]:
    config = build_config({"name": "t", "data": {"source": "omop", "omop": omop_settings}})
    return omop.digests(config.data)


def refusal(url: str, **omop_settings: object) -> str:
    with pytest.raises(CkdEhrError) as error:
        digests(url=url, **omop_settings)
    return str(error.value)


def test_files_duckdb_and_postgresql_give_the_same_bytes(
    server: PostgresServer, tmp_path: Path, make_events: Stage
) -> None:
    tables = omop_tables()
    from_csv = written(make_events(write_csvs(tables, tmp_path / "csv"), source="omop"))
    assert set(from_csv) == {"0000.parquet", "codes.parquet"}
    roots = [
        write_parquet(tables, tmp_path / "parquet"),
        write_duckdb(tables, tmp_path / "cdm.duckdb"),
        write_duckdb(tables, tmp_path / "other.duckdb", schema="omop"),
    ]
    for root in roots:
        assert written(make_events(root, source="omop")) == from_csv
    url = server.url(DATABASE)
    assert written(make_events(None, source="omop", omop={"url": url})) == from_csv


def test_the_tables_found_name_the_schema(server: PostgresServer) -> None:
    config = build_config(
        {"name": "t", "data": {"source": "omop", "omop": {"url": server.url(DATABASE)}}}
    )
    found = {status.name: status.found for status in omop.tables(config.data)}
    assert found["person"] == "cdm.person"
    assert found["concept_relationship"] is None


def test_a_digest_changes_with_the_tables_content_alone(server: PostgresServer) -> None:
    url = server.url(DATABASE)
    before = digests(url=url)
    assert set(before) == {f"{SCHEMA}.{name}" for name in omop_tables()}
    # Neither the order of rows nor a column nobody reads counts.
    server.run(
        [f"CREATE TABLE {SCHEMA}.kept AS SELECT * FROM {SCHEMA}.death",
         f"UPDATE {SCHEMA}.death SET cause_concept_id = 5"], DATABASE)  # fmt: skip
    assert digests(url=url) == before
    server.run([f"UPDATE {SCHEMA}.death SET death_date = '2051-02-04'"], DATABASE)
    after = digests(url=url)
    assert {name for name in before if after[name] != before[name]} == {f"{SCHEMA}.death"}
    server.run(
        [f"DELETE FROM {SCHEMA}.death", f"INSERT INTO {SCHEMA}.death SELECT * FROM {SCHEMA}.kept",
         f"DROP TABLE {SCHEMA}.kept"], DATABASE)  # fmt: skip
    assert digests(url=url) == before


def test_times_with_a_zone_are_read_in_utc_whatever_the_servers_zone(
    server: PostgresServer, make_events: Stage
) -> None:
    tables = omop_tables()
    server.run(create_statements(tables, "zoned"), DATABASE)
    server.run(
        [f"ALTER TABLE zoned.{table} ALTER COLUMN {column} TYPE timestamptz "
         f"USING {column} AT TIME ZONE 'UTC'"
         for table, column in (
             ("visit_occurrence", "visit_start_datetime"),
             ("visit_occurrence", "visit_end_datetime"),
             ("drug_exposure", "drug_exposure_start_datetime"))], DATABASE)  # fmt: skip
    settings = {"url": server.url(DATABASE)}
    plain = written(make_events(None, source="omop", omop=settings | {"table_schema": "cdm"}))
    zoned = written(make_events(None, source="omop", omop=settings | {"table_schema": "zoned"}))
    assert zoned == plain
    assert "stands in several schemas (cdm, zoned); name the schema" in refusal(settings["url"])
    server.run(["DROP SCHEMA zoned CASCADE"], DATABASE)


def test_a_password_comes_from_the_environment(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    url = server.url(DATABASE, LOGIN_WITH_PASSWORD)
    assert "refused the login; set PGPASSWORD or ~/.pgpass" in refusal(url)
    monkeypatch.setenv("PGPASSWORD", "wrong")
    message = refusal(url)
    assert "refused the login" in message
    assert LOGIN_WITH_PASSWORD not in message
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert len(digests(url=url)) == len(omop_tables())


def test_a_port_without_a_server_is_one_clear_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert refusal(f"postgresql://jo@127.0.0.1:{port}/cdm") == (
        f"PostgreSQL at 127.0.0.1:{port}: no PostgreSQL server answers; start it, or correct host "
        "and port in data.omop.url"
    )


def test_an_unknown_database_is_named(server: PostgresServer) -> None:
    assert refusal(server.url("nowhere")) == (
        f"PostgreSQL at {server.folder}: no database 'nowhere'; correct its name in data.omop.url"
    )


def test_an_unknown_user_is_told_to_check_the_login(server: PostgresServer) -> None:
    assert "refused the login" in refusal(server.url(DATABASE, "nobody"))


def test_a_database_without_the_tables_asks_for_the_schema(server: PostgresServer) -> None:
    assert "table visit_occurrence is missing; name the schema" in refusal(server.url("postgres"))
    message = refusal(server.url(DATABASE), table_schema="cmd")
    assert message.startswith(f"PostgreSQL database '{DATABASE}': no schema 'cmd' (found: cdm")


def test_a_missing_table_and_a_missing_column_are_named(server: PostgresServer) -> None:
    tables = omop_tables(2)
    del tables["drug_exposure"]
    server.run(create_statements(tables, "partial"), DATABASE)
    url = server.url(DATABASE)
    message = refusal(url, table_schema="partial")
    assert f"'{DATABASE}' (schema partial): table drug_exposure is missing" in message
    server.run(["ALTER TABLE partial.person RENAME person_id TO patient_id"], DATABASE)
    message = refusal(url, table_schema="partial")
    assert message.startswith("partial.person: column 'person_id' is missing")
    assert message.endswith("map it with data.columns.person.person_id=NAME")
    server.run(["DROP SCHEMA partial CASCADE"], DATABASE)


def test_a_table_one_may_not_read_asks_for_the_grant(server: PostgresServer) -> None:
    message = refusal(server.url(DATABASE, "blind"))
    assert message.startswith(
        f"PostgreSQL database '{DATABASE}': cdm.person: no permission to read"
    )
    assert "GRANT SELECT" in message
    assert "blind" not in message


def test_a_connection_that_breaks_is_one_clear_error(server: PostgresServer) -> None:
    with open_postgres(server.url(DATABASE), SCHEMA) as place:
        server.run(
            [f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{DATABASE}'"]
        )
        with pytest.raises(CkdEhrError, match=r"cdm\.person: reading broke off; look into the ser"):
            place.digests({"person": {"person_id": "person_id"}})


def test_without_the_driver_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    assert "pip install 'ckd-ehr[postgres]'" in refusal("postgresql://jo@127.0.0.1/cdm")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://jo:open%20sesame@localhost/cdm",
        "postgresql://jo@localhost/cdm?password=open%20sesame",
        # urllib ends the host at these signs, libpq does not.
        "postgresql://jo:open#sesame@localhost/cdm",
        "postgresql://jo:open?sesame@localhost/cdm",
        "postgresql://jo:open/sesame@localhost/cdm",
        "postgresql://jo:open@sesame@localhost/cdm",
        "postgresql://jo:@localhost/cdm?application_name=sesame",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    message = refusal(url)
    assert "holds a password" in message
    assert "PGPASSWORD" in message
    assert "sesame" not in message


@pytest.mark.parametrize("url", ["mysql://jo@localhost/cdm", "localhost/cdm"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    assert "write postgresql://USER@HOST/DATABASE" in refusal(url)
