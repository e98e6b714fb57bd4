"""A PostgreSQL server of one's own for the tests, where its programs are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# The server refuses to run as root.
SERVER_USER = "postgres"
OWNER = "postgres"
LOGIN_WITH_PASSWORD, PASSWORD = "locked", "open sesame"


@dataclass(frozen=True)
class PostgresServer:
    """A running server, reached by its Unix socket in `folder`."""

    folder: Path

    def url(self, database: str, user: str = OWNER) -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def run(self, statements: Sequence[str], database: str = "postgres") -> None:
        """Run SQL statements as the owner, each on its own."""
        from adbc_driver_postgresql import dbapi

        with (
            dbapi.connect(self.url(database), autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            for statement in statements:
                cursor.execute(statement)


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs; None where it is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server in a temporary folder; stop it and delete the folder in the end."""
    folder_of_programs = programs()
    if folder_of_programs is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    folder = Path(tempfile.mkdtemp(prefix="ckd-ehr-pg-"))
    user = SERVER_USER if os.geteuid() == 0 else None
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [folder_of_programs / program, *arguments],
            check=True, user=user, cwd=folder, timeout=60,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    data = str(folder / "data")
    try:
        call("initdb", "-D", data, "-U", OWNER, "--auth=trust", "--no-sync", "--encoding=UTF8")
        hba = folder / "data" / "pg_hba.conf"
        hba.write_text(f"local all {LOGIN_WITH_PASSWORD} scram-sha-256\n{hba.read_text()}")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c timezone=Asia/Tokyo"
        call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield PostgresServer(folder)
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
