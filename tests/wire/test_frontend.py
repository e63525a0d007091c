"""What a client says: every message comes back as it was put together, and a byte more or less is a violation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire import frontend
from sqlwall.wire.frames import Frame, FrameReader, Side
from sqlwall.wire.frontend import (
    Bind,
    Close,
    CopyData,
    CopyDone,
    CopyFail,
    Describe,
    Execute,
    Flush,
    FrontendMessage,
    FunctionCall,
    Kind,
    Parse,
    Query,
    Sync,
    Terminate,
)
from tests.e2e.wire import RawClient, errors
from tests.postgres import Server
from tests.wire.feeding import FRONTEND_CODES, frame, outcome

NAMES = st.binary(max_size=12).filter(lambda name: b"\0" not in name)
KINDS = st.sampled_from(list(Kind))
FORMATS = st.lists(st.integers(-(2**15), 2**15 - 1), max_size=3)
VALUES = st.lists(st.none() | st.binary(max_size=10), max_size=4)


@st.composite
def binds(draw: st.DrawFn) -> Bind:
    values = draw(VALUES)
    count = draw(st.sampled_from(sorted({0, 1, len(values)})))
    formats = draw(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=count, max_size=count))
    return Bind(draw(NAMES), draw(NAMES), tuple(formats), tuple(values), tuple(draw(FORMATS)))


@st.composite
def calls(draw: st.DrawFn) -> FunctionCall:
    bind = draw(binds())
    function, result = draw(st.integers(0, 2**32 - 1)), draw(st.integers(-(2**15), 2**15 - 1))
    return FunctionCall(function, bind.parameter_formats, bind.parameters, result)


MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    Query: st.builds(Query, NAMES),
    Parse: st.builds(Parse, NAMES, NAMES, st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple)),
    Bind: binds(),
    Describe: st.builds(Describe, KINDS, NAMES),
    Execute: st.builds(Execute, NAMES, st.integers(-(2**31), 2**31 - 1)),
    Close: st.builds(Close, KINDS, NAMES),
    Sync: st.just(Sync()),
    Flush: st.just(Flush()),
    CopyData: st.builds(CopyData, st.binary(max_size=20)),
    CopyDone: st.just(CopyDone()),
    CopyFail: st.builds(CopyFail, NAMES),
    FunctionCall: calls(),
    Terminate: st.just(Terminate()),
}
ANY = st.one_of(*MESSAGES.values())


def encode(message: FrontendMessage) -> bytes:
    encoders: dict[type[Any], Callable[[Any], bytes]] = {
        Query: lambda m: frontend.query(m.text),
        Parse: lambda m: frontend.parse(m.name, m.query, m.parameter_types),
        Bind: lambda m: frontend.bind(
            m.portal, m.statement, m.parameters, m.parameter_formats, m.result_formats
        ),
        Describe: lambda m: frontend.describe(m.kind, m.name),
        Execute: lambda m: frontend.execute(m.portal, m.max_rows),
        Close: lambda m: frontend.close(m.kind, m.name),
        Sync: lambda _: frontend.sync(),
        Flush: lambda _: frontend.flush(),
        CopyData: lambda m: frontend.copy_data(m.data),
        CopyDone: lambda _: frontend.copy_done(),
        CopyFail: lambda m: frontend.copy_fail(m.reason),
        FunctionCall: lambda m: frontend.function_call(
            m.function, m.arguments, m.argument_formats, m.result_format
        ),
        Terminate: lambda _: frontend.terminate(),
    }
    return encoders[type(message)](message)


def framed(raw: bytes) -> Frame:
    (found,) = FrameReader(Side.FRONTEND).feed(raw)
    return found


def shorter(found: Frame, length: int) -> Frame:
    """The same message with its body cut."""
    return frame(chr(found.type_code), found.body[:length])


def test_every_type_has_an_encoder_and_a_decoder() -> None:
    assert len(MESSAGES) == len(FRONTEND_CODES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_message_comes_back(kind: type[FrontendMessage], data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert frontend.decode(framed(encode(message))) == message


@given(st.lists(ANY, max_size=6))
def test_a_conversation_fed_byte_by_byte_is_what_was_said(messages: list[FrontendMessage]) -> None:
    reader = FrameReader(Side.FRONTEND)
    stream = b"".join(encode(message) for message in messages)
    found = [frontend.decode(one) for byte in stream for one in reader.feed(bytes([byte]))]
    assert found == messages


@given(ANY.filter(lambda message: not isinstance(message, CopyData)), st.binary(min_size=1, max_size=5))
def test_trailing_bytes_are_a_violation(message: FrontendMessage, trailing: bytes) -> None:
    whole = framed(encode(message))
    with pytest.raises(ProtocolError):
        frontend.decode(frame(chr(whole.type_code), whole.body + trailing))


@given(
    ANY.filter(lambda message: not isinstance(message, CopyData | Sync | Flush | CopyDone | Terminate)),
    st.data(),
)
def test_a_body_that_is_cut_short_is_a_violation(message: FrontendMessage, data: st.DataObject) -> None:
    whole = framed(encode(message))
    cut = data.draw(st.integers(0, len(whole.body) - 1))
    with pytest.raises(ProtocolError):
        frontend.decode(shorter(whole, cut))


DECODERS: dict[str, Callable[[Frame], object]] = {
    "decode": frontend.decode,
    "bind_names": frontend.bind_names,
    "execute_portal": frontend.execute_portal,
    "kind_and_name": frontend.kind_and_name,
    "decode_query": frontend.decode_query,
    "decode_parse": frontend.decode_parse,
    "decode_bind": frontend.decode_bind,
    "decode_describe": frontend.decode_describe,
    "decode_execute": frontend.decode_execute,
    "decode_close": frontend.decode_close,
    "decode_copy_fail": frontend.decode_copy_fail,
    "decode_function_call": frontend.decode_function_call,
}
NOISE = st.binary(max_size=60) | st.lists(st.sampled_from(b"\0\0\0\0\1\2\xffSPab"), max_size=40).map(bytes)


@pytest.mark.parametrize("name", DECODERS)
@given(code=st.sampled_from(FRONTEND_CODES) | st.integers(0, 255), body=NOISE)
def test_no_body_raises_anything_but_a_protocol_error(name: str, code: int, body: bytes) -> None:
    outcome(lambda: DECODERS[name](frame(chr(code), body)))


@given(body=NOISE | binds().map(lambda bind: encode(bind)[5:]))
def test_the_quick_look_at_a_bind_says_what_the_decoder_says(body: bytes) -> None:
    found = frame("B", body)
    quick = outcome(lambda: frontend.bind_names(found))
    whole = outcome(lambda: frontend.decode_bind(found))
    if isinstance(whole, Bind):
        assert quick == (whole.portal, whole.statement)
    else:
        assert quick == whole


@given(body=NOISE)
def test_the_quick_look_at_an_execute_says_what_the_decoder_says(body: bytes) -> None:
    found = frame("E", body)
    quick = outcome(lambda: frontend.execute_portal(found))
    whole = outcome(lambda: frontend.decode_execute(found))
    assert quick == (whole.portal if isinstance(whole, Execute) else whole)


@pytest.mark.parametrize(("code", "decode"), [("D", frontend.decode_describe), ("C", frontend.decode_close)])
@given(body=NOISE)
def test_the_quick_look_at_a_name_says_what_the_decoder_says(
    code: str, decode: Callable[[Frame], Describe | Close], body: bytes
) -> None:
    found = frame(code, body)
    quick = outcome(lambda: frontend.kind_and_name(found))
    whole = outcome(lambda: decode(found))
    if isinstance(whole, str):
        assert quick == whole
    else:
        assert quick == (bytes([whole.kind.value]), whole.name)


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(FRONTEND_CODES)))
def test_what_is_no_frontend_message_is_refused(code: int) -> None:
    with pytest.raises(ProtocolError, match=f"invalid frontend message type {code}"):
        frontend.decode(frame(chr(code), b""))


@pytest.mark.parametrize("code", [0, 1, ord("s"), ord("T"), 255])
def test_a_describe_or_close_names_a_statement_or_a_portal(code: int) -> None:
    for kind, word in (("D", "DESCRIBE"), ("C", "CLOSE")):
        with pytest.raises(ProtocolError, match=f"invalid {word} message subtype {code}"):
            frontend.decode(frame(kind, bytes([code]) + b"x\0"))


def test_formats_are_none_one_or_as_many_as_the_values() -> None:
    with pytest.raises(ProtocolError, match="bind message has 2 parameter formats but 3 parameters"):
        frontend.decode(framed(frontend.bind(b"", b"", [b"1", b"2", b"3"], [0, 1])))
    with pytest.raises(ProtocolError, match="contains 2 argument formats but 1 arguments"):
        frontend.decode(framed(frontend.function_call(1, [b"1"], [0, 1])))
    bind = frontend.decode(framed(frontend.bind(b"", b"", [], [1])))
    assert isinstance(bind, Bind)


def test_counts_are_unsigned() -> None:
    """PostgreSQL reads them as int16 and takes 65535 as the number that libpq's PQ_QUERY_PARAM_MAX_LIMIT means."""
    values = [None] * 65535
    bind = frontend.decode(framed(frontend.bind(b"", b"", values)))
    assert isinstance(bind, Bind)
    assert len(bind.parameters) == 65535


