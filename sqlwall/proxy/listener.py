"""From an accepted socket to a running connection: the agent's login, the wall's own login upstream, the hand-over."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlwall.errors import AuthenticationError, SqlwallError, StoreError, UpstreamError
from sqlwall.proxy.authenticate import Accepted, CancelAsked, accept_client
from sqlwall.proxy.catalog import CatalogCache
from sqlwall.proxy.connection import Connection
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.observe import Relay
from sqlwall.proxy.pipe import Pipe
from sqlwall.proxy.policy import Identity, SessionPolicy
from sqlwall.proxy.record import Recorder
from sqlwall.proxy.startup import LoginRefusedError
from sqlwall.proxy.upstream import Upstream, client_refusal, connect_upstream, query_rows
from sqlwall.rules.ruleset import Mode, Ruleset
from sqlwall.rules.verdict import Action
from sqlwall.session import refusal as words
from sqlwall.session.ledger import WATCHED_PARAMETERS
from sqlwall.session.refusal import Refusal
from sqlwall.sql.statement import Effect, Operation, Statement
from sqlwall.store.chain import AuditKind
from sqlwall.store.stamp import new_ulid
from sqlwall.wire import sqlstate
from sqlwall.wire.backend import TransactionStatus, backend_key_data, parameter_status, ready_for_query

if TYPE_CHECKING:
    from sqlwall.proxy.worker import Worker

logger = logging.getLogger(__name__)

_AUTHENTICATION_OK = b"R\0\0\0\x08\0\0\0\0"
#: Asked once per session, before the client's first statement: what no ParameterStatus tells.
_SESSION_QUERY = (
    b"SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('default_transaction_read_only'),"
    b" pg_catalog.current_setting('standard_conforming_strings'), pg_catalog.current_setting('track_counts'),"
    b" session_user, pg_catalog.current_setting('server_encoding')"
)
#: Under any other the server may take for one name what is two in UTF-8 (U+00A6 and U+FFE4 are one in EUC_JP), cuts
#: a long one elsewhere, and folds the case of letters that are not ASCII: what is judged would not be what runs.
_ENCODINGS = ("UTF8", "SQL_ASCII")
_READ_ONLY = b"default_transaction_read_only"


@dataclass(frozen=True, slots=True)
class CancelKey:
    """What a client must show to cancel: the wall's own, never the server's."""

    process_id: int
    secret: bytes


class Incoming(Pipe):
    """A client's socket that has just been accepted."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._worker.tasks.spawn(serve(self._worker, self), "login")


async def serve(worker: Worker, pipe: Pipe) -> None:
    """One client, from its first byte until its connection has been handed over or refused."""
    counters = worker.counters
    counters.connection_opened()
    try:
        async with asyncio.timeout(worker.config.timeouts.login or None):
            accepted = await accept_client(pipe, worker.accept_settings, worker.find_agent)
        if isinstance(accepted, CancelAsked):
            await worker.cancel(accepted.process_id, accepted.secret)
            pipe.close()
            return
        await _admit(worker, accepted)
    except AuthenticationError:
        counters.auth_failure()
        worker.note(AuditKind.LOGIN, reason="login refused", client=peer_of(pipe))
        pipe.close()
    except TimeoutError:
        counters.auth_failure()
        pipe.abort()
    except SqlwallError as error:
        # The client has been told.
        logger.info("client %s: %s", peer_of(pipe), error)
        pipe.close()
    except OSError as error:
        logger.info("client %s: %s", peer_of(pipe), error)
        pipe.close()
    except Exception:
        logger.exception("login of %s failed", peer_of(pipe))
        pipe.abort()


