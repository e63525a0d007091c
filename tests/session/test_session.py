"""Playbooks: what a client sends, how it travels, what the server answers, what the client sees."""

from __future__ import annotations

import pytest

from sqlwall.errors import ProtocolError
from sqlwall.session.segment import Act, Segment
from sqlwall.wire import frontend
from sqlwall.wire.backend import (
    TransactionStatus,
    command_complete,
    data_row,
    error_response,
    notice_response,
    ready_for_query,
)
from tests.session.script import Playbook, Script

IDLE = ready_for_query(TransactionStatus.IDLE)
IN_BLOCK = ready_for_query(TransactionStatus.IN_TRANSACTION)
FAILED = ready_for_query(TransactionStatus.FAILED)
PARSED, BOUND, CLOSED, NO_DATA = b"1\0\0\0\4", b"2\0\0\0\4", b"3\0\0\0\4", b"n\0\0\0\4"
ERROR = error_response(sqlstate="42P01", message="no such table")
ROW = data_row([b"1"])
PARSE_SELECT = frontend.parse(b"", b"select")
RUN = frontend.bind(b"", b"") + frontend.execute(b"")
SYNC, FLUSH = frontend.sync(), frontend.flush()


def acts(segment: Segment | None) -> list[Act]:
    assert segment is not None
    return [step.act for step in segment.steps]


def test_an_allowed_query_is_forwarded_as_it_came() -> None:
    book = Playbook()
    segment = book.client(frontend.query(b"select"))
    assert segment is not None and segment.is_fast
    assert book.session.forward(segment) == frontend.query(b"select")
    answer = ROW + command_complete(b"SELECT 1") + IDLE
    assert book.server(answer) == answer


def test_the_next_segment_waits_for_the_answer_to_the_last() -> None:
    book = Playbook()
    first = book.client(frontend.query(b"select"), frontend.query(b"select"))
    assert first is not None
    book.session.forward(first)
    assert book.next() is None
    book.server(command_complete(b"SELECT 0"), IDLE)
    assert book.next() is not None


def test_nothing_is_examined_before_its_segment_ends() -> None:
    book = Playbook()
    assert book.client(PARSE_SELECT, RUN) is None
    segment = book.client(SYNC)
    assert acts(segment) == [Act.FORWARD] * 4


@pytest.mark.parametrize("text", [b"delete", b"nonsense"])
def test_a_refused_text_is_refused_as_query_and_as_parse(text: bytes) -> None:
    assert acts(Playbook().client(frontend.query(text))) == [Act.REFUSE]
    assert acts(Playbook().client(frontend.parse(b"", text), RUN, SYNC)) == [Act.REFUSE]


def test_a_prepared_statement_is_judged_again_when_it_is_bound() -> None:
    book = Playbook()
    segment = book.client(frontend.parse(b"s", b"select"), SYNC)
    assert segment is not None
    book.session.forward(segment)
    book.server(PARSED, IDLE)

    class Stricter(Script):
        def judge(self, statement: object) -> object:  # type: ignore[override]
            from tests.session.script import DENY

            return DENY

    book.session.policy = Stricter()  # type: ignore[assignment]
    segment = book.client(frontend.bind(b"", b"s"), frontend.execute(b""), SYNC)
    assert acts(segment) == [Act.REFUSE]


def test_a_name_that_does_not_exist_is_refused_in_postgresqls_words() -> None:
    segment = Playbook().client(frontend.bind(b"", b"ghost"), frontend.execute(b""), SYNC)
    assert segment is not None
    refusal = segment.steps[0].refusal
    assert refusal is not None
    assert (refusal.sqlstate, refusal.message) == ("26000", 'prepared statement "ghost" does not exist')


def test_a_name_holds_only_once_the_server_has_acknowledged_it() -> None:
    book = Playbook()
    segment = book.client(frontend.parse(b"s", b"select"), SYNC)
    assert segment is not None
    book.session.forward(segment)
    book.server(ERROR, IDLE)
    assert acts(book.client(frontend.bind(b"", b"s"), frontend.execute(b""), SYNC)) == [Act.REFUSE]


@pytest.mark.parametrize(
    "message",
    [
        frontend.parse(b"_sqlwall_1", b"select"),
        frontend.bind(b"_sqlwall_1", b""),
        frontend.bind(b"", b"_sqlwall_1"),
        frontend.describe(frontend.Kind.STATEMENT, b"_sqlwall_1"),
        frontend.close(frontend.Kind.PORTAL, b"_sqlwall_1"),
    ],
)
def test_our_own_names_are_refused_in_every_message(message: bytes) -> None:
    segment = Playbook().client(message, SYNC)
    assert acts(segment) == [Act.REFUSE]


