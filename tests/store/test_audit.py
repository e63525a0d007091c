"""The record is durable when it says so, one chain per process, and an outage leaves no gap and no silence."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from sqlwall.errors import StoreError
from sqlwall.store.audit import AuditLog, AuditState, AuditWriter
from sqlwall.store.chain import AuditKind, AuditRecord
from sqlwall.store.database import open_store, reading, writing
from sqlwall.store.schema import AUDIT, HEADS, SETTINGS
from sqlwall.store.verify import tail, verify

PATIENCE = 30.0


def record(reason: str = "", agent: str = "bot") -> AuditRecord:
    return AuditRecord(AuditKind.STATEMENT, agent=agent, reason=reason)


def reasons(engine: Engine) -> list[str | None]:
    return [row["reason"] for row in tail(engine, 10_000) if row["kind"] == "statement"]


def kinds(engine: Engine) -> list[str]:
    return [row["kind"] for row in tail(engine, 10_000)]


@contextmanager
def outage(engine: Engine) -> Iterator[threading.Event]:
    """The store fails every transaction that writes; the event is set at the first failure."""
    failed, over = threading.Event(), threading.Event()

    def fail(connection: sa.Connection) -> None:
        if not over.is_set() and not connection.get_execution_options().get("sqlwall_read", False):
            failed.set()
            raise sa.exc.OperationalError("BEGIN", {}, Exception("disk I/O error"))

    event.listen(engine, "begin", fail)
    try:
        yield failed
    finally:
        over.set()  # the listener stays: another thread may be calling it


def until(reached: Callable[[], bool]) -> None:
    """Wait for what another thread brings about and no event tells."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


@pytest.fixture
def log(file_engine: Engine) -> Iterator[AuditLog]:
    opened = AuditLog(AuditWriter(file_engine), retry=0.02)
    yield opened
    if opened.state is not AuditState.CLOSED:
        opened.close(PATIENCE)


# -- one writer


def test_a_chain_begins_with_its_genesis(engine: Engine) -> None:
    writer = AuditWriter(engine)
    assert writer.head is None
    writer.append([record("one"), record("two")])
    assert kinds(engine) == ["genesis", "statement", "statement"]
    assert writer.head is not None
    assert writer.head.sequence == 2
    assert verify(engine, [writer.head]).faults == ()


def test_appending_nothing_first_writes_the_genesis_and_then_nothing(engine: Engine) -> None:
    writer = AuditWriter(engine)
    writer.append([])
    head = writer.head
    writer.append([])
    assert kinds(engine) == ["genesis"]
    assert writer.head == head


def test_two_writers_have_a_chain_each(engine: Engine) -> None:
    one, other = AuditWriter(engine), AuditWriter(engine)
    for number in range(5):
        one.append([record(f"one {number}")])
        other.append([record(f"other {number}"), record()])
    assert one.head is not None and other.head is not None
    report = verify(engine, [one.head, other.head])
    assert report.faults == ()
    assert report.records == 6 + 11
    assert {head.writer for head in report.heads} == {one.writer, other.writer}


def write_many(location: str, count: int, start: threading.Barrier) -> None:
    engine = open_store(location)
    writer = AuditWriter(engine)
    start.wait(PATIENCE)
    for number in range(count):
        writer.append([record(f"{os.getpid()} {number}")])
    engine.dispose()


