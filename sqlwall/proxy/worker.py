"""One process that serves agents: its listener, its live rulesets and caches, and the clock of its connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy.engine import Engine

from sqlwall.config import Config
from sqlwall.errors import ConfigError, SqlwallError, StoreError, UpstreamError
from sqlwall.proxy import listener
from sqlwall.proxy.authenticate import AcceptSettings, AgentCredentials
from sqlwall.proxy.catalog import CatalogCache, parse_search_path
from sqlwall.proxy.connection import Connection
from sqlwall.proxy.counters import Counters
from sqlwall.proxy.guard import CaptureTexts, Keeper
from sqlwall.proxy.listener import CancelKey
from sqlwall.proxy.observe import Relay
from sqlwall.proxy.observer import Observers
from sqlwall.proxy.policy import FactsCache, Identity, SessionPolicy, VerdictCaches
from sqlwall.proxy.rate import Rate
from sqlwall.proxy.settle import settle_all
from sqlwall.proxy.share import ParseShare
from sqlwall.proxy.tasks import TaskSet
from sqlwall.proxy.tls import client_side_context
from sqlwall.proxy.upstream import Upstream, UpstreamSettings, cancel_upstream
from sqlwall.rules.loader import load
from sqlwall.rules.ruleset import Mode, Ruleset
from sqlwall.session import refusal as words
from sqlwall.session.refusal import Refusal
from sqlwall.sql.parse import IN_PROCESS_LIMIT
from sqlwall.sql.sandbox import ParserSandbox
from sqlwall.sql.statement import Statement, Unparsable
from sqlwall.store import agents
from sqlwall.store.audit import AuditLog
from sqlwall.store.chain import AuditKind, AuditRecord
from sqlwall.store.database import mock_seed
from sqlwall.store.snapshots import Snapshots
from sqlwall.wire import sqlstate

logger = logging.getLogger(__name__)

#: Seconds between two looks at the deadlines of all connections.
TICK = 0.1
#: Seconds between two looks at who has been revoked.
AGENTS_INTERVAL = 2.0
#: Seconds between two looks at snapshots whose outcome is not known.
SETTLE_INTERVAL = 30.0

#: Where a ruleset's text is found by its name or path.
FindRuleset = Callable[[str], tuple[str, str]]


@dataclass(slots=True)
class Link:
    """A running connection, and how its server session is cancelled."""

    process_id: int
    secret: bytes
    key: CancelKey
    catalog: CatalogCache | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that has been read and found good, and all that was made of it.

    `agent_rulesets` says by which ruleset each agent is bound; `known` holds the rulesets that there were before.
    """

    config: Config
    rulesets: dict[str, Ruleset]
    agent_rulesets: dict[str, str]
    known: frozenset[str]
    accept: AcceptSettings
    upstream: UpstreamSettings