async def _admit(worker: Worker, accepted: Accepted) -> None:
    """An agent that has proven who it is: count it, log in upstream for it, and start."""
    agent = accepted.agent
    pipe = accepted.pipe
    refusal = worker.reserve(agent) if _is_served(worker, accepted) else _other_database(worker)
    if refusal is not None:
        _say(pipe, refusal)
        return
    is_started = False
    try:
        ruleset = worker.ruleset_of(agent.name)
        upstream = await _log_in(worker, accepted, ruleset)
        try:
            await _start(worker, accepted, upstream, ruleset)
            is_started = True
        finally:
            if not is_started:
                upstream.pipe.abort()
    except LoginRefusedError as error:
        logger.info("login of %s refused: %s", agent.name, error)
        _say(pipe, error.refusal)
    except UpstreamError as error:
        logger.error("server refused %s: %s", agent.name, error)
        worker.counters.upstream_failure()
        _say(pipe, client_refusal(error, accepted.parameters.get("database", "")))
    except (StoreError, SqlwallError) as error:
        logger.error("login of %s refused, closed: %s", agent.name, error)
        _say(pipe, words.login_closed(new_ulid()).as_fatal())
    finally:
        if not is_started:
            worker.release(agent.name)


def _is_served(worker: Worker, accepted: Accepted) -> bool:
    """Whether the wall stands before the database that the client asks for."""
    only = worker.upstream_settings.dbname
    return not only or accepted.parameters["database"] == only


def _other_database(worker: Worker) -> Refusal:
    only = worker.upstream_settings.dbname
    return words.ending(
        sqlstate.INSUFFICIENT_PRIVILEGE, f'sqlwall serves database "{only}" only [other-database]'
    )


def _say(pipe: Pipe, refusal: Refusal) -> None:
    pipe.write(refusal.as_fatal().to_bytes())
    pipe.close()


async def _log_in(worker: Worker, accepted: Accepted, ruleset: Ruleset) -> Upstream:
    parameters = dict(accepted.parameters)
    parameters.pop("user", None)
    if ruleset.mode is Mode.ENFORCE:
        parameters["default_transaction_read_only"] = "on"
    is_pinned = ruleset.mode is Mode.ENFORCE
    return await connect_upstream(worker.upstream_settings, parameters, is_pinned=is_pinned)


async def _start(worker: Worker, accepted: Accepted, upstream: Upstream, ruleset: Ruleset) -> None:
    rows = await query_rows(upstream, _SESSION_QUERY)
    search_path, read_only, conforming, counting, user, encoding = [
        value.decode() if value else "" for value in rows[0]
    ]
    database = worker.upstream_settings.dbname or accepted.parameters["database"]
    labels = SessionLabels(accepted.agent.name, new_ulid(), peer_of(accepted.pipe), database)
    recorder = Recorder(worker.audit, worker.counters, labels, worker.config.audit.statement_bytes)
    key = new_cancel_key(accepted.protocol, upstream.process_id)
    identity = Identity(
        accepted.agent.name,
        user,
        database,
        accepted.parameters.get("application_name", ""),
        upstream.server_major,
    )
    if ruleset.mode is not Mode.ENFORCE:
        await _start_relay(worker, accepted, upstream, recorder, key, identity, search_path)
        return
    if (read_only, conforming, counting) != ("on", "on", "on"):
        raise UpstreamError(
            "the server session is not as it must be: default_transaction_read_only, standard_conforming_strings and "
            f"track_counts are {read_only}, {conforming}, {counting}; all have to be on",
            sqlstate.SYSTEM_ERROR,
        )
    if encoding not in _ENCODINGS:
        raise LoginRefusedError(
            words.ending(
                sqlstate.FEATURE_NOT_SUPPORTED,
                f"sqlwall does not serve databases in encoding {encoding}, only those in UTF8",
            )
        )
    catalog = await worker.catalog_of(database)
    try:
        standby = upstream.parameter_status.get(b"in_hot_standby") == b"on"
        policy = worker.new_policy(identity, search_path, catalog, is_standby=standby)
        policy.refresh()
        _judge_search_path(policy, accepted)
        _check_alive(accepted, upstream)
    except BaseException:
        worker.release_catalog(catalog)
        raise
    limits, timeouts = worker.config.limits, worker.config.timeouts
    connection = Connection(
        worker,
        policy,
        recorder,
        limits.segment_bytes,
        timeouts.statement,
        worker.keeper,
        timeouts.cancel_grace,
    )
    connection.watched = {
        name: value for name, value in upstream.parameter_status.items() if name in WATCHED_PARAMETERS
    }
    worker.register(connection, upstream, key, catalog)
    recorder.note(AuditKind.LOGIN, reason=f"ruleset {ruleset.name}")
    _hand_over(accepted, upstream, connection, _greeting(upstream.parameter_status, key, is_enforced=True))


