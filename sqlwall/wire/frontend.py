"""What a client says: one value per message, strictly decoded, and encoders for what sqlwall says as a client.

Layouts are the manual's chapter "Message Formats"; checks and words are those of PostgresMain(), exec_bind_message()
(tcop/postgres.c) and parse_fcall_arguments() (tcop/fastpath.c). Texts stay bytes: their encoding is not known here.
A body is consumed to its last byte, or the message is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from sqlwall.errors import ProtocolError
from sqlwall.wire.body import (
    BodyReader,
    c_string,
    frame_bytes,
    int16_bytes,
    int32_bytes,
    uint16_bytes,
    uint32_bytes,
    value_bytes,
)
from sqlwall.wire.frames import Frame

BIND: Final = 0x42
CLOSE: Final = 0x43
DESCRIBE: Final = 0x44
EXECUTE: Final = 0x45
FUNCTION_CALL: Final = 0x46
FLUSH: Final = 0x48
PARSE: Final = 0x50
QUERY: Final = 0x51
SYNC: Final = 0x53
TERMINATE: Final = 0x58
COPY_DONE: Final = 0x63
COPY_DATA: Final = 0x64
COPY_FAIL: Final = 0x66


class Kind(Enum):
    """What a Describe or Close names. The values are the bytes on the wire."""

    STATEMENT = 0x53
    PORTAL = 0x50


@dataclass(frozen=True, slots=True)
class Query:
    """Simple protocol: a text with any number of statements."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Parse:
    """Prepares `query` under `name` (empty: the unnamed statement). A type of 0 is left to the server."""

    name: bytes
    query: bytes
    parameter_types: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """Makes a portal of a prepared statement and values. A value of None is NULL; format 0 is text, 1 binary.

    `parameter_formats` has no, one (for all) or as many codes as there are parameters.
    """

    portal: bytes
    statement: bytes
    parameter_formats: tuple[int, ...]
    parameters: tuple[bytes | None, ...]
    result_formats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks what a statement or portal takes and returns."""

    kind: Kind
    name: bytes


@dataclass(frozen=True, slots=True)
class Execute:
    """Runs a portal for at most `max_rows` rows; PostgreSQL takes 0 and below as no limit."""

    portal: bytes
    max_rows: int


@dataclass(frozen=True, slots=True)
class Close:
    """Forgets a statement or portal. To close what does not exist is no error."""

    kind: Kind
    name: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    """Ends a segment, and its implicit transaction."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Asks for the replies so far."""


@dataclass(frozen=True, slots=True)
class CopyData:
    """A piece of COPY data; a frontend cuts it where it likes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CopyDone:
    """The COPY data is complete."""


@dataclass(frozen=True, slots=True)
class CopyFail:
    """The COPY shall fail; `reason` becomes part of the server's error."""

    reason: bytes


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """Calls a function by its object id, with no SQL on the wire."""

    function: int
    argument_formats: tuple[int, ...]
    arguments: tuple[bytes | None, ...]
    result_format: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """The client leaves."""


FrontendMessage: TypeAlias = (
    Query
    | Parse
    | Bind
    | Describe
    | Execute
    | Close
    | Sync
    | Flush
    | CopyData
    | CopyDone
    | CopyFail
    | FunctionCall
    | Terminate
)


def decode(frame: Frame) -> FrontendMessage:
    """What the frame says; ProtocolError if it says it wrongly or is no frontend message.

    A 'p' is none: once the login is done PostgreSQL does not know it. `authentication` reads those.
    """
    code = frame.type_code
    if code == BIND:
        return decode_bind(frame)
    if code == EXECUTE:
        return decode_execute(frame)
    if code == SYNC:
        return _decode_sync(frame)
    if code == QUERY:
        return decode_query(frame)
    if code == PARSE:
        return decode_parse(frame)
    if code == DESCRIBE:
        return decode_describe(frame)
    if code == CLOSE:
        return decode_close(frame)
    return _decode_rare(frame)


