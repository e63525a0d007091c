"""A BEGIN or COMMIT past the lane: which segments may, what goes to the server, and what its answers come to."""

from __future__ import annotations

import pytest

from sqlwall.session import block
from sqlwall.session.segment import Segment
from sqlwall.wire import frontend
from sqlwall.wire.backend import (
    FUNCTION_CALL_RESPONSE,
    TransactionStatus,
    command_complete,
    error_response,
    ready_for_query,
)
from sqlwall.wire.body import frame_bytes
from tests.postgres import Database
from tests.session.script import Playbook, Script

Q, P, B, E = frontend.query, frontend.parse, frontend.bind, frontend.execute
PORTAL, STATEMENT = frontend.Kind.PORTAL, frontend.Kind.STATEMENT
SYNC, FLUSH = frontend.sync(), frontend.flush()
IDLE = ready_for_query(TransactionStatus.IDLE)
IN_BLOCK = ready_for_query(TransactionStatus.IN_TRANSACTION)
FAILED = ready_for_query(TransactionStatus.FAILED)
PARSED, BOUND, CLOSED = b"1\0\0\0\4", b"2\0\0\0\4", b"3\0\0\0\4"
ERROR = error_response(sqlstate="57014", message="canceling statement due to user request")
SWITCHED = command_complete(b"SET") + IN_BLOCK
NOTHING = frame_bytes(FUNCTION_CALL_RESPONSE, b"\xff\xff\xff\xff")
SOMETHING = frame_bytes(FUNCTION_CALL_RESPONSE, b"\0\0\0\3777")


def examined(book: Playbook, *messages: bytes) -> Segment:
    segment = book.client(*messages)
    assert segment is not None
    return segment


def in_block() -> Playbook:
    """A session whose block may write."""
    book = Playbook()
    block.opening(book.session, examined(book, Q(b"begin")), b"ours")
    book.server(command_complete(b"BEGIN"), IN_BLOCK, SWITCHED)
    assert book.session.is_writable and not book.session.ledger.queue
    return book


def test_our_switch_goes_right_behind_a_begin_and_its_ready_is_the_clients() -> None:
    book = Playbook()
    segment = examined(book, Q(b"begin"))
    assert block.only_opens(segment)
    assert block.opening(book.session, segment, b"ours") == Q(b"begin") + Q(b"SET TRANSACTION READ WRITE")
    assert book.server(command_complete(b"BEGIN"), IN_BLOCK) == command_complete(b"BEGIN")
    assert book.server(command_complete(b"SET"), IN_BLOCK) == IN_BLOCK


def test_a_begin_that_fails_has_one_ready_and_one_error() -> None:
    book = Playbook()
    block.opening(book.session, examined(book, Q(b"begin")), b"ours")
    assert book.server(ERROR, IDLE) == ERROR
    assert book.server(command_complete(b"SET"), IDLE) == IDLE
    assert not book.session.ledger.queue


def test_a_switch_that_fails_is_an_error_of_the_begin() -> None:
    book = Playbook()
    block.opening(book.session, examined(book, Q(b"begin")), b"ours")
    book.server(command_complete(b"BEGIN"), IN_BLOCK)
    said = book.server(ERROR, FAILED)
    assert b"an internal failure" in said and said.endswith(FAILED)


def test_in_a_pipeline_the_switch_stands_behind_the_execute() -> None:
    book = Playbook()
    begin = P(b"", b"begin") + B(b"", b"") + E(b"")
    segment = examined(book, begin, P(b"", b"select"), B(b"", b""), E(b""), SYNC)
    assert block.only_opens(segment)
    sent = block.opening(book.session, segment, b"ours")
    assert sent.startswith(begin + P(b"ours", b"SET TRANSACTION READ WRITE"))
    assert sent.endswith(P(b"", b"select") + B(b"", b"") + E(b"") + SYNC)
    told = PARSED + BOUND + command_complete(b"BEGIN")
    ours = PARSED + BOUND + command_complete(b"SET") + CLOSED + CLOSED
    rest = PARSED + BOUND + command_complete(b"SELECT 0") + IN_BLOCK
    assert book.server(told, ours, rest) == told + rest