def _check_alive(accepted: Accepted, upstream: Upstream) -> None:
    """Nobody may have left while we were asking: a session that never runs would never end. Raises ConnectionError."""
    if accepted.pipe.transport.is_closing() or upstream.pipe.transport.is_closing():
        raise ConnectionResetError("the connection was lost during the login")


def _judge_search_path(policy: SessionPolicy, accepted: Accepted) -> None:
    """A search_path in the startup packet is a SET like any other. Raises LoginRefusedError."""
    value = accepted.parameters.get("search_path")
    if value is None:
        return
    effect = Effect(Operation.SET, subject="search_path", value=value)
    verdict = policy.judge(Statement("SET", (effect,), 0, 0))
    if verdict.action is not Action.ALLOW:
        raise LoginRefusedError(words.denied(verdict, new_ulid()).as_fatal())


async def _start_relay(
    worker: Worker,
    accepted: Accepted,
    upstream: Upstream,
    recorder: Recorder,
    key: CancelKey,
    identity: Identity,
    search_path: str,
) -> None:
    """Modes observe and warn: without a catalog there is no record of verdicts, but everything passes all the same."""
    policy: SessionPolicy | None = None
    catalog: CatalogCache | None = None
    try:
        catalog = await worker.catalog_of(identity.database)
        policy = worker.new_policy(identity, search_path, catalog, is_standby=False)
        policy.refresh()
    except SqlwallError as error:
        logger.warning("session of %s is not judged: %s", identity.agent, error)
    try:
        _check_alive(accepted, upstream)
    except ConnectionError:
        if catalog is not None:
            worker.release_catalog(catalog)
        raise
    relay = Relay(worker, policy, recorder, lambda: worker.ruleset_of(identity.agent))
    worker.register(relay, upstream, key, catalog)
    recorder.note(AuditKind.LOGIN, reason="not enforced")
    _hand_over(accepted, upstream, relay, _greeting(upstream.parameter_status, key, is_enforced=False))


def _hand_over(
    accepted: Accepted, upstream: Upstream, connection: Connection | Relay, greeting: bytes
) -> None:
    """From here on callbacks: first the server's side, so that nothing a client sends finds it missing."""
    client_side, server_side = connection.start(accepted.pipe.transport, upstream.pipe.transport)
    accepted.pipe.write(greeting)
    rest = upstream.pipe.hand_over(server_side)
    if rest:
        connection.receive_server(rest)
    rest = accepted.pipe.hand_over(client_side)
    if rest:
        connection.receive_client(rest)


def _greeting(parameters: Mapping[bytes, bytes], key: CancelKey, *, is_enforced: bool) -> bytes:
    """What the server says behind a login, with our own cancel key. The read-only lock is shown as `off`: it stands for
    what the agent may do in a transaction, and libpq's target_session_attrs=read-write asks for it (DESIGN 5.1).
    """
    parts = [_AUTHENTICATION_OK]
    for name, value in parameters.items():
        parts.append(parameter_status(name, b"off" if is_enforced and name == _READ_ONLY else value))
    parts.append(backend_key_data(key.process_id, key.secret))
    parts.append(ready_for_query(TransactionStatus.IDLE))
    return b"".join(parts)


def new_cancel_key(protocol: tuple[int, int], process_id: int) -> CancelKey:
    """A secret of our own, 4 bytes for protocol 3.0, 32 for 3.2; the process id is the server's."""
    size = 32 if protocol >= (3, 2) else 4
    return CancelKey(process_id, secrets.token_bytes(size))


def peer_of(pipe: Pipe) -> str:
    """Where the client is: address and port, or the socket's path."""
    if pipe.transport.is_closing():
        return "gone"  # so is its address
    found = pipe.transport.get_extra_info("peername")
    return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else str(found or "local")