def _decode_rare(frame: Frame) -> FrontendMessage:
    code = frame.type_code
    if code == FLUSH:
        BodyReader(frame).finish()
        return Flush()
    if code == COPY_DATA:
        return CopyData(frame.body)
    if code == COPY_DONE:
        BodyReader(frame).finish()
        return CopyDone()
    if code == COPY_FAIL:
        return decode_copy_fail(frame)
    if code == FUNCTION_CALL:
        return decode_function_call(frame)
    if code == TERMINATE:
        BodyReader(frame).finish()
        return Terminate()
    raise ProtocolError(f"invalid frontend message type {code}")


def _decode_sync(frame: Frame) -> Sync:
    BodyReader(frame).finish()
    return Sync()


def decode_query(frame: Frame) -> Query:
    """Decodes a Query."""
    body = BodyReader(frame)
    text = body.string()
    body.finish()
    return Query(text)


def decode_parse(frame: Frame) -> Parse:
    """Decodes a Parse."""
    body = BodyReader(frame)
    name = body.string()
    query_text = body.string()
    types = tuple([body.uint32() for _ in range(body.uint16())])
    body.finish()
    return Parse(name, query_text, types)


def decode_bind(frame: Frame) -> Bind:
    """Decodes a Bind. Whether the statement takes that many parameters only the server knows."""
    body = BodyReader(frame)
    portal = body.string()
    statement = body.string()
    parameter_formats = _formats(body)
    parameters = _values(body)
    if len(parameter_formats) > 1 and len(parameter_formats) != len(parameters):
        raise _format_mismatch(len(parameter_formats), len(parameters))
    result_formats = _formats(body)
    body.finish()
    return Bind(portal, statement, parameter_formats, parameters, result_formats)


def bind_names(frame: Frame) -> tuple[bytes, bytes]:
    """Portal and statement of a Bind, checked as `decode_bind` checks but without taking the values out."""
    body = BodyReader(frame)
    portal = body.string()
    statement = body.string()
    formats = body.uint16()
    body.skip(2 * formats)
    parameters = body.uint16()
    for _ in range(parameters):
        length = body.int32()
        if length != -1:
            body.skip(length)
    if formats > 1 and formats != parameters:
        raise _format_mismatch(formats, parameters)
    body.skip(2 * body.uint16())
    body.finish()
    return portal, statement


def _format_mismatch(formats: int, parameters: int) -> ProtocolError:
    return ProtocolError(f"bind message has {formats} parameter formats but {parameters} parameters")


def decode_describe(frame: Frame) -> Describe:
    """Decodes a Describe."""
    body = BodyReader(frame)
    kind = _kind(body, "DESCRIBE")
    name = body.string()
    body.finish()
    return Describe(kind, name)


def decode_close(frame: Frame) -> Close:
    """Decodes a Close."""
    body = BodyReader(frame)
    kind = _kind(body, "CLOSE")
    name = body.string()
    body.finish()
    return Close(kind, name)


def decode_execute(frame: Frame) -> Execute:
    """Decodes an Execute."""
    body = BodyReader(frame)
    portal = body.string()
    max_rows = body.int32()
    body.finish()
    return Execute(portal, max_rows)


def execute_portal(frame: Frame) -> bytes:
    """The portal of an Execute, checked as `decode_execute` checks."""
    body = BodyReader(frame)
    portal = body.string()
    body.skip(4)
    body.finish()
    return portal


def kind_and_name(frame: Frame) -> tuple[bytes, bytes]:
    """What a Describe or Close names, as `b"S"` or `b"P"` and the name, checked as their decoders check."""
    body = BodyReader(frame)
    kind = _kind(body, "DESCRIBE" if frame.type_code == DESCRIBE else "CLOSE")
    name = body.string()
    body.finish()
    return _kind_byte(kind), name


def decode_copy_fail(frame: Frame) -> CopyFail:
    """Decodes a CopyFail."""
    body = BodyReader(frame)
    reason = body.string()
    body.finish()
    return CopyFail(reason)