# -- what the server says to the same bytes


HEADLESS = [
    ("Q", b""), ("Q", b"SELECT 1"), ("Q", b"SELECT 1\0x"), ("Q", b"SELECT 1\0"),
    ("P", b"\0SELECT 1\0\0\0"), ("P", b"\0SELECT 1\0\0\1"), ("P", b"\0SELECT 1\0\0\0x"), ("P", b"\0SELECT 1"),
    ("D", b"S\0"), ("D", b"X\0"), ("D", b"S"), ("D", b""), ("D", b"S\0x"),
    ("C", b"S\0"), ("C", b"Px\0"), ("C", b"X\0"), ("C", b"S\0x"),
    ("E", b"\0\0\0\0\0"), ("E", b"\0\0\0\0"), ("E", b"\0\0\0\0\0x"),
    ("S", b""), ("S", b"x"), ("H", b""), ("H", b"x"),
    ("B", b"\0\0\0\0\0\0\0\0"), ("B", b"\0\0\0\0\0\0\0\0x"), ("B", b"\0\0\0\0\0\0\0\1"), ("B", b""),
    ("B", b"\0p\0\0\0\0\1\0\0\0\4abcd\0\0"), ("B", b"\0p\0\0\0\0\1\xff\xff\xff\xff\0\0"),
    ("B", b"\0p\0\0\2\0\0\0\0\0\1\xff\xff\xff\xff\0\0"), ("B", b"\0p\0\0\0\0\1\xff\xff\xff\xfe\0\0"),
    ("B", b"\0p\0\0\0\0\1\0\0\0\7abcd\0\0"), ("B", b"\0p\0\0\1\0\0\0\1\0\0\0\1x\0\2\0\0"),
    ("F", b"\0\0\x07\xea\0\0\0\0\0\0"), ("F", b"\0\0\x07\xea\0\0\0\0"), ("F", b"\0\0\x07\xea\0\0\0\0\0\0x"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "body"), HEADLESS, ids=repr)
def test_the_server_finds_a_violation_where_we_do(postgres: Server, code: str, body: bytes) -> None:
    """08P01 is the class of its complaints about a message; about what the message asks it has others."""
    said = outcome(lambda: frontend.decode(frame(code, body)))
    with RawClient(postgres.dsn()) as client:
        client.send(
            frontend.parse(b"", b"SELECT 1"), frontend.parse(b"p", b"SELECT $1::text"), frontend.sync()
        )
        client.until()
        answer = client.ask(frame(code, body).raw, frontend.sync())
        violations = [error for error in errors(answer) if error.sqlstate == "08P01"]
        assert bool(violations) == isinstance(said, str), (said, answer)
