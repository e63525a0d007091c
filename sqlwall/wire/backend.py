"""What a server says: decoders for what a proxy must look at, encoders for what it must say itself.

Layouts are the manual's chapters "Message Formats" and "Error and Notice Message Fields". Texts stay bytes. A body is
consumed to its last byte, or the message is refused: then the server is not what it claims to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

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
from sqlwall.wire.startup import MAX_CANCEL_KEY_LENGTH, MIN_CANCEL_KEY_LENGTH

PARSE_COMPLETE: Final = 0x31
BIND_COMPLETE: Final = 0x32
CLOSE_COMPLETE: Final = 0x33
NOTIFICATION_RESPONSE: Final = 0x41
COMMAND_COMPLETE: Final = 0x43
DATA_ROW: Final = 0x44
ERROR_RESPONSE: Final = 0x45
COPY_IN_RESPONSE: Final = 0x47
COPY_OUT_RESPONSE: Final = 0x48
EMPTY_QUERY_RESPONSE: Final = 0x49
BACKEND_KEY_DATA: Final = 0x4B
NOTICE_RESPONSE: Final = 0x4E
PARAMETER_STATUS: Final = 0x53
ROW_DESCRIPTION: Final = 0x54
FUNCTION_CALL_RESPONSE: Final = 0x56
COPY_BOTH_RESPONSE: Final = 0x57
READY_FOR_QUERY: Final = 0x5A
COPY_DONE: Final = 0x63
COPY_DATA: Final = 0x64
NO_DATA: Final = 0x6E
PORTAL_SUSPENDED: Final = 0x73
PARAMETER_DESCRIPTION: Final = 0x74
NEGOTIATE_PROTOCOL_VERSION: Final = 0x76

#: Replies that consist of their type alone.
BARE_REPLIES: Final = frozenset(
    {
        PARSE_COMPLETE,
        BIND_COMPLETE,
        CLOSE_COMPLETE,
        EMPTY_QUERY_RESPONSE,
        NO_DATA,
        PORTAL_SUSPENDED,
        COPY_DONE,
    }
)

#: A row count is a uint64 (tcop/cmdtag.c).
MAX_ROW_COUNT_DIGITS: Final = 20

#: Commands whose tag ends in a number of rows (tcop/cmdtaglist.h, the column rowcount).
_COUNTED_COMMANDS: Final = frozenset(
    {b"COPY", b"DELETE", b"FETCH", b"INSERT", b"MERGE", b"MOVE", b"SELECT", b"UPDATE"}
)


class TransactionStatus(Enum):
    """What ReadyForQuery says. The values are the bytes on the wire."""

    IDLE = 0x49
    IN_TRANSACTION = 0x54
    FAILED = 0x45


@dataclass(frozen=True, slots=True)
class ParameterStatus:
    """A setting's value, at login and whenever it changes."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class BackendKeyData:
    """What a CancelRequest must carry. Protocol 3.0 has keys of 4 bytes, 3.2 of up to 256."""

    process_id: int
    secret_key: bytes


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The fields of an ErrorResponse or NoticeResponse: code letter and text, in the server's order."""

    fields: tuple[tuple[str, bytes], ...]

    def field(self, code: str) -> bytes:
        """The text of a field, empty if there is none."""
        for name, text in self.fields:
            if name == code:
                return text
        return b""

    @property
    def sqlstate(self) -> str:
        """The SQLSTATE, empty if the server gave none."""
        return self.field("C").decode("ascii", "replace")

    @property
    def message(self) -> bytes:
        """The first line, in the client's encoding."""
        return self.field("M")

    @property
    def severity(self) -> str:
        """ERROR, FATAL, WARNING ... in English, whatever language the server speaks."""
        return (self.field("V") or self.field("S")).decode("ascii", "replace")


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """One column of a result."""

    name: bytes
    table: int
    column: int
    type: int
    type_size: int
    type_modifier: int
    format: int


@dataclass(frozen=True, slots=True)
class CopyResponse:
    """CopyInResponse, CopyOutResponse or CopyBothResponse: formats, 0 for text and 1 for binary."""

    format: int
    column_formats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NegotiateProtocolVersion:
    """The newest protocol version the server speaks, and the options it did not know."""

    protocol: int
    options: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NotificationResponse:
    """A NOTIFY that the session listens for."""

    process_id: int
    channel: bytes
    payload: bytes


def decode_parameter_status(frame: Frame) -> ParameterStatus:
    """Decodes a ParameterStatus."""
    body = _body(frame, PARAMETER_STATUS)
    name = body.string()
    value = body.string()
    body.finish()
    return ParameterStatus(name, value)


