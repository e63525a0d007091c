"""The first packet: whatever arrives is one of four things or a violation, in the words and limits of PostgreSQL."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire.backend import decode_diagnostics, decode_negotiate_protocol_version
from sqlwall.wire.frames import MAX_STARTUP_PACKET_LENGTH, FrameReader, Side
from sqlwall.wire.sqlstate import FEATURE_NOT_SUPPORTED, PROTOCOL_VIOLATION
from sqlwall.wire.startup import (
    LATEST_MINOR,
    MAX_CANCEL_KEY_LENGTH,
    MIN_CANCEL_KEY_LENGTH,
    PROTOCOL_3_0,
    PROTOCOL_3_2,
    TLS_HANDSHAKE,
    CancelRequest,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    StartupPacket,
    StartupReader,
    cancel_request,
    gssenc_request,
    negotiate_protocol_version,
    ssl_request,
    startup_message,
)
from tests.postgres import Server
from tests.wire.feeding import CUTS, chunked, frame

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)
VALUES = st.binary(max_size=12).filter(lambda value: b"\0" not in value)
PARAMETERS = st.lists(st.tuples(NAMES, VALUES), max_size=5)
PROTOCOLS = st.integers(0, 0xFFFF).map(lambda minor: PROTOCOL_3_0 | minor)
KEYS = st.binary(min_size=MIN_CANCEL_KEY_LENGTH, max_size=MAX_CANCEL_KEY_LENGTH)

PACKETS: st.SearchStrategy[tuple[bytes, StartupPacket]] = st.one_of(
    st.just((ssl_request(), SSLRequest())),
    st.just((gssenc_request(), GSSENCRequest())),
    st.builds(
        lambda process, key: (cancel_request(process, key), CancelRequest(process, key)),
        st.integers(-(2**31), 2**31 - 1),
        KEYS,
    ),
    st.builds(
        lambda parameters, protocol: (
            startup_message(parameters, protocol),
            StartupMessage(protocol, tuple(parameters)),
        ),
        PARAMETERS,
        PROTOCOLS,
    ),
)


def packet(content: bytes) -> bytes:
    """Content behind its length word, spelled out apart from the code under test."""
    return (len(content) + 4).to_bytes(4, "big") + content


def startup(content: bytes, protocol: int = PROTOCOL_3_0) -> bytes:
    return packet(protocol.to_bytes(4, "big") + content)


def read(data: bytes, **done: bool) -> StartupPacket:
    found = StartupReader(**done).feed(data)
    assert found is not None
    return found


# -- whole, byte by byte, with bytes behind


@given(PACKETS, CUTS)
def test_a_packet_comes_back_however_it_arrives(pair: tuple[bytes, StartupPacket], cuts: list[int]) -> None:
    raw, expected = pair
    assert read(raw) == expected
    for pieces in ([bytes([byte]) for byte in raw], list(chunked(raw, cuts))):
        reader = StartupReader()
        answers = [reader.feed(piece) for piece in pieces]
        assert [answer for answer in answers if answer is not None] == [expected]
        assert reader.rest == b""


@given(PACKETS, st.binary(min_size=1, max_size=30), CUTS)
def test_bytes_behind_a_packet_are_kept_apart(
    pair: tuple[bytes, StartupPacket], behind: bytes, cuts: list[int]
) -> None:
    raw, expected = pair
    reader = StartupReader()
    answers = [reader.feed(piece) for piece in chunked(raw + behind, cuts)]
    assert [answer for answer in answers if answer is not None] == [expected]
    assert reader.rest == behind
    assert reader.feed(b"more") is None
    assert reader.rest == behind + b"more"


@given(PACKETS, st.data())
def test_an_incomplete_packet_is_no_answer_yet(
    pair: tuple[bytes, StartupPacket], data: st.DataObject
) -> None:
    raw, _ = pair
    reader = StartupReader()
    held = raw[: data.draw(st.integers(0, len(raw) - 1))]
    assert reader.feed(held) is None
    assert reader.has_begun == bool(held)
    assert reader.rest == b""


NOISE = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(startup),
    st.lists(st.sampled_from(b"\0ab"), max_size=30).map(bytes).map(startup),
    st.binary(max_size=300).map(packet),
)


@given(NOISE, st.booleans(), st.booleans(), CUTS)
def test_no_bytes_raise_anything_but_a_protocol_error(
    noise: bytes, ssl: bool, gss: bool, cuts: list[int]
) -> None:
    """And a reader that has failed stays failed, holding nothing."""

    def run(pieces: list[bytes]) -> StartupPacket | str | None:
        reader = StartupReader(ssl_done=ssl, gss_done=gss)
        answer: StartupPacket | None = None
        for piece in pieces:
            try:
                answer = reader.feed(piece) or answer
            except ProtocolError as error:
                assert error.sqlstate in (PROTOCOL_VIOLATION, FEATURE_NOT_SUPPORTED)
                with pytest.raises(ProtocolError):
                    reader.feed(b"")
                assert reader.rest == b""
                return str(error)
        return answer

    assert run([noise]) == run(list(chunked(noise, cuts))) == run([bytes([byte]) for byte in noise])


# -- limits


@pytest.mark.parametrize("length", [0, 4, 7, MAX_STARTUP_PACKET_LENGTH + 5, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_length_beyond_the_limits_is_refused_before_the_packet_is_there(length: int) -> None:
    with pytest.raises(ProtocolError, match="invalid length of startup packet") as caught:
        StartupReader().feed(length.to_bytes(4, "big"))
    assert caught.value.sqlstate == PROTOCOL_VIOLATION


def test_a_packet_of_the_limit_is_read() -> None:
    value = b"x" * (MAX_STARTUP_PACKET_LENGTH - 4 - len(b"user\0\0\0"))
    raw = startup_message([(b"user", value)])
    assert len(raw) == MAX_STARTUP_PACKET_LENGTH + 4
    assert read(raw) == StartupMessage(PROTOCOL_3_0, ((b"user", value),))
    with pytest.raises(ProtocolError, match="invalid length of startup packet"):
        read(startup_message([(b"user", value + b"x")]))


def test_a_tls_handshake_is_no_packet() -> None:
    """Its first byte alone makes a length that no startup packet has."""
    with pytest.raises(ProtocolError, match="invalid length of startup packet"):
        StartupReader().feed(bytes([TLS_HANDSHAKE, 3, 1, 0]))


@pytest.mark.parametrize(
    "length", [MIN_CANCEL_KEY_LENGTH, 5, 32, MAX_CANCEL_KEY_LENGTH - 1, MAX_CANCEL_KEY_LENGTH]
)
def test_a_cancel_key_has_4_to_256_bytes(length: int) -> None:
    key = bytes(range(256))[:length]
    assert read(cancel_request(-5, key)) == CancelRequest(-5, key)


@pytest.mark.parametrize("length", [0, 1, 3, MAX_CANCEL_KEY_LENGTH + 1, 5000])
def test_a_cancel_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="invalid length of cancel key in cancel request packet"):
        read(cancel_request(1, bytes(length)))


def test_a_cancel_request_without_a_process_is_refused() -> None:
    for content in (b"", b"\0", b"\0\0\0"):
        with pytest.raises(ProtocolError, match="invalid length of cancel request packet"):
            read(packet(bytes.fromhex("04d2162e") + content))


# -- layout


@pytest.mark.parametrize(
    "content",
    [b"", b"user\0", b"user\0ada", b"user\0ada\0", b"user\0ada\0database\0\0", b"user\0ada\0\0\0", b"\0\0", b"\0x\0",
     b"\0user\0ada\0\0", b"user\0ada\0x", b"user\0ada\0\0user\0bob\0\0"],
    ids=repr,
)  # fmt: skip
def test_parameters_that_do_not_fill_the_packet_are_refused(content: bytes) -> None:
    """What stands behind the terminator would be read by nobody here, and perhaps by somebody behind us."""
    with pytest.raises(ProtocolError, match="expected terminator as last byte"):
        read(startup(content))


def test_a_packet_may_have_no_parameters_and_a_value_may_be_empty() -> None:
    assert read(startup(b"\0")) == StartupMessage(PROTOCOL_3_0, ())
    assert read(startup(b"user\0\0\0")) == StartupMessage(PROTOCOL_3_0, ((b"user", b""),))


@given(
    st.lists(st.sampled_from([b"user", b"USER", b"User", b"options", b"_pq_.x", b"_pq_.y", b"x"]), max_size=6)
)
def test_repeated_names_are_told_in_any_case_and_the_last_one_wins(names: list[bytes]) -> None:
    pairs = [(name, b"%d" % at) for at, name in enumerate(names)]
    message = read(startup_message(pairs))
    assert isinstance(message, StartupMessage)
    folded = [name.lower() for name in names]
    assert sorted(message.repeated) == sorted({name for name in folded if folded.count(name) > 1})
    for name in names:
        assert message.value(name) == dict(pairs)[name]
    assert message.value(b"absent") is None
    assert message.protocol_options == tuple(name for name in names if name.startswith(b"_pq_."))


def test_an_encryption_request_with_something_in_it_is_refused() -> None:
    for code in ("04d2162f", "04d21630"):
        with pytest.raises(ProtocolError, match="invalid length of startup packet"):
            read(packet(bytes.fromhex(code) + b"\0"))


@pytest.mark.parametrize(("request_", "done"), [(ssl_request, "ssl_done"), (gssenc_request, "gss_done")])
def test_encryption_is_asked_for_once(request_: Callable[[], bytes], done: str) -> None:
    assert read(request_()) is not None
    with pytest.raises(ProtocolError, match=r"unsupported frontend protocol 1234\.56") as caught:
        read(request_(), **{done: True})
    assert caught.value.sqlstate == FEATURE_NOT_SUPPORTED


def test_an_empty_name_is_never_sent() -> None:
    with pytest.raises(ValueError, match="a startup parameter needs a name"):
        startup_message([(b"", b"x")])
    with pytest.raises(ValueError, match="cannot hold a NUL"):
        startup_message([(b"user", b"ada\0options\0-c x")])


# -- versions


@pytest.mark.parametrize(
    ("protocol", "minor", "negotiated", "needs"),
    [(PROTOCOL_3_0, 0, 0, False), (0x30001, 1, 1, False), (PROTOCOL_3_2, 2, 2, False), (0x30003, 3, 2, True),
     (0x3270F, 9999, 2, True), (0x3FFFF, 65535, 2, True)],
)  # fmt: skip
def test_a_newer_minor_version_is_negotiated_down(
    protocol: int, minor: int, negotiated: int, needs: bool
) -> None:
    message = read(startup_message([(b"user", b"ada")], protocol))
    assert isinstance(message, StartupMessage)
    assert (message.minor, message.negotiated_minor, message.needs_negotiation) == (minor, negotiated, needs)


def test_an_option_of_the_protocol_is_negotiated_away() -> None:
    message = read(startup_message([(b"user", b"ada"), (b"_pq_.compression", b"zstd")]))
    assert isinstance(message, StartupMessage)
    assert message.needs_negotiation
    assert message.protocol_options == (b"_pq_.compression",)


@pytest.mark.parametrize("protocol", [0, 1, 0x20000, 0x2FFFF, 0x40000, 0x04D20000, 0x04D21631, 0xFFFFFFFF])
def test_another_major_version_is_refused(protocol: int) -> None:
    shown = (
        rf"unsupported frontend protocol {protocol >> 16}\.{protocol & 0xFFFF}: server supports 3\.0 to 3\.2"
    )
    with pytest.raises(ProtocolError, match=shown) as caught:
        read(startup(b"user\0ada\0\0", protocol))
    assert caught.value.sqlstate == FEATURE_NOT_SUPPORTED


@given(st.integers(0, 0xFFFF), st.lists(NAMES, max_size=4))
def test_a_negotiation_says_which_version_and_which_options(minor: int, options: list[bytes]) -> None:
    (found,) = FrameReader(Side.BACKEND).feed(negotiate_protocol_version(minor, options))
    negotiated = decode_negotiate_protocol_version(found)
    assert negotiated.protocol == PROTOCOL_3_0 | minor
    assert negotiated.options == tuple(options)


@pytest.mark.parametrize("body", [b"", b"\0\3\0\2", b"\0\3\0\2\xff\xff\xff\xff", b"\0\3\0\2\0\0\0\1", b"\0\3\0\2\0\0\0\0x",
                                  b"\0\3\0\2\x7f\xff\xff\xffx\0", b"\0\3\0\2\0\0\0\1x"], ids=repr)  # fmt: skip
def test_a_negotiation_that_is_malformed_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_negotiate_protocol_version(frame("v", body))


# -- what the server says to the same bytes


def ask(server: Server, raw: bytes) -> bytes:
    """What the server answers first; nothing if it ends the connection without a word."""
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(raw)
        try:
            return connection.recv(65536)
        except ConnectionResetError:
            return b""


def test_the_server_negotiates_as_we_do(postgres: Server) -> None:
    """Its newest minor version is ours from PostgreSQL 18 on; before, it was 0."""
    newest = LATEST_MINOR if postgres.version() >= 18 else 0
    parameters = [(b"user", postgres.user.encode()), (b"_pq_.a", b"1"), (b"_pq_.b", b"")]
    frames = FrameReader(Side.BACKEND).feed(ask(postgres, startup_message(parameters, 0x3270F)))
    assert frames[0].raw == negotiate_protocol_version(newest, [b"_pq_.a", b"_pq_.b"])


def test_the_server_does_not_negotiate_what_it_knows(postgres: Server) -> None:
    for protocol in (PROTOCOL_3_0, PROTOCOL_3_2) if postgres.version() >= 18 else (PROTOCOL_3_0,):
        frames = FrameReader(Side.BACKEND).feed(
            ask(postgres, startup_message([(b"user", postgres.user.encode())], protocol))
        )
        assert frames[0].type_code == ord("R")


REFUSED = [
    startup(b"user\0ada"),
    startup(b"user\0ada\0"),
    startup(b"user\0ada\0database\0\0"),
    startup(b"user\0ada\0\0", 0x40000),
]


@pytest.mark.parametrize("raw", REFUSED, ids=repr)
def test_the_server_refuses_in_our_words(postgres: Server, raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        StartupReader().feed(raw)
    answer = decode_diagnostics(FrameReader(Side.BACKEND).feed(ask(postgres, raw))[0])
    assert answer.severity == "FATAL"
    assert answer.sqlstate == caught.value.sqlstate
    newest = f"3.{LATEST_MINOR}" if postgres.version() >= 18 else "3.0"
    assert answer.message.decode() == str(caught.value).replace(f"3.{LATEST_MINOR}", newest)


def test_the_server_takes_any_last_byte_for_the_terminator_and_we_do_not(postgres: Server) -> None:
    raw = startup(b"user\0ada\0x")
    assert ask(postgres, raw)[:1] == b"R"
    with pytest.raises(ProtocolError, match="expected terminator as last byte"):
        read(raw)


@pytest.mark.parametrize("length", [0, 7, MAX_STARTUP_PACKET_LENGTH + 5, 2**31 - 1])
def test_the_server_refuses_the_lengths_that_we_refuse(postgres: Server, length: int) -> None:
    assert ask(postgres, length.to_bytes(4, "big") + bytes(20)) == b""


def test_the_server_answers_a_packet_of_the_limit(postgres: Server) -> None:
    pad = MAX_STARTUP_PACKET_LENGTH - 4 - len(b"user\0a\0database\0\0\0")
    raw = startup_message([(b"user", b"a"), (b"database", b"x" * pad)])
    assert len(raw) == MAX_STARTUP_PACKET_LENGTH + 4
    assert ask(postgres, raw) != b""