def test_function_call_is_refused_and_ends_its_segment() -> None:
    segment = Playbook().client(frontend.function_call(1))
    assert acts(segment) == [Act.REFUSE]


def test_unknown_message_types_end_the_connection() -> None:
    with pytest.raises(ProtocolError):
        Playbook().client(b"@\0\0\0\4")


def test_begin_is_opened_for_writes_only_where_the_ruleset_permits_any() -> None:
    assert acts(Playbook().client(frontend.query(b"begin"))) == [Act.BEGIN]
    assert acts(Playbook(Script(writes=False)).client(frontend.query(b"begin"))) == [Act.FORWARD]
    assert acts(Playbook().client(frontend.query(b"begin read only"))) == [Act.FORWARD]


def test_begin_behind_a_statement_of_the_same_pipeline_stays_read_only() -> None:
    segment = Playbook().client(PARSE_SELECT, RUN, frontend.parse(b"b", b"begin"),
                                frontend.bind(b"", b"b"), frontend.execute(b""), SYNC)  # fmt: skip
    assert Act.BEGIN not in acts(segment)
    assert segment is not None and not segment.may_write


def open_block(book: Playbook) -> None:
    segment = book.client(frontend.query(b"begin"))
    assert segment is not None
    book.session.forward(segment)
    book.server(command_complete(b"BEGIN"), IN_BLOCK)
    assert book.session.is_writable


def test_commit_of_a_writable_block_goes_through_the_gate() -> None:
    book = Playbook()
    open_block(book)
    assert acts(book.client(frontend.query(b"commit"))) == [Act.COMMIT]
    assert acts(Playbook().client(frontend.query(b"commit"))) == [Act.FORWARD]


def test_commit_hidden_in_a_string_is_refused_in_a_writable_block() -> None:
    book = Playbook()
    open_block(book)
    assert acts(book.client(frontend.query(b"insert; commit"))) == [Act.REFUSE]


@pytest.mark.parametrize("text", [b"insert; commit", b"insert; begin"])
def test_a_string_that_writes_and_commits_is_refused_outside_a_block(text: bytes) -> None:
    assert acts(Playbook().client(frontend.query(text))) == [Act.REFUSE]


def test_set_transaction_read_write_is_refused_everywhere() -> None:
    assert acts(Playbook().client(frontend.query(b"set transaction read write"))) == [Act.REFUSE]
    book = Playbook()
    open_block(book)
    assert acts(book.client(frontend.query(b"set transaction read write"))) == [Act.REFUSE]


def test_a_write_outside_a_block_needs_a_transaction_of_ours() -> None:
    assert acts(Playbook().client(frontend.query(b"insert"))) == [Act.WRITE]
    book = Playbook()
    open_block(book)
    assert acts(book.client(frontend.query(b"insert"))) == [Act.RECORD]


def test_a_write_before_a_flush_keeps_a_block_of_ours_open_to_the_sync() -> None:
    book = Playbook()
    segment = book.client(frontend.parse(b"", b"insert"), RUN, FLUSH)
    assert segment is not None and segment.acts == Act.WRITE
    book.session.keep_ours()
    segment = book.client(SYNC)
    assert segment is not None and segment.is_ours and not segment.is_fast


def test_transaction_control_inside_a_block_of_ours_is_refused() -> None:
    book = Playbook()
    book.session.keep_ours()
    assert acts(book.client(frontend.parse(b"", b"commit"), RUN, SYNC))[-1] == Act.REFUSE


def test_a_write_and_transaction_control_in_one_pipeline_are_refused_at_the_write() -> None:
    book = Playbook()
    begin = frontend.parse(b"b", b"begin") + frontend.bind(b"b", b"b") + frontend.execute(b"b")
    segment = book.client(frontend.parse(b"", b"insert"), RUN, begin, SYNC)
    assert acts(segment)[:3] == [Act.FORWARD, Act.FORWARD, Act.REFUSE]


def test_a_write_behind_an_open_implicit_transaction_is_refused() -> None:
    book = Playbook()
    segment = book.client(PARSE_SELECT, RUN, FLUSH)
    assert segment is not None
    book.session.forward(segment)
    book.server(PARSED, BOUND, command_complete(b"SELECT 0"))
    assert acts(book.client(frontend.query(b"insert"))) == [Act.REFUSE]