def decode_backend_key_data(frame: Frame) -> BackendKeyData:
    """Decodes a BackendKeyData."""
    body = _body(frame, BACKEND_KEY_DATA)
    process_id = body.int32()
    key = body.rest()
    if not MIN_CANCEL_KEY_LENGTH <= len(key) <= MAX_CANCEL_KEY_LENGTH:
        raise ProtocolError("invalid length of cancel key")
    return BackendKeyData(process_id, key)


def decode_ready_for_query(frame: Frame) -> TransactionStatus:
    """Decodes a ReadyForQuery."""
    body = _body(frame, READY_FOR_QUERY)
    status = body.byte()
    body.finish()
    if status == 0x49:
        return TransactionStatus.IDLE
    if status == 0x54:
        return TransactionStatus.IN_TRANSACTION
    if status == 0x45:
        return TransactionStatus.FAILED
    raise ProtocolError(f"invalid transaction status {status}")


def decode_diagnostics(frame: Frame) -> Diagnostics:
    """Decodes an ErrorResponse or NoticeResponse."""
    if frame.type_code not in (ERROR_RESPONSE, NOTICE_RESPONSE):
        raise _unexpected(frame)
    body = BodyReader(frame)
    fields: list[tuple[str, bytes]] = []
    while True:
        code = body.byte()
        if code == 0:
            body.finish()
            return Diagnostics(tuple(fields))
        fields.append((chr(code), body.string()))


def decode_command_complete(frame: Frame) -> bytes:
    """The tag of a CommandComplete."""
    body = _body(frame, COMMAND_COMPLETE)
    tag = body.string()
    body.finish()
    return tag


def command_rows(tag: bytes) -> int | None:
    """The number of rows in a command tag, None for a command that counts none."""
    words = tag.split(b" ")
    if len(words) < 2 or words[0] not in _COUNTED_COMMANDS:
        return None
    count = words[len(words) - 1]
    return int(count) if count.isdigit() and len(count) <= MAX_ROW_COUNT_DIGITS else None


def decode_row_description(frame: Frame) -> tuple[FieldDescription, ...]:
    """Decodes a RowDescription."""
    body = _body(frame, ROW_DESCRIPTION)
    fields: list[FieldDescription] = []
    for _ in range(body.uint16()):
        name = body.string()
        table = body.uint32()
        column = body.int16()
        type_ = body.uint32()
        type_size = body.int16()
        type_modifier = body.int32()
        fields.append(FieldDescription(name, table, column, type_, type_size, type_modifier, body.int16()))
    body.finish()
    return tuple(fields)


def decode_parameter_description(frame: Frame) -> tuple[int, ...]:
    """The object ids of a ParameterDescription."""
    body = _body(frame, PARAMETER_DESCRIPTION)
    types = tuple([body.uint32() for _ in range(body.uint16())])
    body.finish()
    return types


def decode_data_row(frame: Frame) -> tuple[bytes | None, ...]:
    """The values of a DataRow, None for NULL."""
    body = _body(frame, DATA_ROW)
    values = tuple([body.value() for _ in range(body.uint16())])
    body.finish()
    return values


def decode_negotiate_protocol_version(frame: Frame) -> NegotiateProtocolVersion:
    """Decodes a NegotiateProtocolVersion."""
    body = _body(frame, NEGOTIATE_PROTOCOL_VERSION)
    protocol = body.uint32()
    count = body.int32()
    if count < 0:
        raise ProtocolError("negative option count in protocol negotiation")
    options: list[bytes] = []
    while len(options) < count:
        options.append(body.string())
    body.finish()
    return NegotiateProtocolVersion(protocol, tuple(options))


def decode_notification_response(frame: Frame) -> NotificationResponse:
    """Decodes a NotificationResponse."""
    body = _body(frame, NOTIFICATION_RESPONSE)
    process_id = body.int32()
    channel = body.string()
    payload = body.string()
    body.finish()
    return NotificationResponse(process_id, channel, payload)


def decode_copy_response(frame: Frame) -> CopyResponse:
    """Decodes a CopyInResponse, CopyOutResponse or CopyBothResponse."""
    if frame.type_code not in (COPY_IN_RESPONSE, COPY_OUT_RESPONSE, COPY_BOTH_RESPONSE):
        raise _unexpected(frame)
    body = BodyReader(frame)
    overall = body.byte()
    formats = tuple([body.int16() for _ in range(body.uint16())])
    body.finish()
    return CopyResponse(overall, formats)


def require_bare(frame: Frame) -> None:
    """A reply in `BARE_REPLIES` has no body."""
    if frame.type_code not in BARE_REPLIES:
        raise _unexpected(frame)
    BodyReader(frame).finish()


def _body(frame: Frame, type_code: int) -> BodyReader:
    if frame.type_code != type_code:
        raise _unexpected(frame)
    return BodyReader(frame)


def _unexpected(frame: Frame) -> ProtocolError:
    return ProtocolError(f"unexpected backend message type {frame.type_code}")