class Worker:
    """One serving process. Made on its event loop; `start`, then `drain` and `stop`."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        audit: AuditLog,
        find_ruleset: FindRuleset,
        workers: int = 1,
    ) -> None:
        self.config = config
        self._workers = workers
        self.audit = audit
        self.counters = Counters()
        self.tasks = TaskSet()
        self._engine = engine
        self.upstream_settings = UpstreamSettings.of(config.upstream, config.timeouts.upstream_connect)
        self.accept_settings = AcceptSettings.of(
            config, client_side_context(config.tls), secret=mock_seed(self._engine)
        )
        self._find_ruleset = find_ruleset
        self._rulesets: dict[str, Ruleset] = {}
        self._agent_rulesets: dict[str, str] = {}
        self._facts = FactsCache(self.counters.parsing, self.counters.judging)
        self._verdicts = VerdictCaches()
        self._catalogs: dict[str, CatalogCache] = {}
        self._sandbox = ParserSandbox(config.timeouts.parse)
        self._shares: dict[str, ParseShare] = {}
        self.keeper = _keeper(config, engine, self.audit, self.tasks, self.counters)
        self.counters.watch("cache_hits", lambda: self._facts.hits)
        self.counters.watch("template_hits", lambda: self._facts.template_hits)
        self.counters.watch("cache_misses", lambda: self._facts.misses)
        self.counters.watch("sandbox_deaths", lambda: self._sandbox.deaths)
        self.counters.watch("sandbox_timeouts", lambda: self._sandbox.timeouts)
        self.counters.watch("parses_diverted", lambda: sum(s.diverted for s in self._shares.values()))
        self._connections: dict[Connection | Relay, Link] = {}
        self.ticking: set[Connection | Relay] = set()  # those for which the clock must run
        self._cancel_keys: dict[tuple[int, bytes], Connection | Relay] = {}
        self._reserved: dict[str, int] = {}
        self._rates: dict[str, Rate] = {}
        self._server: asyncio.Server | None = None
        self._is_draining = False
        self.forward_cancel: Callable[[int, bytes], None] | None = None

    # -- life

    async def start(self, listening: socket.socket | None = None) -> None:
        """Load the default ruleset and listen. Raises ConfigError for a bad ruleset, OSError for the address."""
        self._rulesets[self.config.ruleset.path] = self._load(self.config.ruleset.path)
        loop = asyncio.get_running_loop()
        if listening is not None:
            self._server = await loop.create_server(
                lambda: listener.Incoming(self), sock=listening, backlog=1024
            )
        else:
            self._server = await loop.create_server(
                lambda: listener.Incoming(self),
                self.config.listen.host,
                self.config.listen.port,
                backlog=1024,
                reuse_port=None,
            )
        self.tasks.spawn(self._tick(), "clock")
        self.tasks.spawn(self._watch_agents(), "watch of revoked agents")
        if self.keeper is not None:
            self.tasks.spawn(self._settle(self.keeper), "settling of snapshots")

    @property
    def address(self) -> tuple[str, int]:
        """Where agents connect."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    @property
    def is_draining(self) -> bool:
        """Whether new connections are turned away."""
        return self._is_draining

    def problems(self) -> list[str]:
        """Why sessions would be refused now."""
        return [
            f"catalog of {database}: not refreshed" for database, c in self._catalogs.items() if c.is_stale
        ]

    async def drain(self, seconds: float) -> None:
        """Accept nobody new; let open transactions end, for at most this long."""
        self._is_draining = True
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.drain()
        waiting = [connection.ended for connection in connections if not connection.ended.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)

    async def stop(self) -> None:
        """End everything that still runs."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.end(words.ending(sqlstate.ADMIN_SHUTDOWN, "sqlwall is shutting down"), "stopped")
        waiting = [connection.ended for connection in self._connections if not connection.ended.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=5)
        await self.tasks.close()
        for catalog in self._catalogs.values():
            await catalog.close()
        await self._sandbox.close()
        if self.keeper is not None:
            await self.keeper.observers.close()

    def prepare(self, config: Config) -> Prepared:
        """Read what can be changed while running, and change nothing. Raises ConfigError if any of it is bad."""
        own = {agent.name: agent.ruleset for agent in agents.list_agents(self._engine)}
        bound = {agent: own.get(agent) or config.ruleset.path for agent in self._agent_rulesets}
        return Prepared(
            replace(config, listen=self.config.listen, metrics=self.config.metrics),
            {name: self._load(name) for name in {config.ruleset.path, *bound.values()}},
            bound,
            frozenset(self._rulesets),
            AcceptSettings.of(config, client_side_context(config.tls), secret=mock_seed(self._engine)),
            UpstreamSettings.of(config.upstream, config.timeouts.upstream_connect),
        )

    def take_over(self, prepared: Prepared) -> None:
        """Let it hold from now on, for open sessions too. What a login brought in meanwhile stays."""
        bound = {name for agent, name in self._agent_rulesets.items() if agent not in prepared.agent_rulesets}
        late = {
            name: found
            for name, found in self._rulesets.items()
            if name not in prepared.known or name in bound
        }
        self._rulesets = late | prepared.rulesets
        self._agent_rulesets |= prepared.agent_rulesets
        self.accept_settings = prepared.accept
        self.upstream_settings = prepared.upstream
        self.config = prepared.config
        self._sandbox.deadline = prepared.config.timeouts.parse
        self._change_rates()

    def _load(self, name: str) -> Ruleset:
        text, file = self._find_ruleset(name)
        return load(text, file)

    # -- what logins need

    async def find_agent(self, name: str) -> AgentCredentials | None:
        """The agent of that name, if it may log in. Raises StoreError."""
        found = await asyncio.to_thread(agents.find, self._engine, name)
        if found is None or not found.is_active:
            return None
        ruleset = found.ruleset or self.config.ruleset.path
        if ruleset not in self._rulesets:
            self._rulesets[ruleset] = await asyncio.to_thread(self._load, ruleset)
        self._agent_rulesets[name] = ruleset
        is_observed = self._rulesets[ruleset].mode is not Mode.ENFORCE
        return AgentCredentials(name, found.scram(), found.connection_limit, is_observed)

    def ruleset_of(self, agent: str) -> Ruleset:
        """The ruleset that binds the agent now."""
        return self._rulesets[self._agent_rulesets.get(agent, self.config.ruleset.path)]

    def mode_of(self, agent: str) -> Mode:
        """How much it binds."""
        return self.ruleset_of(agent).mode

    def reserve(self, agent: AgentCredentials) -> Refusal | None:
        """Count a session in, or say why not."""
        if self._is_draining:
            return words.ending(sqlstate.CANNOT_CONNECT_NOW, "sqlwall is shutting down")
        limits = self.config.limits
        if sum(self._reserved.values()) >= self._share(limits.max_connections):
            return words.ending(sqlstate.TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        bound = limits.per_agent_connections if agent.connection_limit is None else agent.connection_limit
        if self._reserved.get(agent.name, 0) >= self._share(bound):
            return words.ending(
                sqlstate.TOO_MANY_CONNECTIONS, f'too many connections for agent "{agent.name}"'
            )
        self._reserved[agent.name] = self._reserved.get(agent.name, 0) + 1
        return None

    def _share(self, limit: int) -> int:
        """This worker's part of a limit: workers do not tell each other whom they serve."""
        return -(-limit // self._workers)

    def release(self, agent: str) -> None:
        """A session is over, or never began."""
        left = self._reserved.get(agent, 0) - 1
        if left > 0:
            self._reserved[agent] = left
        else:
            self._reserved.pop(agent, None)

    def rate_of(self, agent: str) -> Rate | None:
        """How many statements the agent may send; None where that is not limited."""
        limits = self.config.limits
        if not limits.per_agent_rate:
            return None
        found = self._rates.get(agent)
        if found is None:
            found = self._rates[agent] = Rate(limits.per_agent_rate, limits.per_agent_burst, self._workers)
        return found

    def _change_rates(self) -> None:
        """Other limits hold for open sessions too; what an agent has sent stays counted."""
        limits = self.config.limits
        if not limits.per_agent_rate:
            self._rates.clear()
        for rate in self._rates.values():
            rate.change(limits.per_agent_rate, limits.per_agent_burst, self._workers)
        for connection in self._connections:
            if isinstance(connection, Connection):
                connection.rate = self.rate_of(connection.agent)

    async def catalog_of(self, database: str) -> CatalogCache:
        """What is known of a database; loaded before its first session is admitted."""
        catalog = self._catalogs.get(database)
        if catalog is None:
            catalog = self._catalogs[database] = CatalogCache(
                self.upstream_settings.conninfo(database), database
            )
        await catalog.acquire()
        return catalog

    def release_catalog(self, catalog: CatalogCache) -> None:
        """A session of its database has ended."""
        self.tasks.spawn(catalog.release(), "release of a catalog")

    def new_policy(
        self, identity: Identity, search_path: str, catalog: CatalogCache, *, is_standby: bool
    ) -> SessionPolicy:
        """The policy of a new session."""
        return SessionPolicy(
            identity,
            parse_search_path(search_path),
            self._facts,
            self._verdicts,
            partial(self.ruleset_of, identity.agent),
            catalog,
            is_standby=is_standby,
            can_cover=self.keeper is not None,
            share=self._shares.setdefault(identity.agent, ParseShare()),
        )

    def register(
        self,
        connection: Connection | Relay,
        upstream: Upstream,
        key: CancelKey,
        catalog: CatalogCache | None,
    ) -> None:
        """A connection is about to run; its catalog is released when it ends."""
        self._connections[connection] = Link(upstream.process_id, upstream.secret, key, catalog)
        if isinstance(connection, Connection):
            connection.rate = self.rate_of(connection.agent)
        else:
            self.ticking.add(connection)
        self._cancel_keys[key.process_id, key.secret] = connection
        self.counters.session_started(connection.agent)

    # -- what connections need

    def ended(self, connection: Connection | Relay) -> None:
        """See `connection.Shared`."""
        self.ticking.discard(connection)
        link = self._connections.pop(connection, None)
        if link is not None:
            if link.catalog is not None:
                self.release_catalog(link.catalog)
            self._cancel_keys.pop((link.key.process_id, link.key.secret), None)
            self.release(connection.agent)
            self.counters.session_closed(connection.agent)

    async def cancel_upstream(self, connection: Connection | Relay) -> None:
        """See `connection.Shared`."""
        link = self._connections.get(connection)
        if link is not None:
            await cancel_upstream(self.upstream_settings, link.process_id, link.secret)

    async def analyze_large(self, text: bytes, agent: str) -> tuple[Statement, ...] | Unparsable:
        """See `connection.Shared`."""
        return await self._sandbox.analyze(text, agent, is_patient=len(text) <= IN_PROCESS_LIMIT)

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """A client's CancelRequest; one that no session of ours answers to goes to the other workers."""
        self.counters.cancel()
        if not await self.cancel_here(process_id, secret) and self.forward_cancel is not None:
            self.forward_cancel(process_id, secret)

    async def cancel_here(self, process_id: int, secret: bytes) -> bool:
        """Cancel what the session of this key is doing; False if none of ours has it."""
        connection = self._cancel_keys.get((process_id, secret))
        if connection is None:
            return False
        await self.cancel_upstream(connection)
        if isinstance(connection, Connection):
            try:
                await connection.cancel_lane()
            except UpstreamError as error:
                logger.warning("a cancel of %s did not reach the observer: %s", connection.agent, error)
        return True

    def note(self, kind: AuditKind, *, reason: str, client: str) -> None:
        """Something that belongs to no session."""
        self.audit.note(AuditRecord(kind, reason=reason, client=client))

    # -- the clock

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            idle = self.config.timeouts.idle_in_transaction
            for connection in list(self.ticking):
                if not connection.expire(now, idle):
                    self.ticking.discard(connection)

    async def _settle(self, keeper: Keeper) -> None:
        """Find out what became of transactions whose COMMIT was never seen answered, those of earlier runs first."""
        while True:
            try:
                await settle_all(keeper.snapshots, keeper.observers)
            except StoreError as error:
                logger.error("snapshots are not settled: %s", error)
            await asyncio.sleep(SETTLE_INTERVAL)

    async def _watch_agents(self) -> None:
        """End the sessions of agents that have been revoked since they logged in."""
        while True:
            await asyncio.sleep(AGENTS_INTERVAL)
            if not self._connections:
                continue
            try:
                known = await asyncio.to_thread(agents.list_agents, self._engine)
            except StoreError as error:
                logger.error("revoked agents are not known: %s", error)
                continue
            active = {
                agent.name: agent.ruleset or self.config.ruleset.path for agent in known if agent.is_active
            }
            await self._apply_agents(active)

    async def _apply_agents(self, active: dict[str, str]) -> None:
        for connection in list(self._connections):
            ruleset = active.get(connection.agent)
            if ruleset is None:
                message = f'agent "{connection.agent}" has been revoked'
                connection.end(words.ending(sqlstate.ADMIN_SHUTDOWN, message), "revoked")
            elif ruleset != self._agent_rulesets.get(connection.agent):
                await self._switch_ruleset(connection.agent, ruleset)

    async def _switch_ruleset(self, agent: str, ruleset: str) -> None:
        """An agent's ruleset was changed: it holds for its open sessions too."""
        try:
            if ruleset not in self._rulesets:
                self._rulesets[ruleset] = await asyncio.to_thread(self._load, ruleset)
        except (ConfigError, SqlwallError) as error:
            logger.error("ruleset %s of %s is not used: %s", ruleset, agent, error)
            return
        self._agent_rulesets[agent] = ruleset


def _keeper(
    config: Config, engine: Engine, audit: AuditLog, tasks: TaskSet, counters: Counters
) -> Keeper | None:
    """What takes snapshots; None where the configuration wants none: then no write that needs one is let through."""
    if not config.snapshots.url:
        return None
    settings = UpstreamSettings.of(config.observing, config.timeouts.upstream_connect)
    snapshots = Snapshots.of(config.snapshots, engine)
    return Keeper(Observers(settings.conninfo), snapshots, audit, CaptureTexts(), tasks, counters)
