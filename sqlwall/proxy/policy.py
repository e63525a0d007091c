"""What one session's texts mean and whether they are allowed: caches over parser, catalog and the live ruleset.

Facts depend on nothing but the text's exact bytes, and are shared by all sessions of a worker. Verdicts depend on who
asks, the ruleset, the catalog and every search_path that the session may have; they are kept only beside those.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sqlwall.proxy.catalog import parse_search_path
from sqlwall.proxy.counters import Histogram
from sqlwall.proxy.share import SMALL_TEXT, ParseShare
from sqlwall.rules.context import CatalogView, Context
from sqlwall.rules.judge import judge, judge_unparsable
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.verdict import Verdict
from sqlwall.session.examine import Facts
from sqlwall.session.refusal import Refusal, too_many_paths
from sqlwall.sql.parse import TooLarge, analyze_text
from sqlwall.sql.statement import Statement, Unparsable
from sqlwall.sql.template import is_template, key_of

#: Texts above this are parsed each time: a cached one would crowd out many others.
CACHED_TEXT_LIMIT = 8192
#: Facts cost about twenty times their text (MECHANICS, section 10).
FACTS_CACHE_BYTES = 4 * 1024 * 1024
#: Verdicts of one scope, and scopes of one worker.
VERDICTS_LIMIT = 4_000
SCOPES_LIMIT = 64
#: Different values of search_path in one session.
PATHS_LIMIT = 16

#: The strictest verdict is kept with the statement it is about, so that an id is never one of another statement.
Verdicts = dict[int, tuple[Statement, Verdict]]
Path = tuple[str, ...]


class FactsCache:
    """Facts by exact bytes, never by a hash or fingerprint. Two generations: what is not asked for again is dropped.

    A text that is new, but differs from others in plain literals only, has theirs (`sql.template`). Which are such is
    found out when a key comes for the second time: `_keys` says of each that came whether it is still to be asked.
    """

    __slots__ = (
        "_bytes", "_key_bytes", "_keys", "_limit", "_old", "_templates", "_young", "hits", "judging", "misses",
        "parsing", "template_hits",
    )  # fmt: skip

    def __init__(self, parsing: Histogram, judging: Histogram, limit: int = FACTS_CACHE_BYTES) -> None:
        self.parsing = parsing
        self.judging = judging
        self._limit = limit // 2
        self._young: dict[bytes, Facts] = {}
        self._old: dict[bytes, Facts] = {}
        self._bytes = 0
        self._templates: dict[bytes, Facts] = {}
        self._keys: dict[bytes, bool] = {}
        self._key_bytes = 0
        self.hits = 0
        self.template_hits = 0
        self.misses = 0

    def knows(self, text: bytes) -> bool:
        """Whether its facts are here."""
        return text in self._young or text in self._old

    def find(self, text: bytes) -> Facts | None:
        """Facts of the text; None while only the sandboxed parser may read it."""
        facts = self._young.get(text)
        if facts is not None:
            self.hits += 1
            return facts
        facts = self._old.get(text)
        if facts is not None:
            self.hits += 1
        else:
            key = key_of(text)
            facts = self._templates.get(key) if key is not None else None
            if facts is not None:
                self.template_hits += 1
            else:
                facts = self._read(text)
                if facts is None:
                    return None
                if key is not None:
                    self._consider(key, text, facts)
        self.add(text, facts)
        return facts

    def _read(self, text: bytes) -> Facts | None:
        self.misses += 1
        started = time.perf_counter()
        found = analyze_text(text)
        self.parsing.observe(time.perf_counter() - started)
        return None if isinstance(found, TooLarge) else found

    def _consider(self, key: bytes, text: bytes, facts: Facts) -> None:
        """Whether texts of this key need no parse from here on."""
        is_open = self._keys.get(key)
        if is_open is None:
            self._key_bytes += len(key) + 64
            if self._key_bytes > self._limit:
                self._keys.clear()
                self._templates.clear()
                self._key_bytes = len(key) + 64
        elif is_open and isinstance(facts, tuple) and is_template(text):
            self._templates[key] = facts
        self._keys[key] = is_open is None

    def add(self, text: bytes, facts: Facts) -> None:
        """Keep facts that are known."""
        if len(text) > CACHED_TEXT_LIMIT:
            return
        self._bytes += len(text) + 64
        if self._bytes > self._limit:
            self._old = self._young
            self._young = {}
            self._bytes = len(text) + 64
        self._young[text] = facts


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `user` is the role that the wall logged in as, which `$user` in a search_path stands for."""

    agent: str
    user: str
    database: str
    application_name: str
    server_major: int


class Catalog(Protocol):
    """What policies need of the catalog cache."""

    @property
    def generation(self) -> int:
        """Grows with every change of what the catalog says."""

    def bind(self, search_path: Path, user: str) -> CatalogView:
        """The database under one search_path. Raises StoreError if too little is known of it."""