def test_a_block_opened_before_a_flush_is_still_open_behind_it() -> None:
    book = Playbook()
    segment = book.client(frontend.parse(b"", b"begin"), RUN, FLUSH)
    assert segment is not None and segment.may_write
    book.session.forward(segment)
    book.server(PARSED, BOUND, command_complete(b"BEGIN"))
    assert acts(book.client(frontend.parse(b"", b"commit"), RUN, SYNC))[2] == Act.COMMIT


def test_a_flush_behind_parse_goes_as_a_sync_that_the_client_does_not_see() -> None:
    book = Playbook()
    segment = book.client(PARSE_SELECT, frontend.describe(frontend.Kind.STATEMENT, b""), FLUSH)
    assert segment is not None
    sent = book.session.forward(segment)
    assert sent.endswith(SYNC)
    description = b"t\0\0\0\6\0\0"
    assert book.server(PARSED, description, NO_DATA, IDLE) == PARSED + description + NO_DATA
    assert acts(book.client(RUN, SYNC)) == [Act.FORWARD] * 3


def test_behind_a_failed_flush_everything_up_to_sync_is_skipped() -> None:
    book = Playbook()
    segment = book.client(PARSE_SELECT, FLUSH)
    assert segment is not None
    book.session.forward(segment)
    assert book.server(ERROR, IDLE) == ERROR
    segment = book.client(RUN, SYNC)
    assert segment is not None
    assert [frame.raw for frame in segment.frames] == [SYNC]


def test_nothing_may_follow_an_unknown_function_in_one_pipeline() -> None:
    segment = Playbook().client(frontend.parse(b"", b"calls"), RUN, PARSE_SELECT, RUN, SYNC)
    assert acts(segment)[-1] == Act.REFUSE
    assert acts(Playbook().client(frontend.query(b"calls; select"))) == [Act.REFUSE]


def test_a_text_for_the_sandbox_stops_the_examination() -> None:
    segment = Playbook(Script(large=(b"select",))).client(frontend.query(b"select"))
    assert segment is not None
    assert segment.unread == b"select" and not segment.is_fast


def test_more_rows_than_allowed_become_an_error_and_nothing_more_is_relayed() -> None:
    book = Playbook()
    segment = book.client(frontend.query(b"select"))
    assert segment is not None
    book.session.forward(segment)
    book.session.ledger.queue[0].row_limit = 2
    assert book.server(ROW, ROW) == ROW + ROW
    assert book.server(ROW) == b""
    assert book.session.ledger.limit_hit is not None
    seen = book.server(ROW, error_response(sqlstate="57014", message="canceling"), IDLE)
    assert b"53400" in seen and b"57014" not in seen and seen.endswith(IDLE)


def test_a_limit_that_is_hit_too_late_still_fails_the_block() -> None:
    book = Playbook()
    open_block(book)
    segment = book.client(frontend.query(b"select"))
    assert segment is not None
    book.session.forward(segment)
    book.session.ledger.queue[0].row_limit = 0
    seen = book.server(ROW, command_complete(b"SELECT 1"), IN_BLOCK)
    assert b"53400" in seen and IN_BLOCK not in seen
    assert book.session.ledger.is_owed_failure


def test_notices_pass_while_output_is_held() -> None:
    book = Playbook()
    segment = book.client(frontend.query(b"select"))
    assert segment is not None
    book.session.forward(segment)
    book.session.ledger.hold_from(1)
    notice = notice_response(sqlstate="00000", message="hello")
    assert book.server(ROW, command_complete(b"SELECT 1"), notice) == ROW + notice
    assert book.session.ledger.take_held() == [command_complete(b"SELECT 1")]


def test_copy_in_passes_and_its_swallowed_sync_is_not_counted() -> None:
    book = Playbook()
    segment = book.client(PARSE_SELECT, RUN, SYNC)
    assert segment is not None
    book.session.forward(segment)
    book.server(PARSED, BOUND, b"G\0\0\0\7\0\0\0")
    data = frontend.copy_data(b"1\n") + frontend.copy_done()
    assert book.client(data, SYNC) is None
    assert b"".join(frame.raw for frame in book.session.copy_data()) == data + FLUSH
    assert book.next() is None
    book.server(command_complete(b"COPY 1"))
    segment = book.next()
    assert segment is not None and [frame.raw for frame in segment.frames] == [SYNC]


def test_copy_messages_outside_copy_are_ignored() -> None:
    book = Playbook()
    segment = book.client(frontend.copy_data(b"x"), frontend.copy_done(), frontend.query(b"select"))
    assert segment is not None and len(segment.frames) == 1


def test_a_pipeline_without_end_is_bounded() -> None:
    book = Playbook()
    with pytest.raises(ProtocolError, match="without Sync"):
        for _ in range(100):
            book.client(frontend.bind(b"", b"", [b"x" * 100_000]))


