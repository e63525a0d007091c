"""Every setting of a wall, with its meaning, its default, and how it is read. A table: no logic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sqlwall.config.values import (
    AUTH_METHODS,
    Secret,
    integer,
    number,
    read_auth_methods,
    read_boolean,
    read_duration,
    read_path,
    read_positive_duration,
    read_root_certificates,
    read_secret,
    read_text,
    read_url,
    size,
    word,
)

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
CHANNEL_BINDINGS = ("disable", "prefer", "require")
CLIENT_CERTIFICATES = ("optional", "require", "match")
TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
NO_SECRET = Secret("")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field stands for, and what makes its value of what somebody wrote."""

    meaning: str
    read: Callable[[object], object]


PORT = integer(1, 65535)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where agents connect."""

    host: Annotated[str, Setting("address that agents connect to", read_text)] = "127.0.0.1"
    port: Annotated[int, Setting("TCP port that agents connect to", PORT)] = 6543


@dataclass(frozen=True, slots=True)
class Upstream:
    """A login to the PostgreSQL server behind the wall. Words are libpq's.

    `upstream` is for the agents' sessions, `observer` for the role that reads what they change, `undo` for the role
    that brings it back (`sqlwall provision`). Without an observer agents' own role looks, at what it may read whole.
    """

    dsn: Annotated[
        Secret, Setting("the server as a libpq URI or key=value string; sets the keys below", read_secret)
    ] = NO_SECRET
    host: Annotated[
        str, Setting("host name, address, or folder of the Unix socket of the server", read_text)
    ] = ""
    port: Annotated[int, Setting("port of the server", PORT)] = 5432
    user: Annotated[str, Setting("role that the wall logs in as", read_text)] = ""
    password: Annotated[Secret, Setting("password of that role; better in password_file", read_secret)] = (
        NO_SECRET
    )
    password_file: Annotated[
        Path | None, Setting("file that holds the password, read at start and reload", read_path)
    ] = None
    dbname: Annotated[str, Setting("database; empty: the one that the agent asks for", read_text)] = ""
    sslmode: Annotated[str, Setting(f"one of {', '.join(SSLMODES)}", word(*SSLMODES))] = "prefer"
    sslrootcert: Annotated[
        Path | str | None,
        Setting("file of certificates that may sign the server's, or system", read_root_certificates),
    ] = None
    sslcert: Annotated[Path | None, Setting("certificate to show to the server", read_path)] = None
    sslkey: Annotated[Path | None, Setting("private key of that certificate", read_path)] = None
    channel_binding: Annotated[
        str, Setting("one of " + ", ".join(CHANNEL_BINDINGS), word(*CHANNEL_BINDINGS))
    ] = "prefer"
    require_auth: Annotated[
        str,
        Setting(
            f"comma-separated list of {', '.join(AUTH_METHODS)}: all that the server may ask for, or with ! each all "
            "that it may not",
            read_auth_methods,
        ),
    ] = ""


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption towards agents."""

    certificate: Annotated[
        Path | None, Setting("certificate chain shown to agents; without it there is no TLS", read_path)
    ] = None
    key: Annotated[Path | None, Setting("private key of the certificate", read_path)] = None
    client_ca: Annotated[
        Path | None, Setting("certificates that must have signed one that an agent shows", read_path)
    ] = None
    client_certificate: Annotated[
        str,
        Setting(
            f"with client_ca, one of {', '.join(CLIENT_CERTIFICATES)}; match: its common name is the agent's",
            word(*CLIENT_CERTIFICATES),
        ),
    ] = "require"
    require: Annotated[bool, Setting("refuse agents that do not use TLS", read_boolean)] = False
    min_version: Annotated[
        str, Setting("oldest TLS version, one of " + ", ".join(TLS_VERSIONS), word(*TLS_VERSIONS))
    ] = "TLSv1.2"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is allowed."""

    path: Annotated[str, Setting("file of the default ruleset, or the name of a shipped one", read_text)] = (
        "agent-safe"
    )


@dataclass(frozen=True, slots=True)
class Store:
    """Where agents, audit records and decisions are kept."""

    url: Annotated[str, Setting("SQLAlchemy URL of the store, or a file name for SQLite", read_url)] = field(
        default="sqlite:///sqlwall.db", repr=False
    )


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Where the images of changed rows are kept, and for how long."""

    url: Annotated[
        str,
        Setting(
            "folder of the snapshots, or a URL of S3, GCS or Azure; empty: none, and writes that need one are refused",
            read_text,
        ),
    ] = "sqlwall-snapshots"
    key: Annotated[
        Secret, Setting("32 bytes in base64 that encrypt them; best as SQLWALL_SNAPSHOTS_KEY", read_secret)
    ] = NO_SECRET
    keep: Annotated[float, Setting("how long `snapshot prune` keeps them; 0: for ever", read_duration)] = (
        30 * 86400.0
    )
    max_bytes: Annotated[
        int,
        Setting("size in all to which `snapshot prune` brings them, oldest first; 0: any", size(0, 1024**5)),
    ] = 0
    lock: Annotated[
        float,
        Setting(
            "age before which nobody can remove one; holds for snapshots taken from now on", read_duration
        ),
    ] = 0.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where the console, its API and /metrics are served."""

    host: Annotated[str, Setting("address of the console, /metrics, /healthz and /readyz", read_text)] = (
        "127.0.0.1"
    )
    port: Annotated[int, Setting("port of the console, /metrics, /healthz and /readyz", PORT)] = 9643


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that protect the wall itself."""

    max_connections: Annotated[int, Setting("sessions in all, over all workers", integer(1, 100_000))] = 200
    per_agent_connections: Annotated[
        int, Setting("sessions of one agent, where the agent has no number of its own", integer(1, 100_000))
    ] = 50
    per_agent_rate: Annotated[
        float,
        Setting(
            "statements per second of one agent, all its sessions together; 0: any number",
            number(0, 1_000_000),
        ),
    ] = 0.0
    per_agent_burst: Annotated[
        int,
        Setting("statements that an agent may send at once before that rate holds", integer(1, 1_000_000)),
    ] = 100
    segment_bytes: Annotated[
        int, Setting("bytes held of a client until its Sync, Flush or Query ends", size(64 * 1024, 1024**3))
    ] = 64 * 1024**2
    statement_bytes: Annotated[int, Setting("longest text of a statement", size(1024, 1024**3))] = (
        16 * 1024**2
    )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the wall waits; 0 is for ever."""

    login: Annotated[float, Setting("for an agent to finish its login", read_duration)] = 60.0
    idle_in_transaction: Annotated[
        float, Setting("for an agent that holds a transaction open and says nothing", read_duration)
    ] = 600.0
    statement: Annotated[float, Setting("for one statement, on top of what rules say", read_duration)] = 0.0
    drain: Annotated[float, Setting("for open transactions when the wall stops", read_duration)] = 30.0
    upstream_connect: Annotated[
        float, Setting("for the server to accept a connection and our login", read_duration)
    ] = 10.0
    cancel_grace: Annotated[
        float,
        Setting("for the server to end a statement after a cancel, before it is cut off", read_duration),
    ] = 5.0
    parse: Annotated[
        float, Setting("for the parser process with one large statement", read_positive_duration)
    ] = 2.0


@dataclass(frozen=True, slots=True)
class Workers:
    """How many processes share the port."""

    count: Annotated[int, Setting("worker processes; 0: one per core", integer(0, 256))] = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """The record of what was asked and decided."""

    statement_bytes: Annotated[
        int, Setting("bytes of a statement's text kept in the record", size(0, 1024**2))
    ] = 8192
    queue: Annotated[
        int, Setting("records that may wait to be written before statements wait too", integer(1, 1_000_000))
    ] = 10_000


@dataclass(frozen=True, slots=True)
class Log:
    """The wall's own log, on standard error."""

    level: Annotated[str, Setting("one of " + ", ".join(LOG_LEVELS), word(*LOG_LEVELS))] = "info"
    format: Annotated[str, Setting("one of " + ", ".join(LOG_FORMATS), word(*LOG_FORMATS))] = "text"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a wall is told. Sections are fields, settings are theirs."""

    listen: Listen = Listen()
    upstream: Upstream = Upstream()
    observer: Upstream = Upstream()
    undo: Upstream = Upstream()
    tls: Tls = Tls()
    ruleset: Ruleset = Ruleset()
    store: Store = Store()
    snapshots: Snapshots = Snapshots()
    metrics: Metrics = Metrics()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    workers: Workers = Workers()
    audit: Audit = Audit()
    log: Log = Log()

    @property
    def observing(self) -> Upstream:
        """The login that looks at what agents change: that of agents themselves, where there is no role of its own.

        It then sees only tables that agents may read whole; writes to others are refused.
        """
        return self.observer if self.observer.host else self.upstream