class VerdictCaches:
    """The verdicts of each scope. Shared by a worker's sessions, so that a hundred of one agent judge a text once."""

    __slots__ = ("_scopes",)

    def __init__(self) -> None:
        self._scopes: dict[tuple[object, ...], Verdicts] = {}

    def scope(self, key: tuple[object, ...]) -> Verdicts:
        """The verdicts under one key, which names all that they depend on."""
        found = self._scopes.get(key)
        if found is None:
            if len(self._scopes) >= SCOPES_LIMIT:
                self._scopes.clear()
            found = self._scopes[key] = {}
        return found


class SessionPolicy:
    """The policy of one session, asked by `session.examine`.

    `paths` are all the values that search_path may have now: the one of the start, to which RESET returns, and every
    one that an allowed statement set. Each statement is judged under all of them, and the strictest verdict holds.
    """

    def __init__(
        self,
        identity: Identity,
        search_path: Path,
        facts: FactsCache,
        caches: VerdictCaches,
        ruleset: Callable[[], Ruleset],
        catalog: Catalog,
        *,
        is_standby: bool = False,
        can_cover: bool = False,
        share: ParseShare | None = None,
    ) -> None:
        self.identity = identity
        self._share = share
        self._facts = facts
        self._caches = caches
        self._live_ruleset = ruleset
        self._catalog = catalog
        self._is_standby = is_standby
        self._can_cover = can_cover
        self._paths: tuple[Path, ...] = (search_path,)
        self._large: dict[bytes, Facts] = {}
        self.ruleset = ruleset()
        self._generation = -1
        self._contexts: tuple[Context, ...] = ()
        self._verdicts: Verdicts = {}

    def refresh(self) -> None:
        """Judge from here on by the ruleset and catalog of now. Raises StoreError if the catalog is not known."""
        if (
            self._large
        ):  # a new segment: cache and memory are bounded, and what could not be read may be tried again
            text, facts = self._large.popitem()
            self._large = {text: facts} if isinstance(facts, tuple) else {}
        ruleset = self._live_ruleset()
        generation = self._catalog.generation
        if ruleset is self.ruleset and generation == self._generation:
            return
        self.ruleset = ruleset
        self._rebind(generation)

    def _rebind(self, generation: int) -> None:
        identity = self.identity
        self._contexts = tuple(
            Context(
                agent=identity.agent,
                user=identity.user,
                database=identity.database,
                catalog=self._catalog.bind(path, identity.user),
                search_path=path,
                server_major=identity.server_major,
                application_name=identity.application_name,
            )
            for path in self._paths
        )
        self._generation = generation
        self._verdicts = self._caches.scope(
            (id(self._catalog), generation, self.ruleset.digest, self.ruleset.name, identity, self._paths)
        )

    @property
    def context(self) -> Context:
        """Who asks and where, under the search_path of the session's start."""
        return self._contexts[0]

    @property
    def contexts(self) -> tuple[Context, ...]:
        """The same under every search_path that the session may have."""
        return self._contexts

    def facts(self, text: bytes) -> Facts | None:
        """See `session.examine.Policy`."""
        if len(text) <= SMALL_TEXT:
            return self._facts.find(text)
        large = self._large.get(text) if self._large else None
        if large is not None:
            return large
        return self._facts.find(text) if self._share is None else self._share.find(text, self._facts)

    def learn(self, text: bytes, facts: Facts) -> None:
        """What the sandboxed parser read; kept to the end of its segment, which may hold several such texts."""
        self._large[text] = facts
        self._facts.add(text, facts)

    def judge(self, statement: Statement) -> Verdict:
        """See `session.examine.Policy`."""
        found = self._verdicts.get(id(statement))
        if found is not None and found[0] is statement:
            return found[1]
        started = time.perf_counter()
        verdict = judge(statement, self._contexts[0], self.ruleset)
        for context in self._contexts[1:]:
            other = judge(statement, context, self.ruleset)
            if (other.action, other.snapshot) > (verdict.action, verdict.snapshot):
                verdict = other
        self._facts.judging.observe(time.perf_counter() - started)
        if len(self._verdicts) >= VERDICTS_LIMIT:
            self._verdicts.clear()
        self._verdicts[id(statement)] = (statement, verdict)
        return verdict

    def judge_unparsable(self, fault: Unparsable) -> Verdict:
        """See `session.examine.Policy`."""
        return judge_unparsable(fault, self.ruleset)

    def permits_writes(self) -> bool:
        """See `session.examine.Policy`."""
        return self.ruleset.permits_writes and not self._is_standby

    def can_cover(self) -> bool:
        """See `session.examine.Policy`."""
        return self._can_cover

    def expect_setting(self, name: str, value: str | None) -> Refusal | None:
        """See `session.examine.Policy`."""
        if name.lower() != "search_path" or value is None:
            return None
        path = parse_search_path(value)
        if path in self._paths:
            return None
        if len(self._paths) >= PATHS_LIMIT:
            return too_many_paths()
        self._paths = (*self._paths, path)
        self._rebind(self._generation)
        return None
