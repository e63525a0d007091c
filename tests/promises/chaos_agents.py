"""Agents that read and write without pause, rightly and wrongly, and remember all that they were told."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlwall.wire import frontend
from tests.promises.chaos_drivers import PATIENCE, Driver, FailedError, Rude
from tests.promises.crash import LOST, Answer

#: What an allowed statement may end with all the same: the store is down, a cancel, others' writes.
EXCUSED = ("58000", "57014", "40001", "40P01")
EVENT = re.compile(r"event=([0-9A-Z]{26})")

#: Statements that must never reach the server. Each role of theirs would be let through by the server itself.
FORBIDDEN = (
    "DELETE FROM account",
    "UPDATE account SET filler = 'gone'",
    "DELETE FROM account WHERE 1 = 1",
    "UPDATE vault.secrets SET value = 'gone' WHERE id = 1",
    "INSERT INTO vault.secrets VALUES (9, 'new')",
    "DELETE FROM vault.secrets WHERE id = 2",
    "TRUNCATE vault.secrets",
    "SELECT vault.write_secret()",
    "WITH d AS (DELETE FROM account RETURNING id) SELECT count(*) FROM d",
    "SELECT nextval('vault.touched')",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SET default_transaction_read_only = off",
    "COPY vault.secrets FROM STDIN",
    "DO $$ BEGIN PERFORM vault.write_secret(); END $$",
    "CREATE TABLE public.mine (id int)",
    "SELECT pg_advisory_lock(1)",
    "EXPLAIN ANALYZE DELETE FROM account",
    "NOTIFY everybody",
    "PREPARE TRANSACTION 'later'",
    "CALL vault.write_all()",
)


@dataclass(slots=True)
class Seen:
    """A read that its client saw answered."""

    text: str
    at: float


@dataclass(slots=True)
class Shown:
    """A refusal that a client was shown. `is_late`: of a statement that ran, and hit a limit."""

    message: str
    at: float

    @property
    def is_late(self) -> bool:
        return self.message.startswith("sqlwall stopped")


@dataclass(slots=True)
class Probe:
    """A read whose verdict depends on the ruleset of the moment: when it was sent, when answered, and how."""

    sent: float
    answered: float
    is_allowed: bool


@dataclass(slots=True)
class Memory:
    """What one agent has sent and was told."""

    sent: set[str] = field(default_factory=set)
    answers: dict[str, Answer] = field(default_factory=dict)
    reads: list[Seen] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    events: dict[str, Shown] = field(default_factory=dict)
    excused: int = 0
    refused: int = 0
    calls: int = 0
    errors: list[str] = field(default_factory=list)


class Agent:
    """One session after the other through one driver, until told to stop."""

    def __init__(
        self, number: int, open_driver: Callable[[], Driver], seed: str, stop: threading.Event
    ) -> None:
        self.number = number
        self.memory = Memory()
        self.driver: Driver | None = None
        self._open = open_driver
        self._stop = stop
        self._chance = random.Random(f"{seed} {number}")
        self._tokens = (f"t-{number}-{place}-" for place in itertools.count())
        self._thread = threading.Thread(target=self._run, name=f"agent {number}", daemon=True)
        self.start = self._thread.start

    @property
    def answers(self) -> dict[str, Answer]:
        """What it was told of each transaction."""
        return self.memory.answers

    @property
    def errors(self) -> list[str]:
        """What should not have happened to it."""
        return self.memory.errors

    def join(self, seconds: float) -> bool:
        """Whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._hold_session()
        except BaseException as error:
            self.errors.append(f"agent {self.number}: {error!r}")
            raise

    def _hold_session(self) -> None:
        try:
            with self._bounded("connecting"):
                driver = self._open()
        except FailedError as error:
            self._judge(error, "connecting", (*EXCUSED, "53300"))
            self._stop.wait(0.05)
            return
        self.driver = driver
        try:
            for _ in range(self._chance.randrange(5, 200)):
                if self._stop.is_set() or driver.is_closed:
                    break
                self._act(driver)
        finally:
            self.driver = None
            with self._bounded("closing"):
                driver.close()

    def _act(self, driver: Driver) -> None:
        actions = (
            self._read,
            self._write,
            self._write_block,
            self._misbehave,
            self._probe,
            self._ask_too_much,
        )
        (action,) = self._chance.choices(actions, (30, 12, 12, 20, 15, 1))
        action(driver)

    @contextmanager
    def _bounded(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.memory.calls += 1
            took = time.monotonic() - started
            if took > PATIENCE:
                self.errors.append(f"agent {self.number}: {what} took {took:.1f} s")

    def _judge(self, error: FailedError, what: str, excused: tuple[str, ...] = EXCUSED) -> None:
        """Note an error of something that is allowed."""
        self._note_event(error)
        state = error.sqlstate
        if state is None or state.startswith(LOST) or state in excused or "retryable=true" in error.detail:
            self.memory.excused += 1
        else:
            self.errors.append(f"agent {self.number}: {what}: {state} {error} {error.detail}")

    def _note_event(self, error: FailedError) -> None:
        found = EVENT.search(error.detail)
        if found is not None and "rule=closed" not in error.detail:
            self.memory.events[found[1]] = Shown(str(error), time.time())

    # -- what it does

    def _read(self, driver: Driver) -> None:
        token = next(self._tokens)
        text = self._chance.choice(
            (
                f"SELECT '{token}' AS token, id, token FROM account WHERE id < 4",
                f"SELECT '{token}', count(*) FROM ledger",
                f"SELECT '{token}', repeat('x', 500) FROM generate_series(1, 2000)",
            )
        )
        self.memory.sent.add(text)
        try:
            with self._bounded(text):
                driver.run(text)
        except FailedError as error:
            self._judge(error, text)
        else:
            self.memory.reads.append(Seen(text, time.time()))

    def _probe(self, driver: Driver) -> None:
        text = f"SELECT '{next(self._tokens)}', value FROM shifting"
        self.memory.sent.add(text)
        sent = time.monotonic()
        try:
            with self._bounded(text):
                driver.run(text)
        except FailedError as error:
            if error.sqlstate == "42501":
                self._note_event(error)
                self.memory.probes.append(Probe(sent, time.monotonic(), is_allowed=False))
            else:
                self._judge(error, text)
        else:
            self.memory.probes.append(Probe(sent, time.monotonic(), is_allowed=True))

    def _ask_too_much(self, driver: Driver) -> None:
        text = f"SELECT '{next(self._tokens)}' FROM generate_series(1, 60000)"
        self.memory.sent.add(text)
        try:
            with self._bounded(text):
                driver.run(text)
        except FailedError as error:
            self._judge(error, text, (*EXCUSED, "53400"))
        else:
            self.errors.append(f"agent {self.number}: {text}: no limit")

    def _misbehave(self, driver: Driver) -> None:
        token = next(self._tokens)
        text = f"{self._chance.choice(FORBIDDEN)} /* forbidden {token} */"
        reading = f"SELECT '{token}', 1"
        self.memory.sent.add(reading)
        try:
            with self._bounded(text):
                if self._chance.random() < 0.3:
                    driver.run_block((reading, text))
                else:
                    driver.run(text)
        except FailedError as error:
            if error.sqlstate == "42501" and "retryable=false" in error.detail:
                self.memory.refused += 1
                self._note_event(error)
            else:
                self._judge(error, text)
        else:
            self.errors.append(f"agent {self.number}: {text}: let through")

    def _write(self, driver: Driver) -> None:
        token = next(self._tokens)
        number = self._chance.choice((0, self.number))
        text = f"UPDATE account SET token = '{token}' WHERE id = {number}"
        self._commit(token, (text,), lambda: driver.run(text))

    def _write_block(self, driver: Driver) -> None:
        token = next(self._tokens)
        enters, mine = f"INSERT INTO ledger VALUES ('{token}')", self.number
        texts = self._chance.choice(
            (
                (f"UPDATE parent SET token = '{token}' WHERE id = {mine}", enters),
                (enters, f"UPDATE child SET token = '{token}' WHERE parent = {mine}"),
                (
                    f"DELETE FROM child WHERE parent = {mine} AND token <> '{token}'",
                    f"INSERT INTO child SELECT g, {mine}, '{token}' FROM generate_series({3 * mine}, {3 * mine + 2}) g",
                    f"SELECT '{token}', count(*) FROM child",
                    enters,
                ),
            )
        )
        self._commit(token, texts, lambda: driver.run_block(texts))

    def _commit(self, token: str, texts: tuple[str, ...], run: Callable[[], None]) -> None:
        self.memory.sent.update(texts)
        self.answers[token] = Answer.LOST
        try:
            with self._bounded(texts[0]):
                run()
        except FailedError as error:
            self._judge(error, texts[0])
            state = error.sqlstate
            if state is not None and (state == "57014" or not state.startswith(LOST)):
                self.answers[token] = Answer.REFUSED
        else:
            self.answers[token] = Answer.COMMITTED


class Vandal(Agent):
    """An agent that breaks off: in the middle of messages, without reading, with a transaction open."""

    def __init__(self, number: int, dsn: str, seed: str, stop: threading.Event) -> None:
        super().__init__(number, lambda: None, seed, stop)  # type: ignore[arg-type,return-value]
        self._dsn = dsn

    def _hold_session(self) -> None:
        line = None
        try:
            with self._bounded("connecting"):
                line = Rude(self._dsn)
            self._chance.choice((self._tear, self._ignore, self._sip, self._leave_open, self._ask_and_go))(
                line
            )
        except FailedError as error:
            self._judge(error, "rude", (*EXCUSED, "53300"))
        finally:
            if line is not None:
                line.reset()
        self._stop.wait(self._chance.uniform(0, 0.1))

    def _tear(self, line: Rude) -> None:
        """Stop in the middle of a message, before it or behind it whole ones."""
        token = next(self._tokens)
        text = f"{self._chance.choice(FORBIDDEN)} /* forbidden {token} */"
        whole = frontend.query(text.encode())
        if self._chance.random() < 0.5:
            allowed = f"SELECT '{token}', 1"
            self.memory.sent.add(allowed)
            whole = frontend.parse(b"", allowed.encode()) + frontend.bind(b"", b"") + whole
        line.send(whole[: self._chance.randrange(1, len(whole))])

    def _ignore(self, line: Rude) -> None:
        """Ask for much and read nothing."""
        text = f"SELECT '{next(self._tokens)}', repeat('x', 4000) FROM generate_series(1, 20000)"
        self.memory.sent.add(text)
        line.send(frontend.query(text.encode()))
        self._stop.wait(self._chance.uniform(0, 2))

    def _sip(self, line: Rude) -> None:
        """Ask for much and read it slowly."""
        text = f"SELECT '{next(self._tokens)}', repeat('x', 4000) FROM generate_series(1, 5000)"
        self.memory.sent.add(text)
        line.send(frontend.query(text.encode()))
        end = time.monotonic() + self._chance.uniform(0, 2)
        while time.monotonic() < end and not self._stop.wait(0.02):
            line.read(self._chance.randrange(1, 20_000))

    def _leave_open(self, line: Rude) -> None:
        """A write in a block whose COMMIT never arrives whole: nothing of it may stay."""
        token = next(self._tokens)
        texts = ("BEGIN", f"INSERT INTO ledger VALUES ('{token}')")
        self.memory.sent.update(texts)
        for text in texts:
            line.send(frontend.query(text.encode()))
            line.read_until_ready()
        commit = frontend.query(b"COMMIT")
        line.send(commit[: self._chance.randrange(0, len(commit))])
        self.answers[token] = Answer.REFUSED

    def _ask_and_go(self, line: Rude) -> None:
        """A write, or what must not be one, and nobody who waits for the answer."""
        token = next(self._tokens)
        text = f"UPDATE account SET token = '{token}' WHERE id = {self.number}"
        if self._chance.random() < 0.5:
            self.answers[token] = Answer.LOST
            self.memory.sent.add(text)
        else:
            text = f"{self._chance.choice(FORBIDDEN)} /* forbidden {token} */"
        line.send(frontend.query(text.encode()))
        self._stop.wait(self._chance.choice((0.0, 0.005, 0.05)))