@pytest.mark.parametrize(
    "messages",
    [
        [Q(b"begin read only")],
        [P(b"", b"begin"), B(b"", b""), E(b""), FLUSH],
        [P(b"", b"begin"), B(b"", b""), E(b""), P(b"", b"insert"), B(b"", b""), E(b""), SYNC],
        [P(b"", b"begin"), B(b"", b""), E(b""), P(b"", b"commit"), B(b"", b""), E(b""), SYNC],
        [P(b"", b"begin"), B(b"", b""), E(b""), P(b"", b"delete"), SYNC],
        [P(b"", b"begin"), SYNC],
    ],
)
def test_what_needs_more_than_the_switch_is_no_such_segment(messages: list[bytes]) -> None:
    assert not block.only_opens(examined(Playbook(), *messages))


def test_a_begin_with_a_text_for_the_sandbox_is_no_such_segment() -> None:
    book = Playbook(Script(large=(b"select",)))
    segment = examined(book, P(b"", b"begin"), B(b"", b""), E(b""), P(b"", b"select"), SYNC)
    assert not block.only_opens(segment)


@pytest.mark.parametrize(
    "messages",
    [
        [Q(b"commit")],
        [P(b"", b"commit"), B(b"", b""), E(b""), SYNC],
        [P(b"", b"commit"), B(b"p", b""), frontend.describe(PORTAL, b"p"), E(b"p"), SYNC],
    ],
)
def test_nothing_but_a_commit_is_one(messages: list[bytes]) -> None:
    assert block.only_commits(examined(in_block(), *messages))


@pytest.mark.parametrize(
    "messages",
    [
        [P(b"", b"commit"), B(b"", b""), E(b""), FLUSH],
        [P(b"x", b"select"), P(b"", b"commit"), B(b"", b""), E(b""), SYNC],
        [P(b"x", b"select"), B(b"x", b"x"), P(b"", b"commit"), B(b"", b""), E(b""), SYNC],
        [P(b"", b"commit"), B(b"", b""), frontend.describe(STATEMENT, b""), E(b""), SYNC],
        [P(b"", b"commit"), B(b"", b""), frontend.describe(PORTAL, b"other"), E(b""), SYNC],
        [frontend.describe(PORTAL, b""), P(b"", b"commit"), B(b"", b""), E(b""), SYNC],
        [P(b"", b"commit"), frontend.close(STATEMENT, b"x"), B(b"", b""), E(b""), SYNC],
        [P(b"", b"commit", [20]), B(b"", b"", [b"1"]), E(b""), SYNC],
        [P(b"", b"commit", [20]), B(b"", b"", [None]), E(b""), SYNC],
        [P(b"", b"commit"), B(b"", b""), E(b""), P(b"", b"select"), SYNC],
        [P(b"", b"commit"), B(b"", b""), E(b""), P(b"", b"delete"), SYNC],
        [Q(b"commit and chain")],
        [Q(b"insert")],
        [Q(b"select")],
    ],
)
def test_a_commit_with_anything_beside_it_is_not(messages: list[bytes]) -> None:
    assert not block.only_commits(examined(in_block(), *messages))


@pytest.mark.parametrize(
    ("answer", "has_none", "is_error"),
    [
        (NOTHING + IN_BLOCK, True, False),
        (SOMETHING + IN_BLOCK, False, False),
        (ERROR + FAILED, False, True),
        (IN_BLOCK, False, False),
        (command_complete(b"SELECT 1") + IN_BLOCK, False, False),
    ],
)
def test_only_a_plain_no_is_one(answer: bytes, has_none: bool, is_error: bool) -> None:
    book = in_block()
    asked = block.XidQuestion(examined(book, Q(b"commit")))
    assert asked.message(book.session.ledger) == frontend.function_call(block.XID_FUNCTION)
    assert book.server(answer) == b""
    assert not book.session.ledger.queue
    assert (asked.has_none, asked.error is not None) == (has_none, is_error)


def test_the_function_is_the_one_that_its_number_says(database: Database) -> None:
    with database.connect() as connection:
        found = connection.execute("SELECT %s::regprocedure::text", [block.XID_FUNCTION]).fetchone()
    assert found == ("pg_current_xact_id_if_assigned()",)


@pytest.mark.parametrize("before", [P(b"x", b"select"), P(b"x", b"select") + B(b"x", b"x")])
def test_behind_what_takes_a_snapshot_a_block_stays_read_only(before: bytes) -> None:
    segment = examined(Playbook(), before, P(b"", b"begin"), B(b"", b""), E(b""), SYNC)
    assert segment.is_fast and not segment.may_write
