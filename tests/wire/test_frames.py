"""Messages are cut where PostgreSQL cuts them, however the bytes arrive, and refused where it refuses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire.frames import (
    HEADER_LENGTH,
    PG_MAX_AUTH_TOKEN_LENGTH,
    PQ_LARGE_MESSAGE_LIMIT,
    PQ_SMALL_MESSAGE_LIMIT,
    AuthenticationReader,
    BackendScanner,
    Chunk,
    Event,
    Frame,
    FrameReader,
    FrontendScanner,
    Scanner,
    Side,
)
from sqlwall.wire.sqlstate import PROGRAM_LIMIT_EXCEEDED, PROTOCOL_VIOLATION
from tests.e2e.wire import RawClient
from tests.postgres import Server
from tests.wire.feeding import BACKEND_CODES, CUTS, FRONTEND_CODES, chunked, codes, message, streams

SIDES = pytest.mark.parametrize("side", list(Side), ids=lambda side: side.value)

#: SocketBackend() in tcop/postgres.c; of what a backend sends PostgreSQL has no table.
SMALL = {Side.FRONTEND: b"XCDEHScf", Side.BACKEND: b"ZC123nsIGHWcK"}


def limit(side: Side, code: int) -> int:
    return PQ_SMALL_MESSAGE_LIMIT if code in SMALL[side] else PQ_LARGE_MESSAGE_LIMIT


def header(code: int, length: int) -> bytes:
    return bytes([code]) + length.to_bytes(4, "big")


def feed_all(reader: FrameReader | Scanner, data: bytes, cuts: list[int]) -> tuple[list[Event], str]:
    """All events, and what was wrong in the end."""
    events: list[Event] = []
    for piece in chunked(data, cuts):
        try:
            events += reader.feed(piece)
        except ProtocolError as error:
            return events, str(error)
    return events, str(reader.failure or "")


# -- whole, byte by byte, in any pieces


@SIDES
@given(data=st.data())
def test_frames_are_the_same_however_the_bytes_arrive(side: Side, data: st.DataObject) -> None:
    messages = data.draw(streams(side))
    expected = [Frame(raw[0], raw) for raw in messages]
    stream = b"".join(messages)
    assert FrameReader(side).feed(stream) == expected
    bytewise = FrameReader(side)
    assert [frame for byte in stream for frame in bytewise.feed(bytes([byte]))] == expected
    reader = FrameReader(side)
    assert feed_all(reader, stream, data.draw(CUTS)) == (expected, "")
    assert reader.buffered == 0


@SIDES
@given(data=st.data())
def test_trailing_bytes_wait_for_the_rest_of_their_message(side: Side, data: st.DataObject) -> None:
    messages = data.draw(streams(side))
    last = data.draw(st.builds(message, st.sampled_from(codes(side)), st.binary(max_size=30)))
    held = data.draw(st.integers(0, len(last) - 1))
    reader = FrameReader(side)
    assert len(reader.feed(b"".join(messages) + last[:held])) == len(messages)
    assert reader.buffered == held
    assert reader.feed(last[held:]) == [Frame(last[0], last)]
    assert reader.buffered == 0


@pytest.mark.parametrize("make", [FrameReader, Scanner])
@SIDES
@given(data=st.data())
def test_no_bytes_raise_anything_but_a_protocol_error(
    make: type[FrameReader | Scanner], side: Side, data: st.DataObject
) -> None:
    """And whatever is wrong is the same wrong however they arrive."""
    noise = data.draw(
        st.binary(max_size=60) | st.lists(st.sampled_from(b"QdDZ\0\0\0\0\4\5\6"), max_size=40).map(bytes)
    )
    whole = feed_all(make(side, 1000), noise, [])
    bytewise = feed_all(make(side, 1000), noise, list(range(len(noise))))
    assert whole[1] == bytewise[1]
    assert raw_of(whole[0]) == raw_of(bytewise[0])
    pieces = feed_all(make(side, 1000), noise, data.draw(CUTS))
    assert whole[1] == pieces[1]
    assert raw_of(whole[0]) == raw_of(pieces[0])


def raw_of(events: list[Event]) -> bytes:
    return b"".join(event.raw for event in events)


def test_a_long_message_byte_by_byte_is_read_in_linear_time() -> None:
    stream = message(ord("Q"), b"x" * 300_000)
    reader = FrameReader(Side.FRONTEND)
    frames = [frame for byte in stream for frame in reader.feed(bytes([byte]))]
    assert [frame.raw for frame in frames] == [stream]


def test_a_frame_shows_what_it_is_and_not_what_it_says() -> None:
    frame = Frame(ord("Q"), message(ord("Q"), b"secret\0"))
    assert frame.body == b"secret\0"
    assert "secret" not in repr(frame)
    assert frame == Frame(ord("Q"), bytes(frame.raw))
    assert frame != Frame(ord("P"), frame.raw)
    assert hash(frame) == hash(Frame(ord("Q"), frame.raw))
    assert frame != frame.raw


# -- limits


@SIDES
@pytest.mark.parametrize("make", [FrameReader, Scanner])
def test_every_type_has_the_limit_of_postgresqls_source(
    side: Side, make: type[FrameReader | Scanner]
) -> None:
    for code in codes(side):
        for length in (4, limit(side, code)):
            for pieces in ([header(code, length)], [header(code, length)[:2], header(code, length)[2:]]):
                reader = make(side)
                for piece in pieces:
                    reader.feed(piece)
                assert reader.failure is None
        for length in (0, 3, limit(side, code) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            for pieces in ([header(code, length)], [header(code, length)[:2], header(code, length)[2:]]):
                reader = make(side)
                with pytest.raises(ProtocolError, match=r"^invalid message length$") as caught:
                    for piece in pieces:
                        reader.feed(piece)
                assert caught.value.sqlstate == PROTOCOL_VIOLATION
                assert reader.buffered == 0


@SIDES
@pytest.mark.parametrize("make", [FrameReader, Scanner])
def test_a_type_that_does_not_exist_is_refused_at_its_first_byte(
    side: Side, make: type[FrameReader | Scanner]
) -> None:
    for code in set(range(256)) - set(codes(side)):
        for data in (bytes([code]), header(code, 4), header(code, 4) + message(codes(side)[0], b"")):
            with pytest.raises(ProtocolError, match=f"^invalid {side.value} message type {code}$"):
                make(side).feed(data)


def test_a_password_is_no_message_after_the_login() -> None:
    with pytest.raises(ProtocolError, match=r"invalid frontend message type 112"):
        FrameReader(Side.FRONTEND).feed(b"p")


@SIDES
def test_our_own_limit_is_another_error(side: Side) -> None:
    reader = FrameReader(side, 100)
    code = b"Q"[0] if side is Side.FRONTEND else b"E"[0]
    assert reader.feed(message(code, b"x" * 96)) != []
    with pytest.raises(ProtocolError, match=r"^message of 101 bytes is larger than allowed$") as caught:
        reader.feed(header(code, 101))
    assert caught.value.sqlstate == PROGRAM_LIMIT_EXCEEDED


@pytest.mark.parametrize("make", [FrameReader, Scanner])
def test_frames_ahead_of_a_violation_are_not_lost_and_the_reader_stays_failed(
    make: type[FrameReader | Scanner],
) -> None:
    reader = make(Side.FRONTEND)
    good = message(ord("Q"), b"SELECT 1\0")
    assert raw_of(list(reader.feed(good + good + b"\xff" + good))) == good + good
    assert reader.failure is not None
    for data in (b"", good, b"x"):
        with pytest.raises(ProtocolError, match="invalid frontend message type 255"):
            reader.feed(data)


def answers(postgres: Server, code: int, length: int) -> bool:
    """Whether the server goes on after a message of this type and length word: it answers the Sync behind it."""
    body = bytes(length - 4) + message(ord("S"), b"") if 4 <= length < 20_000 else b""
    with RawClient(postgres.dsn()) as client:
        client.send(header(code, length) + body)
        return any(frame.type_code == ord("Z") for frame in client.until("Z"))


def test_the_server_refuses_the_lengths_that_we_refuse(postgres: Server) -> None:
    """A length that it accepts it waits for; a refused one ends the session."""
    for code in FRONTEND_CODES.replace(b"X", b""):
        is_small = code in SMALL[Side.FRONTEND]
        assert answers(postgres, code, PQ_SMALL_MESSAGE_LIMIT)
        assert answers(postgres, code, PQ_SMALL_MESSAGE_LIMIT + 1) is not is_small
        assert not answers(postgres, code, 3)
        if not is_small:
            assert not answers(postgres, code, PQ_LARGE_MESSAGE_LIMIT + 1)


def test_the_server_refuses_the_types_that_we_refuse(postgres: Server) -> None:
    for code in sorted(set(range(0, 256, 5)) | set(b"pDdQZ\0\xff") | set(FRONTEND_CODES) - set(b"X")):
        assert answers(postgres, code, 4) == (code in FRONTEND_CODES)


# -- the scanner


RELAYED = {Side.FRONTEND: b"d", Side.BACKEND: b"Dd"}


def scan(side: Side, stream: bytes, cuts: list[int]) -> list[Event]:
    events, wrong = feed_all(Scanner(side), stream, cuts)
    assert wrong == ""
    return events


@SIDES
@given(data=st.data())
def test_the_events_of_a_scanner_are_its_input(side: Side, data: st.DataObject) -> None:
    messages = data.draw(streams(side))
    stream = b"".join(messages)
    events = scan(side, stream, data.draw(CUTS))
    assert raw_of(events) == stream
    assert [event for event in events if isinstance(event, Frame)] == [
        Frame(raw[0], raw) for raw in messages if raw[0] not in RELAYED[side]
    ]
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert sum(chunk.rows for chunk in chunks) == sum(
        raw[:1] == b"D" for raw in messages if side is Side.BACKEND
    )
    assert sum(chunk.copy_rows for chunk in chunks) == sum(raw[:1] == b"d" for raw in messages)


@SIDES
@given(data=st.data())
def test_a_reader_of_the_chunks_sees_the_relayed_messages_in_their_place(
    side: Side, data: st.DataObject
) -> None:
    messages = data.draw(streams(side))
    reader = FrameReader(side)
    found: list[Frame] = []
    for event in scan(side, b"".join(messages), data.draw(CUTS)):
        if isinstance(event, Chunk):
            found += reader.feed(event.raw)
        else:
            assert reader.buffered == 0
            found.append(event)
    assert found == [Frame(raw[0], raw) for raw in messages]


@SIDES
@given(data=st.data())
def test_a_chunk_says_what_belongs_to_the_message_before_it(side: Side, data: st.DataObject) -> None:
    """Whoever stops relaying hands out the heads until the message is whole, and no more."""
    messages = data.draw(streams(side))
    scanner = Scanner(side)
    is_open = False
    position, ends = 0, {0}
    for raw in messages:
        position += len(raw)
        ends.add(position)
    position = 0
    for piece in chunked(b"".join(messages), data.draw(CUTS)):
        for event in scanner.feed(piece):
            if isinstance(event, Chunk):
                assert (event.head > 0) == is_open
                assert event.head <= len(event.raw)
                after_head = position + event.head
                if is_open and not (event.is_open and event.head == len(event.raw)):
                    assert after_head in ends
                is_open = event.is_open
            else:
                assert not is_open
            position += len(event.raw)
            assert (position in ends) != is_open
        assert scanner.is_inside_message == is_open


def test_a_relayed_message_is_never_held() -> None:
    scanner = BackendScanner(largest=100)
    assert scanner.feed(header(ord("D"), PQ_LARGE_MESSAGE_LIMIT)) == [
        Chunk(header(ord("D"), PQ_LARGE_MESSAGE_LIMIT), 0, 0, 0, is_open=True)
    ]
    for _ in range(10):
        (event,) = scanner.feed(b"x" * 5000)
        assert isinstance(event, Chunk)
        assert (event.head, event.is_open, event.rows) == (5000, True, 0)
        assert scanner.buffered == 0
    assert scanner.is_inside_message


def test_rows_are_one_run_and_frames_end_it() -> None:
    row, done = message(ord("D"), b"\0\0"), message(ord("C"), b"SELECT 2\0")
    assert BackendScanner().feed(row + row + done + row) == [
        Chunk(row + row, 2, 0), Frame(ord("C"), done), Chunk(row, 1, 0),
    ]  # fmt: skip


def test_a_describe_is_no_row() -> None:
    describe = message(ord("D"), b"Sx\0")
    assert FrontendScanner().feed(describe) == [Frame(ord("D"), describe)]


def test_our_own_limit_is_one_on_frames() -> None:
    scanner = FrontendScanner(largest=50)
    data = message(ord("d"), b"x" * 100)
    assert scanner.feed(data) == [Chunk(data, 0, 1)]
    with pytest.raises(ProtocolError, match="larger than allowed"):
        scanner.feed(message(ord("Q"), b"x" * 100))


def test_a_chunk_shows_how_much_it_holds() -> None:
    one, other = Chunk(b"secret", 1, 0), Chunk(b"secret", 1, 0, 2)
    assert "secret" not in repr(one)
    assert one != other
    assert one != b"secret"
    assert one == Chunk(b"secret", 1, 0)
    assert hash(one) == hash(other)


# -- the login's messages


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.binary(max_size=20), CUTS)
def test_answers_come_one_at_a_time_and_what_follows_is_handed_over(
    bodies: list[bytes], behind: bytes, cuts: list[int]
) -> None:
    reader = AuthenticationReader()
    stream = b"".join(message(ord("p"), body) for body in bodies)
    found: list[bytes] = []
    for piece in chunked(stream, cuts):
        frame = reader.feed(piece)
        while frame is not None:
            found.append(frame.body)
            frame = reader.feed(b"")
    assert found == bodies
    assert reader.rest() == b""
    last = AuthenticationReader()
    assert last.feed(message(ord("p"), bodies[0]) + behind) is not None
    assert last.rest() == behind
    assert last.rest() == b""


@pytest.mark.parametrize("limit_of_ours", [PG_MAX_AUTH_TOKEN_LENGTH, 100])
def test_an_answer_has_a_limit(limit_of_ours: int) -> None:
    whole = message(ord("p"), b"x" * (limit_of_ours - 4))
    frame = AuthenticationReader(limit_of_ours).feed(whole)
    assert frame is not None
    assert len(frame.raw) == limit_of_ours + 1
    for length in (0, 3, limit_of_ours + 1, 0xFFFFFFFF):
        reader = AuthenticationReader(limit_of_ours)
        with pytest.raises(ProtocolError, match="invalid message length"):
            reader.feed(header(ord("p"), length))
        with pytest.raises(ProtocolError, match="invalid message length"):
            reader.feed(b"")


def test_anything_else_than_an_answer_is_refused_at_its_first_byte() -> None:
    for code in set(range(256)) - set(b"p"):
        with pytest.raises(ProtocolError, match=f"expected password response, got message type {code}"):
            AuthenticationReader().feed(bytes([code]))


@given(st.binary(max_size=40), CUTS)
def test_no_bytes_make_a_login_raise_anything_else(noise: bytes, cuts: list[int]) -> None:
    reader = AuthenticationReader()
    for piece in chunked(b"p" + noise, cuts):
        try:
            reader.feed(piece)
        except ProtocolError as error:
            assert reader.failure is error
            return


def test_every_backend_type_is_one_of_the_protocol() -> None:
    """libpq/protocol.h, less what only replication sends."""
    assert set(BACKEND_CODES) == set(b"123CDEGHIKNRSTVWZcdnstvA")
    assert HEADER_LENGTH == 5