def decode_function_call(frame: Frame) -> FunctionCall:
    """Decodes a FunctionCall."""
    body = BodyReader(frame)
    function = body.uint32()
    formats = _formats(body)
    arguments = _values(body)
    if len(formats) > 1 and len(formats) != len(arguments):
        raise ProtocolError(
            f"function call message contains {len(formats)} argument formats but {len(arguments)} arguments"
        )
    result_format = body.int16()
    body.finish()
    return FunctionCall(function, formats, arguments, result_format)


def _kind(body: BodyReader, message: str) -> Kind:
    code = body.byte()
    if code == 0x53:
        return Kind.STATEMENT
    if code == 0x50:
        return Kind.PORTAL
    raise ProtocolError(f"invalid {message} message subtype {code}")


def _formats(body: BodyReader) -> tuple[int, ...]:
    count = body.uint16()
    if count == 0:
        return ()
    return tuple([body.int16() for _ in range(count)])


def _values(body: BodyReader) -> tuple[bytes | None, ...]:
    count = body.uint16()
    if count == 0:
        return ()
    return tuple([body.value() for _ in range(count)])


def query(text: bytes) -> bytes:
    """Encodes a Query."""
    return frame_bytes(QUERY, c_string(text))


def parse(name: bytes, query_text: bytes, parameter_types: Sequence[int] = ()) -> bytes:
    """Encodes a Parse."""
    types = b"".join([uint32_bytes(oid) for oid in parameter_types])
    return frame_bytes(
        PARSE, c_string(name) + c_string(query_text) + uint16_bytes(len(parameter_types)) + types
    )


def bind(
    portal: bytes,
    statement: bytes,
    parameters: Sequence[bytes | None] = (),
    parameter_formats: Sequence[int] = (),
    result_formats: Sequence[int] = (),
) -> bytes:
    """Encodes a Bind; without formats everything is text."""
    return frame_bytes(
        BIND,
        c_string(portal)
        + c_string(statement)
        + _formats_bytes(parameter_formats)
        + _values_bytes(parameters)
        + _formats_bytes(result_formats),
    )


def describe(kind: Kind, name: bytes) -> bytes:
    """Encodes a Describe."""
    return frame_bytes(DESCRIBE, _kind_byte(kind) + c_string(name))


def execute(portal: bytes, max_rows: int = 0) -> bytes:
    """Encodes an Execute."""
    return frame_bytes(EXECUTE, c_string(portal) + int32_bytes(max_rows))


def close(kind: Kind, name: bytes) -> bytes:
    """Encodes a Close."""
    return frame_bytes(CLOSE, _kind_byte(kind) + c_string(name))


def sync() -> bytes:
    """Encodes a Sync."""
    return b"S\0\0\0\4"


def flush() -> bytes:
    """Encodes a Flush."""
    return b"H\0\0\0\4"


def terminate() -> bytes:
    """Encodes a Terminate."""
    return b"X\0\0\0\4"


def copy_data(data: bytes) -> bytes:
    """Encodes a CopyData."""
    return frame_bytes(COPY_DATA, data)


def copy_done() -> bytes:
    """Encodes a CopyDone."""
    return b"c\0\0\0\4"


def copy_fail(reason: bytes) -> bytes:
    """Encodes a CopyFail."""
    return frame_bytes(COPY_FAIL, c_string(reason))


def function_call(
    function: int,
    arguments: Sequence[bytes | None] = (),
    argument_formats: Sequence[int] = (),
    result_format: int = 0,
) -> bytes:
    """Encodes a FunctionCall."""
    return frame_bytes(
        FUNCTION_CALL,
        uint32_bytes(function)
        + _formats_bytes(argument_formats)
        + _values_bytes(arguments)
        + int16_bytes(result_format),
    )


def _kind_byte(kind: Kind) -> bytes:
    return b"S" if kind is Kind.STATEMENT else b"P"


def _formats_bytes(formats: Sequence[int]) -> bytes:
    return uint16_bytes(len(formats)) + b"".join([int16_bytes(code) for code in formats])


def _values_bytes(values: Sequence[bytes | None]) -> bytes:
    return uint16_bytes(len(values)) + b"".join([value_bytes(value) for value in values])