def parameter_status(name: bytes, value: bytes) -> bytes:
    """Encodes a ParameterStatus."""
    return frame_bytes(PARAMETER_STATUS, c_string(name) + c_string(value))


def backend_key_data(process_id: int, secret_key: bytes) -> bytes:
    """Encodes a BackendKeyData."""
    return frame_bytes(BACKEND_KEY_DATA, int32_bytes(process_id) + secret_key)


def ready_for_query(status: TransactionStatus) -> bytes:
    """Encodes a ReadyForQuery."""
    code: int = status.value
    return b"Z\0\0\0\5" + bytes((code,))


def error_response(
    *,
    sqlstate: str,
    message: str,
    severity: str = "ERROR",
    detail: str = "",
    hint: str = "",
    position: int = 0,
    constraint: str = "",
) -> bytes:
    """Encodes an ErrorResponse. Empty texts and a position of 0 are left out."""
    fields = diagnostic_fields(
        sqlstate=sqlstate,
        message=message,
        severity=severity,
        detail=detail,
        hint=hint,
        position=position,
        constraint=constraint,
    )
    return diagnostics(ERROR_RESPONSE, fields)


def notice_response(
    *,
    sqlstate: str,
    message: str,
    severity: str = "NOTICE",
    detail: str = "",
    hint: str = "",
    position: int = 0,
    constraint: str = "",
) -> bytes:
    """Encodes a NoticeResponse. Empty texts and a position of 0 are left out."""
    fields = diagnostic_fields(
        sqlstate=sqlstate,
        message=message,
        severity=severity,
        detail=detail,
        hint=hint,
        position=position,
        constraint=constraint,
    )
    return diagnostics(NOTICE_RESPONSE, fields)


def diagnostic_fields(
    *,
    sqlstate: str,
    message: str,
    severity: str,
    detail: str = "",
    hint: str = "",
    position: int = 0,
    constraint: str = "",
) -> tuple[tuple[str, bytes], ...]:
    """The fields that are not empty, in the order in which PostgreSQL sends them."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", message)]
    if detail:
        fields.append(("D", detail))
    if hint:
        fields.append(("H", hint))
    if position > 0:
        fields.append(("P", str(position)))
    if constraint:
        fields.append(("n", constraint))
    return tuple([(code, _field_text(text)) for code, text in fields])


def _field_text(text: str) -> bytes:
    """A refusal may quote what an agent wrote: it must always be sendable, so what is not is replaced."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")


def diagnostics(type_code: int, fields: Sequence[tuple[str, bytes]]) -> bytes:
    """Encodes an ErrorResponse or NoticeResponse, as `type_code` says, of these fields in this order."""
    parts: list[bytes] = []
    for code, text in fields:
        if code == "\0":
            raise ValueError("a field code of NUL would end the message")
        parts.append(code.encode("latin-1") + c_string(text))
    return frame_bytes(type_code, b"".join(parts) + b"\0")


def command_complete(tag: bytes) -> bytes:
    """Encodes a CommandComplete."""
    return frame_bytes(COMMAND_COMPLETE, c_string(tag))


def row_description(fields: Sequence[FieldDescription]) -> bytes:
    """Encodes a RowDescription."""
    parts = [
        c_string(field.name)
        + uint32_bytes(field.table)
        + int16_bytes(field.column)
        + uint32_bytes(field.type)
        + int16_bytes(field.type_size)
        + int32_bytes(field.type_modifier)
        + int16_bytes(field.format)
        for field in fields
    ]
    return frame_bytes(ROW_DESCRIPTION, uint16_bytes(len(fields)) + b"".join(parts))


def parameter_description(types: Sequence[int]) -> bytes:
    """Encodes a ParameterDescription."""
    return frame_bytes(
        PARAMETER_DESCRIPTION, uint16_bytes(len(types)) + b"".join([uint32_bytes(oid) for oid in types])
    )


def data_row(values: Sequence[bytes | None]) -> bytes:
    """Encodes a DataRow; None is NULL."""
    return frame_bytes(
        DATA_ROW, uint16_bytes(len(values)) + b"".join([value_bytes(value) for value in values])
    )


def notification_response(process_id: int, channel: bytes, payload: bytes) -> bytes:
    """Encodes a NotificationResponse."""
    return frame_bytes(NOTIFICATION_RESPONSE, int32_bytes(process_id) + c_string(channel) + c_string(payload))


def copy_response(type_code: int, response: CopyResponse) -> bytes:
    """Encodes a CopyInResponse, CopyOutResponse or CopyBothResponse, as `type_code` says."""
    formats = b"".join([int16_bytes(code) for code in response.column_formats])
    return frame_bytes(
        type_code, bytes((response.format,)) + uint16_bytes(len(response.column_formats)) + formats
    )


def bare_reply(type_code: int) -> bytes:
    """Encodes one of `BARE_REPLIES`."""
    return frame_bytes(type_code, b"")
