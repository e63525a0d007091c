"""The messages of a login: what the server asks and what the client answers, decoded and encoded.

Layouts are the manual's chapter "Message Formats", numbers those of libpq/protocol.h. Every answer has the type 'p':
only the request tells which kind it is. What the exchanged bytes prove is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlwall.errors import ProtocolError
from sqlwall.wire.body import BodyReader, c_string, frame_bytes, uint32_bytes, value_bytes
from sqlwall.wire.frames import Frame

AUTHENTICATION: Final = 0x52
PASSWORD: Final = 0x70


@dataclass(frozen=True, slots=True)
class AuthenticationOk:
    """The login is done."""


@dataclass(frozen=True, slots=True)
class AuthenticationCleartextPassword:
    """The server wants the password itself."""


@dataclass(frozen=True, slots=True)
class AuthenticationMD5Password:
    """The server wants an MD5 digest over password, user and `salt`."""

    salt: bytes


@dataclass(frozen=True, slots=True)
class AuthenticationSASL:
    """The server offers SASL mechanisms, the preferred one first."""

    mechanisms: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AuthenticationSASLContinue:
    """A step of the SASL exchange."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AuthenticationSASLFinal:
    """The last step of the SASL exchange: the server's proof."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AuthenticationUnsupported:
    """A method that sqlwall does not speak (Kerberos, GSSAPI, SSPI): the number in the request."""

    method: int


@dataclass(frozen=True, slots=True)
class SASLInitialResponse:
    """The mechanism the client picked, and its first message if it has one."""

    mechanism: bytes
    response: bytes | None


@dataclass(frozen=True, slots=True)
class SASLResponse:
    """A later message of a SASL exchange."""

    data: bytes


Authentication: TypeAlias = (
    AuthenticationOk
    | AuthenticationCleartextPassword
    | AuthenticationMD5Password
    | AuthenticationSASL
    | AuthenticationSASLContinue
    | AuthenticationSASLFinal
    | AuthenticationUnsupported
)


def decode_authentication(frame: Frame) -> Authentication:
    """Decodes an authentication request."""
    if frame.type_code != AUTHENTICATION:
        raise ProtocolError(f"expected authentication request, got message type {frame.type_code}")
    body = BodyReader(frame)
    method = body.uint32()
    answer: Authentication
    if method == 0:
        answer = AuthenticationOk()
    elif method == 3:
        answer = AuthenticationCleartextPassword()
    elif method == 5:
        answer = AuthenticationMD5Password(body.take(4))
    elif method == 10:
        answer = AuthenticationSASL(_mechanisms(body))
    elif method == 11:
        answer = AuthenticationSASLContinue(body.rest())
    elif method == 12:
        answer = AuthenticationSASLFinal(body.rest())
    else:
        body.rest()
        answer = AuthenticationUnsupported(method)
    body.finish()
    return answer


def _mechanisms(body: BodyReader) -> tuple[bytes, ...]:
    mechanisms: list[bytes] = []
    while True:
        mechanism = body.string()
        if not mechanism:
            return tuple(mechanisms)
        mechanisms.append(mechanism)


def decode_sasl_initial_response(frame: Frame) -> SASLInitialResponse:
    """Reads a 'p' message as the answer to AuthenticationSASL."""
    _require_password_type(frame)
    body = BodyReader(frame)
    mechanism = body.string()
    response = body.value()
    body.finish()
    return SASLInitialResponse(mechanism, response)


def decode_sasl_response(frame: Frame) -> SASLResponse:
    """Reads a 'p' message as the answer to AuthenticationSASLContinue."""
    _require_password_type(frame)
    return SASLResponse(frame.body)


def decode_password(frame: Frame) -> bytes:
    """Reads a 'p' message as the answer to a request for a password."""
    _require_password_type(frame)
    body = BodyReader(frame)
    secret = body.string()
    if body.has_more():
        raise ProtocolError("invalid password packet size")
    return secret


def _require_password_type(frame: Frame) -> None:
    if frame.type_code != PASSWORD:
        raise ProtocolError(f"expected password response, got message type {frame.type_code}")


def authentication_ok() -> bytes:
    """Encodes an AuthenticationOk."""
    return frame_bytes(AUTHENTICATION, uint32_bytes(0))


def authentication_cleartext_password() -> bytes:
    """Encodes an AuthenticationCleartextPassword."""
    return frame_bytes(AUTHENTICATION, uint32_bytes(3))


def authentication_md5_password(salt: bytes) -> bytes:
    """Encodes an AuthenticationMD5Password; the salt has four bytes."""
    return frame_bytes(AUTHENTICATION, uint32_bytes(5) + salt)


def authentication_sasl(mechanisms: Sequence[bytes]) -> bytes:
    """Encodes an AuthenticationSASL."""
    names = b"".join([c_string(mechanism) for mechanism in mechanisms])
    return frame_bytes(AUTHENTICATION, uint32_bytes(10) + names + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    """Encodes an AuthenticationSASLContinue."""
    return frame_bytes(AUTHENTICATION, uint32_bytes(11) + data)


def authentication_sasl_final(data: bytes) -> bytes:
    """Encodes an AuthenticationSASLFinal."""
    return frame_bytes(AUTHENTICATION, uint32_bytes(12) + data)


def password(secret: bytes) -> bytes:
    """Encodes a PasswordMessage, the answer to a request for a cleartext or MD5 password."""
    return frame_bytes(PASSWORD, c_string(secret))


def sasl_initial_response(mechanism: bytes, response: bytes | None) -> bytes:
    """Encodes a SASLInitialResponse."""
    return frame_bytes(PASSWORD, c_string(mechanism) + value_bytes(response))


def sasl_response(data: bytes) -> bytes:
    """Encodes a SASLResponse."""
    return frame_bytes(PASSWORD, data)
