"""Sessions on the PostgreSQL server, and cancels: connecting by libpq's rules, on the transports of asyncio.

What clients are told of a failed login is only what they could have known themselves (`client_refusal`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from psycopg.conninfo import make_conninfo

from sqlwall import config
from sqlwall.errors import ConfigError, ProtocolError, UpstreamError
from sqlwall.proxy import tls
from sqlwall.proxy.login import MAX_LOGIN_MESSAGE_LENGTH, Greeting, Login, LoginError, Secrets, read_frame
from sqlwall.proxy.pipe import Pipe
from sqlwall.proxy.scram import ChannelBindingPolicy
from sqlwall.session.refusal import Refusal
from sqlwall.wire import backend, frontend, sqlstate
from sqlwall.wire.startup import cancel_request, ssl_request, startup_message

logger = logging.getLogger(__name__)

__all__ = [
    "LoginError",
    "Upstream",
    "UpstreamSettings",
    "cancel_upstream",
    "client_refusal",
    "connect_upstream",
    "query_rows",
]

#: Seconds of silence before the kernel asks whether the server is there, seconds between its questions, and how many.
KEEPALIVE: Final = (60, 10, 6)
#: What every session has, whatever role and database have for a default: the wall reads one encoding.
PINNED: Final = (("client_encoding", "UTF8"),)


#: A side connection whose server is gone without a word ends within half a minute.
_ALIVE: Final = {
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """The server and our login. `context` is None where TLS is off; `host` beginning with / is a socket's folder."""

    host: str
    port: int
    user: str
    password: str = field(default="", repr=False)
    dbname: str = ""
    sslmode: str = "prefer"
    context: ssl.SSLContext | None = None
    channel_binding: ChannelBindingPolicy = ChannelBindingPolicy.PREFER
    require_auth: str = ""
    timeout: float = 10.0
    sslrootcert: Path | str | None = None
    sslcert: Path | None = None
    sslkey: Path | None = None

    @classmethod
    def of(cls, given: config.Upstream, timeout: float = 10.0) -> UpstreamSettings:
        """Of the configuration. Raises ConfigError if no server is named, or a certificate cannot be used."""
        if not given.host or not given.user:
            missing = "server" if not given.host else "user for the server"
            raise ConfigError(
                f"upstream: no {missing} is configured; give postgresql://USER@HOST:PORT/DBNAME as --upstream, "
                "SQLWALL_UPSTREAM or upstream.dsn"
            )
        return cls(
            given.host,
            given.port,
            given.user,
            given.password.reveal(),
            given.dbname,
            given.sslmode,
            tls.upstream_context(
                given.sslmode,
                root_certificates=given.sslrootcert,
                certificate=given.sslcert,
                key=given.sslkey,
            ),
            ChannelBindingPolicy(given.channel_binding),
            given.require_auth,
            timeout,
            given.sslrootcert,
            given.sslcert,
            given.sslkey,
        )

    def conninfo(self, database: str) -> str:
        """The same login as a libpq connection string, for side connections. It holds the password: never log it."""
        given = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password or None,
            "dbname": self.dbname or database,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "channel_binding": self.channel_binding.value,
            "require_auth": self.require_auth or None,
            "connect_timeout": max(2, round(self.timeout)) if self.timeout else None,
            **_ALIVE,
        }
        return make_conninfo("", **{key: str(value) for key, value in given.items() if value is not None})

    @property
    def is_local(self) -> bool:
        """Whether it is a Unix socket: TLS is not asked for there, as in libpq."""
        return self.host.startswith(("/", "@"))

    @property
    def address(self) -> str:
        """For messages."""
        return str(Path(self.host) / f".s.PGSQL.{self.port}") if self.is_local else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A session that is ready for its first query. `parameter_status` is in the server's order."""

    pipe: Pipe
    parameter_status: Mapping[bytes, bytes]
    process_id: int
    secret: bytes = field(repr=False)
    server_version: int  # as libpq has it: 180001
    is_tls: bool

    @property
    def server_major(self) -> int:
        """18 for 18.1."""
        return self.server_version // 10_000


async def connect_upstream(
    settings: UpstreamSettings, parameters: Mapping[str, str], *, is_pinned: bool = True
) -> Upstream:
    """Open a session with these startup parameters; `user` is ours, and `database` too where one is configured.

    `is_pinned` adds `PINNED` and insists on it.

    Raises UpstreamError; LoginError if the server said why.
    """
    pinned = dict(PINNED) if is_pinned else {}
    packet = startup_message(_startup_pairs(settings, parameters, pinned))
    failure = UpstreamError(f"cannot connect to the server at {settings.address}")
    try:
        async with asyncio.timeout(settings.timeout or None):
            for encrypted in _attempts(settings):
                try:
                    upstream = await _open_session(settings, packet, encrypted)
                    return _insist(upstream, pinned)
                except _WorthAnother as other:
                    failure = other.failure
    except TimeoutError:
        raise UpstreamError(
            f"the server at {settings.address} did not answer within {settings.timeout:g} s"
        ) from None
    raise failure