def test_processes_write_side_by_side(location: str) -> None:
    """They open the store at the same moment too: it is not there yet."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=write_many, args=(location, 20, start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    engine = open_store(location)
    report = verify(engine)
    assert report.faults == ()
    assert report.records == 3 * 21
    for process in processes:
        assert [r for r in reasons(engine) if r and r.startswith(f"{process.pid} ")] == [
            f"{process.pid} {number}" for number in range(20)
        ]
    engine.dispose()


def test_a_forked_child_cannot_continue_a_chain(file_engine: Engine) -> None:
    writer = AuditWriter(file_engine)
    writer.append([record()])
    reading_end, writing_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            writer.append([record()])
            os.write(writing_end, b"written")
        except StoreError as error:
            os.write(writing_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing_end)
    with os.fdopen(reading_end, "rb") as answer:
        assert answer.read() == b"an audit chain belongs to the process that began it"
    os.waitpid(child, 0)
    writer.append([record()])
    assert verify(file_engine).faults == ()


def test_a_failed_batch_leaves_no_gap(engine: Engine) -> None:
    writer = AuditWriter(engine)
    writer.append([record("one")])
    with outage(engine):
        with pytest.raises(StoreError, match="disk I/O error"):
            writer.append([record("lost")])
    writer.append([record("two")])
    assert reasons(engine) == ["one", "two"]
    assert verify(engine).faults == ()


@contextmanager
def answers_lost(engine: Engine) -> Iterator[None]:
    """COMMIT takes effect, and the connection ends before its answer comes."""
    dialect = engine.dialect
    commit = dialect.do_commit

    def lose(connection: object) -> None:
        commit(connection)  # type: ignore[arg-type]
        raise dialect.dbapi.OperationalError("server closed the connection unexpectedly")  # type: ignore[union-attr]

    dialect.do_commit = lose  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        dialect.do_commit = commit  # type: ignore[method-assign]


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_batch_whose_commit_was_answered_by_nobody_is_in_the_chain_once(engine: Engine, lost: int) -> None:
    """Each time the same records are given again, with one more."""
    writer = AuditWriter(engine)
    writer.append([record("zero")])
    given_again = [record("one")]
    with answers_lost(engine):
        for number in range(lost):
            with pytest.raises(StoreError):
                writer.append(given_again)
            given_again = [*given_again, record(f"more {number}")]
    writer.append(given_again)
    assert reasons(engine) == ["zero", "one", *(f"more {number}" for number in range(lost))]
    assert writer.head is not None
    assert verify(engine, [writer.head]).faults == ()


def test_the_genesis_whose_commit_was_answered_by_nobody_is_there_once(engine: Engine) -> None:
    writer = AuditWriter(engine)
    with answers_lost(engine):
        with pytest.raises(StoreError):
            writer.append([record("one")])
    writer.append([record("two")])
    assert kinds(engine) == ["genesis", "statement", "statement"]
    assert verify(engine).faults == ()


def test_a_head_that_somebody_moved_stops_the_writer(engine: Engine) -> None:
    writer = AuditWriter(engine)
    writer.append([record()])
    with writing(engine) as connection:
        connection.execute(sa.update(HEADS).values(hash="0" * 64))
    with pytest.raises(StoreError, match=f"someone changed the audit chain {writer.writer}"):
        writer.append([record()])
    assert kinds(engine) == ["genesis", "statement"]


def test_a_record_that_somebody_put_at_the_end_stops_the_writer(engine: Engine) -> None:
    writer = AuditWriter(engine)
    writer.append([record()])
    with writing(engine) as connection:
        connection.execute(
            AUDIT.insert().values(
                writer=writer.writer, sequence=2, event="E", time="T", kind="statement", prev_hash="", hash=""
            )
        )
    with pytest.raises(StoreError, match=r"(?i)unique constraint"):
        writer.append([record()])


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(
        st.tuples(st.sampled_from(["kept", "failed", "answer lost"]), st.integers(0, 3)), max_size=8
    )
)
def test_whatever_fails_the_chain_is_whole_and_nothing_is_in_it_twice(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[str, int]]
) -> None:
    engine = open_store(tmp_path_factory.mktemp("store") / "store.sqlite")
    writer = AuditWriter(engine)
    waiting: list[AuditRecord] = []
    number = 0
    for how, count in [*batches, ("kept", 1)]:
        for _ in range(count):
            waiting.append(record(str(number)))
            number += 1
        if how == "kept":
            writer.append(waiting)
            waiting = []
            continue
        with outage(engine) if how == "failed" else answers_lost(engine):
            if how == "failed" or waiting or writer.head is None:
                with pytest.raises(StoreError):
                    writer.append(waiting)
    assert reasons(engine) == [str(at) for at in range(number)]
    assert verify(engine).faults == ()
    engine.dispose()


# -- the log


def test_a_submitted_record_is_durable_when_its_future_is_done(file_engine: Engine, log: AuditLog) -> None:
    log.submit(record("one")).result(PATIENCE)
    assert reasons(file_engine) == ["one"]
    assert log.written == 1
    assert log.head is not None


def test_notes_go_in_with_a_submit_in_their_order(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), linger=PATIENCE, batch=1000)
    for number in range(5):
        assert log.note(record(str(number)))
    log.submit(record("5")).result(PATIENCE)
    assert reasons(file_engine) == [str(number) for number in range(6)]
    log.close(PATIENCE)


def test_what_is_durable_is_so_with_all_that_its_agent_handed_in_before(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), linger=PATIENCE, batch=4)
    for number in range(40):
        assert log.note(record(f"flood {number}", agent="other"))
    assert log.note(record("verdict"))
    log.submit(record("commit")).result(PATIENCE)
    found = reasons(file_engine)
    assert found.index("verdict") < found.index("commit")
    log.close(PATIENCE)


def test_what_is_written_beside_a_record_is_there_if_the_record_is(
    file_engine: Engine, log: AuditLog
) -> None:
    def setting(name: str) -> Callable[[sa.Connection], None]:
        def write(connection: sa.Connection) -> None:
            connection.execute(SETTINGS.insert().values(name=name, value="1"))

        return write

    def settings_now() -> set[str]:
        with reading(file_engine) as connection:
            return {row.name for row in connection.execute(sa.select(SETTINGS.c.name))} & {"a", "b", "c"}

    log.submit(record("one"), setting("a")).result(PATIENCE)
    assert settings_now() == {"a"}
    with outage(file_engine), pytest.raises(StoreError):
        log.submit(record("two"), setting("b")).result(PATIENCE)
    until(lambda: log.note_beside(setting("c")))
    until(lambda: settings_now() == {"a", "c"})
    assert [reason for reason in reasons(file_engine) if reason in ("one", "two")] == ["one"]


def test_a_note_is_written_after_a_while_without_company(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), linger=0.01)
    assert log.note(record("one"))
    until(lambda: log.written == 1)
    assert reasons(file_engine) == ["one"]
    assert log.lag() == 0.0
    log.close(PATIENCE)


def test_a_full_batch_of_notes_does_not_wait(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), linger=10 * PATIENCE, batch=3)
    for number in range(3):
        assert log.note(record(str(number)))
    until(lambda: log.written == 3)
    log.close(PATIENCE)


def test_closing_writes_what_waits(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), linger=10 * PATIENCE, batch=4)
    futures = []
    for number in range(30):
        if number % 7 == 6:
            futures.append(log.submit(record(str(number))))
        else:
            assert log.note(record(str(number)))
    log.close(PATIENCE)
    assert reasons(file_engine) == [str(number) for number in range(30)]
    assert all(future.result(0) is None for future in futures)


def test_a_closed_log_takes_nothing(file_engine: Engine, log: AuditLog) -> None:
    log.close(PATIENCE)
    assert log.state is AuditState.CLOSED
    assert not log.is_accepting
    assert not log.note(record())
    with pytest.raises(StoreError, match="the audit log is closed"):
        log.submit(record()).result(PATIENCE)


def test_a_submitted_record_cannot_be_cancelled(log: AuditLog) -> None:
    future = log.submit(record())
    assert not future.cancel()
    future.result(PATIENCE)


def test_many_threads_submit(file_engine: Engine, log: AuditLog) -> None:
    futures: list[Future[None]] = []

    def work(number: int) -> None:
        for at in range(25):
            futures.append(log.submit(record(f"{number} {at}")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = wait(futures, PATIENCE).done
    assert len(done) == 200
    assert all(future.exception() is None for future in done)
    written = reasons(file_engine)
    for number in range(8):
        assert [r for r in written if r and r.startswith(f"{number} ")] == [
            f"{number} {at}" for at in range(25)
        ]
    assert verify(file_engine).faults == ()


def test_while_the_store_fails_submits_fail_and_notes_are_not_taken(
    file_engine: Engine, log: AuditLog
) -> None:
    log.submit(record("before")).result(PATIENCE)
    with outage(file_engine):
        with pytest.raises(StoreError, match="disk I/O error"):
            log.submit(record("refused")).result(PATIENCE)
        assert log.state is AuditState.FAILED
        assert "disk I/O error" in log.error
        assert not log.note(record("not taken"))
        assert not log.is_accepting
    until(lambda: log.state is AuditState.HEALTHY)
    assert log.error == ""
    assert log.failures >= 1
    log.submit(record("after")).result(PATIENCE)
    assert reasons(file_engine) == ["before", "after"]
    assert kinds(file_engine).count("resumed") == 1
    (resumed,) = [row for row in tail(file_engine, 100) if row["kind"] == "resumed"]
    assert resumed["reason"].startswith("after ")
    assert "disk I/O error" in resumed["reason"]
    assert verify(file_engine).faults == ()


def test_notes_that_were_taken_outlive_an_outage_in_their_order(file_engine: Engine) -> None:
    """Their statements have run."""
    log = AuditLog(AuditWriter(file_engine), linger=0.01, batch=2, retry=0.02)
    with outage(file_engine) as failed:
        taken = [str(number) for number in range(50) if log.note(record(str(number)))]
        assert failed.wait(PATIENCE)
        until(lambda: log.failures >= 2)
    until(lambda: log.state is AuditState.HEALTHY and log.waiting == 0)
    log.close(PATIENCE)
    assert taken
    assert reasons(file_engine) == taken
    assert verify(file_engine).faults == ()


def test_what_has_happened_is_remembered_through_an_outage(file_engine: Engine) -> None:
    """A read that ran, a session that ended: to refuse it is too late. There is an end to that, too."""
    log = AuditLog(AuditWriter(file_engine), capacity=3, linger=0.01, retry=0.02)
    with outage(file_engine) as failed:
        assert log.note(record("before"))
        assert failed.wait(PATIENCE)
        until(lambda: log.state is AuditState.FAILED)
        assert not log.note(record("not taken"))
        assert log.remember(record("a"), record("b"))
        until(lambda: log.waiting == 3)
        assert log.is_full
        assert not log.remember(record("no room"))
    until(lambda: log.state is AuditState.HEALTHY and log.waiting == 0)
    log.close(PATIENCE)
    assert not log.remember(record("closed"))
    assert reasons(file_engine) == ["before", "a", "b"]
    assert verify(file_engine).faults == ()


def test_a_log_that_cannot_write_says_so_when_it_is_closed(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), linger=10 * PATIENCE, retry=0.02)
    with outage(file_engine):
        assert log.note(record())
        with pytest.raises(StoreError, match=r"1 audit records could not be written: .*disk I/O error"):
            log.close(PATIENCE)
    assert log.state is AuditState.CLOSED


def test_a_log_takes_no_more_than_it_can_hold(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), capacity=6, linger=10 * PATIENCE, batch=100)
    assert [log.note(record()) for _ in range(5)] == [True, True, True, False, False]
    assert [log.note(record(agent="second")) for _ in range(3)] == [True, True, False]
    assert log.is_accepting
    assert [log.note(record(agent="third")) for _ in range(2)] == [True, False]
    assert not log.is_accepting
    log.submit(record()).result(PATIENCE)
    assert log.is_accepting
    log.close(PATIENCE)


@contextmanager
def held(engine: Engine) -> Iterator[threading.Event]:
    """The next write stands still until the block ends; the event is set when it does."""
    standing, go = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("sqlwall_read", False):
            standing.set()
            assert go.wait(PATIENCE)

    event.listen(engine, "begin", hold)
    try:
        yield standing
    finally:
        go.set()  # the listener stays: the other thread is in it


def test_a_store_that_is_too_slow_refuses_submits(file_engine: Engine) -> None:
    log = AuditLog(AuditWriter(file_engine), capacity=4)
    with held(file_engine) as standing:
        waiting = [log.submit(record("first"))]
        assert standing.wait(PATIENCE)
        waiting += [log.submit(record(str(number))) for number in range(4)]
        with pytest.raises(StoreError, match="the audit log is full: the store is too slow"):
            log.submit(record("too much")).result(PATIENCE)
        until(lambda: log.lag() > 0.0)
    assert len(wait(waiting, PATIENCE).done) == 5
    log.close(PATIENCE)
    assert reasons(file_engine) == ["first", "0", "1", "2", "3"]


def test_an_agent_that_floods_the_log_neither_closes_it_to_others_nor_goes_before_them(
    file_engine: Engine,
) -> None:
    log = AuditLog(AuditWriter(file_engine), capacity=1000, batch=10)
    with held(file_engine) as standing:
        log.submit(record("first"))
        assert standing.wait(PATIENCE)
        flood = [log.note(record(f"flood {number}")) for number in range(2000)]
        assert sum(flood) == 500
        mine = [log.submit(record(f"mine {number}", "other")) for number in range(3)]
        assert not any(future.done() for future in mine)
    wait(mine, PATIENCE)
    assert all(future.result(0) is None for future in mine)
    log.close(PATIENCE)
    written = reasons(file_engine)
    assert len(written) == 504
    # In turn with the flood, from the next batch on, and each agent's own in order.
    assert written[:7] == ["first", "flood 0", "mine 0", "flood 1", "mine 1", "flood 2", "mine 2"]
    assert [text for text in written if text and text.startswith("flood")] == [
        f"flood {number}" for number in range(500)
    ]


def test_a_thread_that_dies_leaves_nobody_waiting(
    file_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of something that is no failure of the store, and that nobody thought of."""
    died: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_value))
    writer = AuditWriter(file_engine)
    log = AuditLog(writer)

    def surprise(_: Sequence[AuditRecord]) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(writer, "append", surprise)
    with pytest.raises(StoreError, match="the audit log has ended"):
        log.submit(record()).result(PATIENCE)
    until(lambda: bool(died))
    assert log.state is AuditState.CLOSED
    assert not log.note(record())


def test_records_read_inside_one_transaction_are_of_one_moment(engine: Engine) -> None:
    writer = AuditWriter(engine)
    writer.append([record()])
    count = sa.select(sa.func.count()).select_from(AUDIT)
    with reading(engine) as connection:
        before = connection.scalar(count)
        writer.append([record()])
        assert connection.scalar(count) == before
