"""What a server says: decoded as PostgreSQL lays it out, encoded as it would send it, refused where it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire import backend, frontend
from sqlwall.wire.backend import (
    BARE_REPLIES,
    BackendKeyData,
    CopyResponse,
    Diagnostics,
    FieldDescription,
    NotificationResponse,
    ParameterStatus,
    TransactionStatus,
)
from sqlwall.wire.frames import Frame, FrameReader, Side
from sqlwall.wire.startup import MAX_CANCEL_KEY_LENGTH, MIN_CANCEL_KEY_LENGTH
from tests.e2e.wire import RawClient
from tests.postgres import Server
from tests.wire.feeding import BACKEND_CODES, frame, outcome

WORDS = st.binary(max_size=12).filter(lambda word: b"\0" not in word)
OIDS = st.integers(0, 2**32 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT16 = st.integers(-(2**15), 2**15 - 1)


@dataclass(frozen=True)
class Codec:
    """One message both ways. `is_open` says that its body goes on to its end, so that more of it is no violation."""

    code: str
    decode: Callable[[Frame], Any]
    encode: Callable[[Any], bytes]
    values: st.SearchStrategy[Any]
    is_open: bool = False


FIELDS = st.lists(st.tuples(st.characters(min_codepoint=1, max_codepoint=255), WORDS), max_size=5)

CODECS = {
    "ParameterStatus": Codec(
        "S",
        backend.decode_parameter_status,
        lambda value: backend.parameter_status(value.name, value.value),
        st.builds(ParameterStatus, WORDS, WORDS),
    ),
    "BackendKeyData": Codec(
        "K",
        backend.decode_backend_key_data,
        lambda value: backend.backend_key_data(value.process_id, value.secret_key),
        st.builds(
            BackendKeyData, INT32, st.binary(min_size=MIN_CANCEL_KEY_LENGTH, max_size=MAX_CANCEL_KEY_LENGTH)
        ),
        is_open=True,
    ),
    "ReadyForQuery": Codec(
        "Z", backend.decode_ready_for_query, backend.ready_for_query, st.sampled_from(list(TransactionStatus))
    ),
    "ErrorResponse": Codec(
        "E",
        backend.decode_diagnostics,
        lambda value: backend.diagnostics(backend.ERROR_RESPONSE, value.fields),
        FIELDS.map(lambda fields: Diagnostics(tuple(fields))),
    ),
    "NoticeResponse": Codec(
        "N",
        backend.decode_diagnostics,
        lambda value: backend.diagnostics(backend.NOTICE_RESPONSE, value.fields),
        FIELDS.map(lambda fields: Diagnostics(tuple(fields))),
    ),
    "CommandComplete": Codec("C", backend.decode_command_complete, backend.command_complete, WORDS),
    "RowDescription": Codec(
        "T",
        backend.decode_row_description,
        backend.row_description,
        st.lists(st.builds(FieldDescription, WORDS, OIDS, INT16, OIDS, INT16, INT32, INT16), max_size=4).map(
            tuple
        ),
    ),
    "ParameterDescription": Codec(
        "t",
        backend.decode_parameter_description,
        backend.parameter_description,
        st.lists(OIDS, max_size=5).map(tuple),
    ),
    "DataRow": Codec(
        "D",
        backend.decode_data_row,
        backend.data_row,
        st.lists(st.none() | st.binary(max_size=10), max_size=5).map(tuple),
    ),
    "NotificationResponse": Codec(
        "A",
        backend.decode_notification_response,
        lambda value: backend.notification_response(value.process_id, value.channel, value.payload),
        st.builds(NotificationResponse, INT32, WORDS, WORDS),
    ),
    **{
        name: Codec(
            chr(code),
            backend.decode_copy_response,
            lambda value, code=code: backend.copy_response(code, value),  # type: ignore[misc]
            st.builds(CopyResponse, st.integers(0, 255), st.lists(INT16, max_size=5).map(tuple)),
        )
        for name, code in (("CopyIn", 0x47), ("CopyOut", 0x48), ("CopyBoth", 0x57))
    },
}
EACH = pytest.mark.parametrize("name", CODECS)


@EACH
@given(data=st.data())
def test_a_message_comes_back(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    value = data.draw(codec.values)
    raw = codec.encode(value)
    assert raw[0] == ord(codec.code)
    reader = FrameReader(Side.BACKEND)
    found = [one for byte in raw for one in reader.feed(bytes([byte]))]
    assert [codec.decode(one) for one in found] == [value]


@EACH
@given(data=st.data())
def test_trailing_bytes_are_a_violation(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    if codec.is_open:
        return
    body = codec.encode(data.draw(codec.values))[5:]
    with pytest.raises(ProtocolError):
        codec.decode(frame(codec.code, body + data.draw(st.binary(min_size=1, max_size=4))))


@EACH
@given(data=st.data())
def test_a_body_that_is_cut_short_is_a_violation(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    body = codec.encode(data.draw(codec.values))[5:]
    cut = data.draw(st.integers(0, len(body) - 1))
    if codec.is_open and cut >= 4 + MIN_CANCEL_KEY_LENGTH:
        return
    with pytest.raises(ProtocolError):
        codec.decode(frame(codec.code, body[:cut]))


NOISE = st.binary(max_size=60) | st.lists(st.sampled_from(b"\0\0\0\0\1\2\xffSMCab"), max_size=40).map(bytes)


@pytest.mark.parametrize("name", [*CODECS, "bare", "negotiate"])
@given(code=st.sampled_from(BACKEND_CODES) | st.integers(0, 255), body=NOISE)
def test_no_body_raises_anything_but_a_protocol_error(name: str, code: int, body: bytes) -> None:
    decode = {"bare": backend.require_bare, "negotiate": backend.decode_negotiate_protocol_version}.get(
        name
    ) or CODECS[name].decode
    outcome(lambda: decode(frame(chr(code), body)))
    if name in CODECS:
        outcome(lambda: decode(frame(CODECS[name].code, body)))


@EACH
def test_a_message_of_another_type_is_refused(name: str) -> None:
    for code in set(BACKEND_CODES.decode()) - {
        codec.code for codec in CODECS.values() if codec.decode is CODECS[name].decode
    }:
        with pytest.raises(ProtocolError, match=f"unexpected backend message type {ord(code)}"):
            CODECS[name].decode(frame(code, b""))


def test_bare_replies_have_no_body() -> None:
    for code in BARE_REPLIES:
        (found,) = FrameReader(Side.BACKEND).feed(backend.bare_reply(code))
        backend.require_bare(found)
        with pytest.raises(ProtocolError, match="invalid message format"):
            backend.require_bare(frame(chr(code), b"x"))
    for code in set(BACKEND_CODES) - BARE_REPLIES:
        with pytest.raises(ProtocolError, match="unexpected backend message type"):
            backend.require_bare(frame(chr(code), b""))


@pytest.mark.parametrize("length", [0, 3, MAX_CANCEL_KEY_LENGTH + 1])
def test_a_cancel_key_has_4_to_256_bytes(length: int) -> None:
    with pytest.raises(ProtocolError, match="invalid length of cancel key"):
        backend.decode_backend_key_data(frame("K", b"\0\0\0\1" + bytes(length)))


def test_another_transaction_status_is_refused() -> None:
    for status in set(range(256)) - set(b"ITE"):
        with pytest.raises(ProtocolError, match=f"invalid transaction status {status}"):
            backend.decode_ready_for_query(frame("Z", bytes([status])))


# -- command tags


@pytest.mark.parametrize(
    ("tag", "rows"),
    [
        (b"SELECT 5", 5), (b"INSERT 0 7", 7), (b"INSERT 16384 1", 1), (b"UPDATE 0", 0), (b"DELETE 12", 12),
        (b"MERGE 3", 3), (b"COPY 9", 9), (b"FETCH 1", 1), (b"MOVE 2", 2), (b"SELECT 18446744073709551615", 2**64 - 1),
        (b"CREATE TABLE", None), (b"CREATE TABLE AS", None), (b"BEGIN", None), (b"", None), (b"SELECT", None),
        (b"SELECT x", None), (b"SELECT -1", None), (b"SELECT 5 ", None), (b"SELECT \xb2", None), (b"LISTEN 5", None),
        (b"SELECT " + b"9" * 21, None), (b"select 5", None), (b"COPY", None),
    ],
    ids=repr,
)  # fmt: skip
def test_a_tag_says_how_many_rows(tag: bytes, rows: int | None) -> None:
    assert backend.command_rows(tag) == rows


@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from([b"SELECT", b"INSERT", b"0", b"5", b"", b"x"])).map(b" ".join)
)
def test_no_tag_raises(tag: bytes) -> None:
    rows = backend.command_rows(tag)
    assert rows is None or 0 <= rows < 10**backend.MAX_ROW_COUNT_DIGITS


TAGS = [
    ("SELECT 1 WHERE false", 0), ("CREATE TEMP TABLE t (a int)", None), ("INSERT INTO t VALUES (1), (2)", 2),
    ("UPDATE t SET a = 3", 2), ("CREATE TEMP TABLE u AS SELECT * FROM t", 2), ("DELETE FROM t", 2),
    ("MERGE INTO u USING t ON false WHEN NOT MATCHED THEN INSERT VALUES (1)", 0), ("SHOW work_mem", None),
    ("VALUES (1), (2), (3)", 3), ("BEGIN", None), ("DECLARE c CURSOR FOR VALUES (1), (2)", None), ("FETCH 1 FROM c", 1),
    ("MOVE 1 IN c", 1), ("EXPLAIN SELECT 1", None), ("COMMIT", None), ("NOTIFY x", None),
]  # fmt: skip


def test_the_tags_of_a_server_are_read(postgres: Server) -> None:
    with RawClient(postgres.dsn()) as client:
        for text, rows in TAGS:
            (done,) = [found for found in client.query(text) if found.type_code == ord("C")]
            assert backend.command_rows(backend.decode_command_complete(done)) == rows, text


def test_every_message_of_a_session_is_decoded_and_put_together_again(postgres: Server) -> None:
    """What a real server sends, byte for byte."""
    seen: set[str] = set()
    texts = [
        "LISTEN here", "NOTIFY here, 'there'", "SELECT 1 AS a, NULL::text, 'ü'", "SELEC", "SET application_name = 'x'",
        "DO $$ BEGIN RAISE NOTICE 'hello' USING HINT = 'there', DETAIL = 'that'; END $$", "BEGIN", "ROLLBACK",
        "COPY (SELECT 1) TO STDOUT",
    ]  # fmt: skip
    with RawClient(postgres.dsn()) as client:
        frames = [found for text in texts for found in client.query(text)]
        frames += client.ask(
            frontend.parse(b"", b"SELECT $1::int, $2::text"), frontend.describe(frontend.Kind.STATEMENT, b""),
            frontend.bind(b"", b"", [b"1", None]), frontend.execute(b""), frontend.close(frontend.Kind.PORTAL, b""),
            frontend.sync(),
        )  # fmt: skip
    for found in frames:
        code = chr(found.type_code)
        codecs = [codec for codec in CODECS.values() if codec.code == code]
        for codec in codecs:
            assert codec.encode(codec.decode(found)) == found.raw
        if found.type_code in BARE_REPLIES:
            backend.require_bare(found)
            codecs.append(CODECS["DataRow"])
        assert codecs or code == "d", code
        seen.add(code)
    assert seen >= set("ATDCENSZtH12d3c")


# -- errors


def test_an_error_has_postgresqls_fields_in_its_order() -> None:
    raw = backend.error_response(
        sqlstate="42501", message="no", detail="because", hint="ask", position=7, constraint="rule"
    )
    found = backend.decode_diagnostics(frame("E", raw[5:]))
    assert found.fields == (
        ("S", b"ERROR"), ("V", b"ERROR"), ("C", b"42501"), ("M", b"no"), ("D", b"because"), ("H", b"ask"), ("P", b"7"),
        ("n", b"rule"),
    )  # fmt: skip
    assert (found.sqlstate, found.severity, found.message) == ("42501", "ERROR", b"no")
    assert found.field("Q") == b""


def test_empty_fields_are_left_out() -> None:
    raw = backend.notice_response(sqlstate="00000", message="note")
    found = backend.decode_diagnostics(frame("N", raw[5:]))
    assert [code for code, _ in found.fields] == ["S", "V", "C", "M"]
    assert found.severity == "NOTICE"


@given(st.text(max_size=30) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=8))
def test_any_text_can_be_sent_in_an_error(text: str) -> None:
    """A refusal quotes what an agent wrote."""
    raw = backend.error_response(sqlstate="42501", message=text, detail=text, hint=text, constraint=text)
    (found,) = FrameReader(Side.BACKEND).feed(raw)
    message = backend.decode_diagnostics(found).message
    assert b"\0" not in message
    message.decode("utf-8")


def test_a_field_code_of_nul_is_never_sent() -> None:
    with pytest.raises(ValueError, match="would end the message"):
        backend.diagnostics(backend.ERROR_RESPONSE, [("\0", b"")])


def test_a_severity_in_another_language_is_told_in_english() -> None:
    assert Diagnostics((("S", b"FEHLER"), ("V", b"ERROR"))).severity == "ERROR"
    assert Diagnostics((("S", b"FEHLER"),)).severity == "FEHLER"
    assert Diagnostics(()).sqlstate == ""