async def query_rows(upstream: Upstream, text: bytes) -> list[tuple[bytes | None, ...]]:
    """The rows of one simple Query, before the session is handed over. Raises UpstreamError and ConnectionError."""
    upstream.pipe.write(frontend.query(text))
    rows: list[tuple[bytes | None, ...]] = []
    failure: UpstreamError | None = None
    try:
        while True:
            frame = await read_frame(upstream.pipe, MAX_LOGIN_MESSAGE_LENGTH)
            if frame.type_code == backend.DATA_ROW:
                rows.append(backend.decode_data_row(frame))
            elif frame.type_code == backend.ERROR_RESPONSE:
                found = backend.decode_diagnostics(frame)
                failure = UpstreamError(found.message.decode("utf-8", "replace"), found.sqlstate)
            elif frame.type_code == backend.READY_FOR_QUERY:
                break
    except ProtocolError as error:
        raise UpstreamError(str(error), sqlstate.PROTOCOL_VIOLATION) from error
    if failure is not None:
        raise failure
    return rows


async def cancel_upstream(settings: UpstreamSettings, process_id: int, secret_key: bytes) -> bool:
    """Ask the server to cancel what that session is doing; whether it took the request. Never raises but on cancel.

    True comes when the server has closed: then its signal is on its way, and a later query isn't hit by it.
    """
    try:
        async with asyncio.timeout(settings.timeout or None):
            for encrypted in _attempts(settings):
                try:
                    await _send_cancel(settings, cancel_request(process_id, secret_key), encrypted)
                except _WorthAnother as other:
                    logger.debug("cancel: %s", other.failure)  # as often as agents like to cancel
                else:
                    return True
    except (UpstreamError, ProtocolError, OSError, TimeoutError) as error:
        logger.warning("a cancel did not reach the server at %s: %s", settings.address, error or "timeout")
    return False


def client_refusal(error: UpstreamError, database: str) -> Refusal:
    """What a client is told when the server's login failed. Our role, host and password are no business of its."""
    state, text = sqlstate.CANNOT_CONNECT_NOW, "sqlwall cannot reach the database server now; try again later"
    if isinstance(error, LoginError):
        state = error.sqlstate
        if state == sqlstate.INVALID_CATALOG_NAME:
            text = f'database "{database}" does not exist'
        elif state == sqlstate.TOO_MANY_CONNECTIONS:
            text = "sorry, too many clients already"
        elif state == sqlstate.INSUFFICIENT_PRIVILEGE:
            text = f'permission denied for database "{database}"'
        elif state == sqlstate.INVALID_PARAMETER_VALUE:
            text = error.reason  # names a startup parameter and the value that the client gave for it
        elif state == sqlstate.CANNOT_CONNECT_NOW:
            text = "the database system is not accepting connections now; try again later"
        else:
            state, text = sqlstate.SYSTEM_ERROR, "sqlwall could not log in to the database server"
    elif error.sqlstate == sqlstate.INVALID_AUTHORIZATION_SPECIFICATION:
        state, text = sqlstate.SYSTEM_ERROR, "sqlwall could not log in to the database server"
    return Refusal(state, text, severity="FATAL")


