"""PostgreSQL urls: no password may stand in one, since settings are written down with a run.

In: a url as somebody wrote it, or a text that may hold one. Out: the url if it is safe to keep, its
parts, or the text with user info masked. Ignores: whether a server answers. urllib ends the host at
a '#', '?' or '/' in a password where libpq reads on to an '@': here everything up to the *last* '@'
is user info, and what the two might read differently is refused. No error repeats any of it.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from ckd_ehr.contracts.errors import CkdEhrError

# Of libpq's, those that hold no secret and name no other settings.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
QUERY_KEYS = (
    "host", "hostaddr", "port", "user", "dbname", "sslmode", "sslrootcert", "sslcert", "sslkey",
    "passfile", "connect_timeout", "application_name", "options", "target_session_attrs",
    "gssencmode", "krbsrvname", "channel_binding", "keepalives", "keepalives_idle",
)  # fmt: skip
WRITE_URL = "write postgresql://USER@HOST/DATABASE"
_SCHEME = re.compile(r"postgres(?:ql)?://")
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?")
_SECRET = re.compile(r"(password|passwd|pwd)\s*=", re.I)
_USER_INFO = re.compile(r"//.*@", re.S)
_SECRET_VALUE = re.compile(r"((?:password|passwd|pwd)\s*=)[^\s&;'\"]*", re.I)


@dataclass(frozen=True)
class DatabaseUrl:
    """What stands where in a url: `//user_info@hosts/database?query`; without percent codes."""

    user_info: str
    hosts: str
    database: str
    query: dict[str, str]


def split_url(url: str) -> DatabaseUrl:
    """The parts of a url; all up to the last '@' is user info.

    >>> split_url("postgresql://jo:a/b#c@db:5433/cdm?sslmode=require")
    DatabaseUrl(user_info='jo:a/b#c', hosts='db:5433', database='cdm', query={'sslmode': 'require'})
    """
    user_info, _, rest = url.partition("//")[2].rpartition("@")
    place, _, query = rest.partition("?")
    hosts, _, database = place.partition("/")
    given = dict(parse_qsl(query, keep_blank_values=True))
    return DatabaseUrl(unquote(user_info), unquote(hosts), unquote(database), given)


def refuse_secrets(url: str) -> str:
    """The url itself, if it is PostgreSQL's and holds neither a password nor what may hide one.

    Raises:
        CkdEhrError: it is of another kind, has a password, a fragment, an unknown query key, or
            signs in the wrong place; the error shows nothing of it.
    """
    user_info, _, rest = url.partition("//")[2].rpartition("@")
    if ":" in unquote(user_info) or _SECRET.search(unquote(url)):
        raise CkdEhrError(
            "data.omop.url holds a password, which the run's files would keep; set it as "
            f"PGPASSWORD or in ~/.pgpass, and {WRITE_URL}"
        )
    if not _SCHEME.match(url):
        raise CkdEhrError(f"data.omop.url: not of PostgreSQL; {WRITE_URL}")
    if re.search(r"[/?#]", user_info) or "#" in rest or re.search(r"\s", url):
        raise CkdEhrError(
            "data.omop.url: '@', '/', '?', '#' or a blank stands where it cannot; write such a "
            f"sign of a name in percent code (%40 is '@'), or {WRITE_URL}"
        )
    hosts = rest.partition("?")[0].partition("/")[0]
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise CkdEhrError(f"data.omop.url: no host with a port in numbers; {WRITE_URL}")
    if not set(split_url(url).query) <= set(QUERY_KEYS):
        raise CkdEhrError(
            f"data.omop.url: after the '?' stands an unknown key; known are {', '.join(QUERY_KEYS)}"
        )
    return url


def masked(text: str) -> str:
    """A text with what may be user info or a password in a url left out.

    >>> masked("data.root=postgresql://jo:sesame@db/cdm?password=sesame")
    'data.root=postgresql://…@db/cdm?password=…'
    """
    return _SECRET_VALUE.sub(r"\1…", _USER_INFO.sub("//…@", text))