def test_a_watched_setting_is_kept_from_the_client() -> None:
    from sqlwall.wire.backend import parameter_status

    book = Playbook()
    shown = parameter_status(b"TimeZone", b"UTC")
    assert book.server(parameter_status(b"client_encoding", b"SJIS"), shown) == shown
    assert len(book.session.ledger.parameters) == 1


# -- transaction control under a name, which the server is not left with

COMMIT_PARSED = frontend.parse(b"c", b"commit")
COMMIT_CLOSED = frontend.close(frontend.Kind.STATEMENT, b"c")


def parked() -> Playbook:
    """A session in which `c` stands for COMMIT."""
    book = Playbook()
    segment = book.client(COMMIT_PARSED, SYNC)
    assert segment is not None
    assert book.session.forward(segment) == COMMIT_PARSED + COMMIT_CLOSED + SYNC
    assert book.server(PARSED, CLOSED, IDLE) == PARSED + IDLE
    return book


def sent(book: Playbook, *messages: bytes) -> bytes:
    segment = book.client(*messages)
    assert segment is not None and segment.acts == Act.FORWARD
    return book.session.forward(segment)


def test_a_named_commit_is_parsed_for_its_bind_and_closed_again() -> None:
    book = parked()
    bind = frontend.bind(b"", b"c")
    assert sent(book, bind, frontend.execute(b""), SYNC) == (
        COMMIT_PARSED + bind + COMMIT_CLOSED + frontend.execute(b"") + SYNC
    )
    answer = book.server(PARSED, BOUND, CLOSED, command_complete(b"COMMIT"), IDLE)
    assert answer == BOUND + command_complete(b"COMMIT") + IDLE


def test_a_describe_of_it_is_answered_and_an_unnamed_one_is_as_ever() -> None:
    book = parked()
    describe = frontend.describe(frontend.Kind.STATEMENT, b"c")
    assert sent(book, describe, SYNC) == COMMIT_PARSED + describe + COMMIT_CLOSED + SYNC
    no_parameters = b"t\0\0\0\6\0\0"
    assert book.server(PARSED, no_parameters, NO_DATA, CLOSED, IDLE) == no_parameters + NO_DATA + IDLE
    unnamed = frontend.parse(b"", b"commit") + frontend.bind(b"", b"") + frontend.execute(b"") + SYNC
    assert sent(book, unnamed) == unnamed


def test_what_an_error_has_kept_from_being_closed_is_closed_before_anything_else() -> None:
    book = parked()
    sent(book, frontend.bind(b"taken", b"c"), SYNC)
    assert book.server(PARSED, ERROR, IDLE) == ERROR + IDLE
    assert sent(book, frontend.query(b"select")) == COMMIT_CLOSED + FLUSH + frontend.query(b"select")
    assert book.server(CLOSED, command_complete(b"SELECT 0"), IDLE) == command_complete(b"SELECT 0") + IDLE
    assert sent(book, frontend.query(b"select")) == frontend.query(b"select")


def test_an_error_of_our_parse_is_the_clients() -> None:
    book = parked()
    sent(book, frontend.bind(b"", b"c"), SYNC)
    assert book.server(ERROR, IDLE) == ERROR + IDLE
    assert sent(book, frontend.query(b"select")) == frontend.query(b"select")


def test_its_name_is_taken_until_it_is_closed() -> None:
    book = parked()
    segment = book.client(COMMIT_PARSED, SYNC)
    assert segment is not None and segment.steps[0].refusal is not None
    assert segment.steps[0].refusal.sqlstate == "42P05"
    book = parked()
    assert (
        sent(book, COMMIT_CLOSED, COMMIT_PARSED, SYNC) == COMMIT_CLOSED + COMMIT_PARSED + COMMIT_CLOSED + SYNC
    )
    assert book.server(CLOSED, PARSED, CLOSED, IDLE) == CLOSED + PARSED + IDLE
    assert sent(book, COMMIT_CLOSED, SYNC) == COMMIT_CLOSED + SYNC
    book.server(CLOSED, IDLE)
    assert sent(book, frontend.parse(b"c", b"select"), SYNC) == frontend.parse(b"c", b"select") + SYNC


def test_values_for_it_are_refused() -> None:
    for name in (b"c", b""):
        book = parked()
        parse = frontend.parse(b"", b"commit")
        segment = book.client(parse, frontend.bind(b"", name, [b"1"]), SYNC)
        assert segment is not None and segment.steps[-1].refusal is not None
        assert segment.steps[-1].refusal.rule == "bound-control"