class _WorthAnother(Exception):  # noqa: N818 - not an error yet
    """This attempt failed in a way that sslmode answers with another one."""

    def __init__(self, failure: UpstreamError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class _TlsUnavailableError(UpstreamError):
    """TLS was wanted and could not be had."""


def _attempts(settings: UpstreamSettings) -> tuple[bool, ...]:
    """Encrypted or not, in the order of libpq's sslmode."""
    if settings.context is None or settings.is_local or settings.sslmode == "disable":
        return (False,)
    if settings.sslmode == "allow":
        return (False, True)
    if settings.sslmode == "prefer":
        return (True, False)
    return (True,)


def _startup_pairs(
    settings: UpstreamSettings, parameters: Mapping[str, str], pinned: Mapping[str, str]
) -> list[tuple[bytes, bytes]]:
    database = settings.dbname or parameters.get("database") or settings.user
    given = {"user": settings.user, "database": database}
    given |= {name: value for name, value in parameters.items() if name not in ("user", "database")}
    given |= pinned
    return [(name.encode(), value.encode()) for name, value in given.items()]


async def _open_session(settings: UpstreamSettings, packet: bytes, encrypted: bool) -> Upstream:
    pipe = await _open_pipe(settings, encrypted)
    try:
        greeting = await Login(pipe, _secrets(settings, pipe)).run(packet)
        return _upstream(pipe, greeting)
    except LoginError as error:
        pipe.abort()
        if error.is_early and settings.sslmode in ("allow", "prefer"):
            raise _WorthAnother(error) from None
        raise
    except ProtocolError as error:
        pipe.abort()
        raise UpstreamError(str(error), sqlstate.PROTOCOL_VIOLATION) from error
    except OSError as error:
        pipe.abort()
        raise UpstreamError(f"the server at {settings.address} broke off the login: {error}") from error
    except BaseException:
        pipe.abort()
        raise


async def _send_cancel(settings: UpstreamSettings, packet: bytes, encrypted: bool) -> None:
    pipe = await _open_pipe(settings, encrypted)
    try:
        pipe.write(packet)
        with contextlib.suppress(ConnectionError):  # a reset is an end as well
            while await pipe.receive():
                pass
    finally:
        pipe.abort()


async def _open_pipe(settings: UpstreamSettings, encrypted: bool) -> Pipe:
    """A connection, encrypted if that is asked. Raises UpstreamError, or _WorthAnother if plain text may be tried."""
    pipe = await _connect(settings)
    if not encrypted:
        return pipe
    assert settings.context is not None
    try:
        await _start_tls(pipe, settings.context, settings.host)
    except _TlsUnavailableError as error:
        pipe.abort()
        if settings.sslmode == "prefer":
            raise _WorthAnother(error) from None
        raise
    except BaseException:
        pipe.abort()
        raise
    return pipe


async def _connect(settings: UpstreamSettings) -> Pipe:
    loop = asyncio.get_running_loop()
    try:
        if settings.is_local:
            path = settings.address.replace("@", "\0", 1) if settings.host[0] == "@" else settings.address
            _, pipe = await loop.create_unix_connection(Pipe, path)
            return pipe
        _, pipe = await loop.create_connection(Pipe, settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UpstreamError(f"cannot connect to the server at {settings.address}: {reason}") from error
    _tune(pipe)
    return pipe


def _tune(pipe: Pipe) -> None:
    """No waiting for full packets, and a dead server is noticed. Not every system knows every option."""
    connection = pipe.transport.get_extra_info("socket")
    idle, interval, count = KEEPALIVE
    options = [(socket.IPPROTO_TCP, "TCP_NODELAY", 1), (socket.SOL_SOCKET, "SO_KEEPALIVE", 1)]
    options += [(socket.IPPROTO_TCP, "TCP_KEEPIDLE", idle), (socket.IPPROTO_TCP, "TCP_KEEPINTVL", interval)]
    options += [(socket.IPPROTO_TCP, "TCP_KEEPCNT", count)]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(level, option, value)


async def _start_tls(pipe: Pipe, context: ssl.SSLContext, host: str) -> None:
    """SSLRequest, and the handshake after an S. Bytes behind the S were not encrypted: CVE-2021-23222."""
    pipe.write(ssl_request())
    try:
        answer = await pipe.read_exactly(1)
    except ConnectionError as error:
        raise _TlsUnavailableError(f"the server closed the connection when asked for TLS: {error}") from error
    if answer == b"N":
        raise _TlsUnavailableError("the server does not support TLS, but sslmode demands it")
    if answer != b"S":
        # An ErrorResponse of a server that is too old or too busy. It isn't authenticated: not read (CVE-2024-10977).
        raise _TlsUnavailableError("the server answered the request for TLS with an error")
    if pipe.take_rest():
        raise UpstreamError("the server sent unencrypted data after its answer to the request for TLS")
    try:
        await pipe.start_tls(context, server_side=False, server_hostname=host)
    except ConnectionError as error:
        raise _TlsUnavailableError(f"{error}") from error


def _secrets(settings: UpstreamSettings, pipe: Pipe) -> Secrets:
    encrypted = pipe.ssl_object
    der = encrypted.getpeercert(binary_form=True) if encrypted is not None else None
    binding = tls.channel_binding_hash(der) if der is not None else None
    return Secrets(settings.user, settings.password, binding, settings.channel_binding, settings.require_auth)


def _insist(upstream: Upstream, pinned: Mapping[str, str]) -> Upstream:
    for name, value in pinned.items():
        if upstream.parameter_status.get(name.encode()) != value.encode():
            upstream.pipe.abort()
            raise UpstreamError(f"the server did not take {name}={value}", sqlstate.PROTOCOL_VIOLATION)
    return upstream


def _upstream(pipe: Pipe, greeting: Greeting) -> Upstream:
    status = greeting.parameter_status
    return Upstream(
        pipe,
        status,
        greeting.process_id,
        greeting.secret_key,
        version_number(status.get(b"server_version", b"")),
        pipe.is_tls,
    )


def version_number(text: bytes) -> int:
    """``18.1 (Debian …)`` as libpq's PQserverVersion() gives it: 180001; also betas; 0 if there is none."""
    number = text.split(b" ")[0].decode("ascii", "replace")
    digits = [int(part) for part in number.split(".") if part.isdecimal()]
    if not digits:
        leading = ""
        for character in number:
            if not character.isdecimal():
                break
            leading += character
        digits = [int(leading)] if leading else []
    if not digits:
        return 0
    return digits[0] * 10_000 + (digits[1] if len(digits) > 1 else 0)
