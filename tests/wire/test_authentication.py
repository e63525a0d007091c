"""The messages of a login, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire import authentication
from sqlwall.wire.authentication import (
    Authentication,
    AuthenticationCleartextPassword,
    AuthenticationMD5Password,
    AuthenticationOk,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
    AuthenticationUnsupported,
    SASLInitialResponse,
    SASLResponse,
    decode_authentication,
    decode_password,
    decode_sasl_initial_response,
    decode_sasl_response,
)
from sqlwall.wire.frames import AuthenticationReader, Frame, FrameReader, Side
from tests.wire.feeding import BACKEND_CODES, frame, outcome

WORDS = st.binary(max_size=12).filter(lambda word: b"\0" not in word)
NAMES = WORDS.filter(bool)

REQUESTS: dict[type[Any], tuple[st.SearchStrategy[Any], Callable[[Any], bytes]]] = {
    AuthenticationOk: (st.just(AuthenticationOk()), lambda _: authentication.authentication_ok()),
    AuthenticationCleartextPassword: (
        st.just(AuthenticationCleartextPassword()),
        lambda _: authentication.authentication_cleartext_password(),
    ),
    AuthenticationMD5Password: (
        st.builds(AuthenticationMD5Password, st.binary(min_size=4, max_size=4)),
        lambda value: authentication.authentication_md5_password(value.salt),
    ),
    AuthenticationSASL: (
        st.builds(AuthenticationSASL, st.lists(NAMES, max_size=3).map(tuple)),
        lambda value: authentication.authentication_sasl(value.mechanisms),
    ),
    AuthenticationSASLContinue: (
        st.builds(AuthenticationSASLContinue, st.binary(max_size=30)),
        lambda value: authentication.authentication_sasl_continue(value.data),
    ),
    AuthenticationSASLFinal: (
        st.builds(AuthenticationSASLFinal, st.binary(max_size=30)),
        lambda value: authentication.authentication_sasl_final(value.data),
    ),
}
#: Requests whose body ends by itself.
CLOSED = [AuthenticationOk, AuthenticationCleartextPassword, AuthenticationMD5Password, AuthenticationSASL]


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_request_comes_back_byte_by_byte(kind: type[Authentication], data: st.DataObject) -> None:
    values, encode = REQUESTS[kind]
    value = data.draw(values)
    reader = FrameReader(Side.BACKEND)
    found = [one for byte in encode(value) for one in reader.feed(bytes([byte]))]
    assert [decode_authentication(one) for one in found] == [value]


@pytest.mark.parametrize("kind", CLOSED, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_request_with_trailing_bytes_or_cut_short_is_a_violation(
    kind: type[Authentication], data: st.DataObject
) -> None:
    values, encode = REQUESTS[kind]
    body = encode(data.draw(values))[5:]
    with pytest.raises(ProtocolError):
        decode_authentication(frame("R", body + data.draw(st.binary(min_size=1, max_size=4))))
    with pytest.raises(ProtocolError):
        decode_authentication(frame("R", body[: data.draw(st.integers(0, len(body) - 1))]))


@given(
    st.integers(0, 2**32 - 1).filter(lambda method: method not in (0, 3, 5, 10, 11, 12)),
    st.binary(max_size=20),
)
def test_a_method_that_we_do_not_speak_is_named(method: int, behind: bytes) -> None:
    body = method.to_bytes(4, "big") + behind
    assert decode_authentication(frame("R", body)) == AuthenticationUnsupported(method)


@given(WORDS, st.none() | st.binary(max_size=20))
def test_a_first_answer_comes_back(mechanism: bytes, response: bytes | None) -> None:
    raw = authentication.sasl_initial_response(mechanism, response)
    reader = AuthenticationReader()
    found = [one for byte in raw if (one := reader.feed(bytes([byte]))) is not None]
    assert [decode_sasl_initial_response(one) for one in found] == [SASLInitialResponse(mechanism, response)]


@given(WORDS, st.none() | st.binary(max_size=20), st.binary(min_size=1, max_size=4), st.data())
def test_a_first_answer_with_trailing_bytes_or_cut_short_is_a_violation(
    mechanism: bytes, response: bytes | None, trailing: bytes, data: st.DataObject
) -> None:
    body = authentication.sasl_initial_response(mechanism, response)[5:]
    with pytest.raises(ProtocolError):
        decode_sasl_initial_response(frame("p", body + trailing))
    with pytest.raises(ProtocolError):
        decode_sasl_initial_response(frame("p", body[: data.draw(st.integers(0, len(body) - 1))]))


@given(st.binary(max_size=40))
def test_a_later_answer_is_all_of_its_message(data: bytes) -> None:
    found = AuthenticationReader().feed(authentication.sasl_response(data))
    assert found is not None
    assert decode_sasl_response(found) == SASLResponse(data)


@given(WORDS)
def test_a_password_comes_back(secret: bytes) -> None:
    found = AuthenticationReader().feed(authentication.password(secret))
    assert found is not None
    assert decode_password(found) == secret


@pytest.mark.parametrize("body", [b"", b"secret", b"secret\0x", b"\0\0"])
def test_a_password_fills_its_message(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"invalid (string in message|password packet size)"):
        decode_password(frame("p", body))


ANSWERS: list[Callable[[Frame], object]] = [
    decode_password,
    decode_sasl_initial_response,
    decode_sasl_response,
]


@pytest.mark.parametrize("decode", [*ANSWERS, decode_authentication], ids=lambda decode: decode.__name__)
@given(code=st.sampled_from(b"pR") | st.integers(0, 255), body=st.binary(max_size=40))
def test_no_body_raises_anything_but_a_protocol_error(
    decode: Callable[[Frame], object], code: int, body: bytes
) -> None:
    outcome(lambda: decode(frame(chr(code), body)))


@pytest.mark.parametrize("decode", ANSWERS, ids=lambda decode: decode.__name__)
def test_an_answer_of_another_type_is_refused(decode: Callable[[Frame], object]) -> None:
    for code in set(range(256)) - set(b"p"):
        with pytest.raises(ProtocolError, match=f"expected password response, got message type {code}"):
            decode(frame(chr(code), b"x\0"))


def test_a_request_of_another_type_is_refused() -> None:
    for code in set(BACKEND_CODES) - set(b"R"):
        with pytest.raises(ProtocolError, match=f"expected authentication request, got message type {code}"):
            decode_authentication(frame(chr(code), bytes(4)))
