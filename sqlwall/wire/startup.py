"""The first packet of a connection: a request for encryption, for a cancel, or for a session.

It has no type byte. Limits, order of checks and words are those of ProcessStartupPacket() in tcop/backend_startup.c
(postmaster.c before PostgreSQL 17). What the parameters mean is judged elsewhere; here they are only taken apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlwall.errors import ProtocolError
from sqlwall.wire.body import c_string, frame_bytes, int32_bytes, uint32_bytes
from sqlwall.wire.frames import MAX_STARTUP_PACKET_LENGTH
from sqlwall.wire.sqlstate import FEATURE_NOT_SUPPORTED

PROTOCOL_3_0: Final = 0x00030000
PROTOCOL_3_2: Final = 0x00030002
#: PG_PROTOCOL_LATEST of PostgreSQL 18, and what this codec speaks. There never was a 3.1.
LATEST_MINOR: Final = 2

CANCEL_REQUEST_CODE: Final = 0x04D2162E  # 1234.5678
NEGOTIATE_SSL_CODE: Final = 0x04D2162F  # 1234.5679
NEGOTIATE_GSS_CODE: Final = 0x04D21630  # 1234.5680

#: A cancel key is 4 bytes in protocol 3.0, and up to MAX_CANCEL_KEY_LENGTH (storage/procsignal.h) in 3.2.
MIN_CANCEL_KEY_LENGTH: Final = 4
MAX_CANCEL_KEY_LENGTH: Final = 256

#: The first byte of a TLS handshake record. No startup packet is long enough to begin with it.
TLS_HANDSHAKE: Final = 0x16

_PROTOCOL_OPTION_PREFIX: Final = b"_pq_."


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """The client asks for TLS; the answer is one byte, 'S' or 'N'."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """The client asks for GSSAPI encryption; the answer is one byte, 'G' or 'N'."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The client asks to cancel what another connection is doing; there is no answer."""

    process_id: int
    secret_key: bytes


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """The client asks for a session. `parameters` are in the client's order, repeated ones included."""

    protocol: int
    parameters: tuple[tuple[bytes, bytes], ...]

    @property
    def minor(self) -> int:
        """The minor version the client asked for; it may be one that nobody knows."""
        return self.protocol & 0xFFFF

    @property
    def negotiated_minor(self) -> int:
        """The minor version that both sides know."""
        return min(self.minor, LATEST_MINOR)

    @property
    def protocol_options(self) -> tuple[bytes, ...]:
        """Names of `_pq_.` options, all unknown: NegotiateProtocolVersion must list them."""
        return tuple(name for name, _ in self.parameters if name.startswith(_PROTOCOL_OPTION_PREFIX))

    @property
    def needs_negotiation(self) -> bool:
        """Whether the client must be told what we do not know of what it asked for."""
        return self.minor > LATEST_MINOR or bool(self.protocol_options)

    @property
    def repeated(self) -> tuple[bytes, ...]:
        """Names given more than once, in lower case: names of settings know no case, and the last one wins."""
        seen: set[bytes] = set()
        repeated: list[bytes] = []
        for name, _ in self.parameters:
            folded = name.lower()
            if folded in seen and folded not in repeated:
                repeated.append(folded)
            seen.add(folded)
        return tuple(repeated)

    def value(self, name: bytes) -> bytes | None:
        """The value of `name`, the last one if it is repeated, as PostgreSQL takes it. Exact case."""
        found: bytes | None = None
        for key, value in self.parameters:
            if key == name:
                found = value
        return found


StartupPacket: TypeAlias = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


class StartupReader:
    """Reads one first packet. A connection that asks for encryption first needs a second reader for what follows.

    `ssl_done` and `gss_done` say which request has been answered already: PostgreSQL refuses to hear it twice.
    """

    def __init__(self, *, ssl_done: bool = False, gss_done: bool = False) -> None:
        self._ssl_done: Final = ssl_done
        self._gss_done: Final = gss_done
        self._buffer = bytearray()
        self._is_read = False
        self.failure: ProtocolError | None = None

    @property
    def rest(self) -> bytes:
        """Bytes that came behind the packet. Behind a request for encryption they are an attack: end the connection."""
        return bytes(self._buffer) if self._is_read else b""

    @property
    def has_begun(self) -> bool:
        """Whether any byte came at all. A connection that closes before is a port check, not worth a log line."""
        return self._is_read or bool(self._buffer)

    def feed(self, data: bytes) -> StartupPacket | None:
        """The packet once it is whole, and only once; later bytes are added to `rest`."""
        if self.failure is not None:
            raise self.failure
        self._buffer += data
        if self._is_read or len(self._buffer) < 4:
            return None
        try:
            return self._read()
        except ProtocolError as failure:
            self.failure = failure
            self._buffer = bytearray()
            raise

    def _read(self) -> StartupPacket | None:
        length = int.from_bytes(self._buffer[:4], "big")
        if length < 8 or length > MAX_STARTUP_PACKET_LENGTH + 4:
            raise ProtocolError("invalid length of startup packet", is_silent=True)
        if len(self._buffer) < length:
            return None
        packet = bytes(self._buffer[4:length])
        decoded = self._decode(packet)
        del self._buffer[:length]
        self._is_read = True
        return decoded

    def _decode(self, packet: bytes) -> StartupPacket:
        code = int.from_bytes(packet[:4], "big")
        if code == CANCEL_REQUEST_CODE:
            return _decode_cancel_request(packet)
        if code == NEGOTIATE_SSL_CODE and not self._ssl_done:
            _require_bare(packet)
            return SSLRequest()
        if code == NEGOTIATE_GSS_CODE and not self._gss_done:
            _require_bare(packet)
            return GSSENCRequest()
        if code >> 16 == 3:
            return StartupMessage(code, _decode_parameters(packet))
        raise ProtocolError(
            f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: server supports 3.0 to 3.{LATEST_MINOR}",
            FEATURE_NOT_SUPPORTED,
        )


def _require_bare(packet: bytes) -> None:
    """A request for encryption is its code and nothing else. PostgreSQL overlooks more; nobody sends more."""
    if len(packet) != 4:
        raise ProtocolError("invalid length of startup packet", is_silent=True)


def _decode_cancel_request(packet: bytes) -> CancelRequest:
    """ProcessCancelRequestPacket() in tcop/backend_startup.c."""
    if len(packet) < 8:
        raise ProtocolError("invalid length of cancel request packet", is_silent=True)
    key = packet[8:]
    if not MIN_CANCEL_KEY_LENGTH <= len(key) <= MAX_CANCEL_KEY_LENGTH:
        raise ProtocolError("invalid length of cancel key in cancel request packet", is_silent=True)
    return CancelRequest(int.from_bytes(packet[4:8], "big", signed=True), key)


def _decode_parameters(packet: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Name and value, name and value, and one NUL that must be the packet's last byte.

    Stricter than PostgreSQL in one place: it takes any last byte for the terminator when a name would begin there.
    """
    parameters: list[tuple[bytes, bytes]] = []
    position = 4
    last = len(packet) - 1
    while position < last:
        name_end = packet.find(b"\0", position)
        if name_end <= position:
            break
        value_end = packet.find(b"\0", name_end + 1)
        if value_end < 0:
            break
        parameters.append((packet[position:name_end], packet[name_end + 1 : value_end]))
        position = value_end + 1
    if position != last or packet[last] != 0:
        raise ProtocolError("invalid startup packet layout: expected terminator as last byte")
    return tuple(parameters)


def startup_message(parameters: Iterable[tuple[bytes, bytes]], protocol: int = PROTOCOL_3_0) -> bytes:
    """A StartupMessage. An empty name would end the list early, so it is refused."""
    pairs: list[bytes] = []
    for name, value in parameters:
        if not name:
            raise ValueError("a startup parameter needs a name")
        pairs.append(c_string(name) + c_string(value))
    return _packet(uint32_bytes(protocol) + b"".join(pairs) + b"\0")


def ssl_request() -> bytes:
    """Asks the server for TLS; it answers with one byte."""
    return _packet(uint32_bytes(NEGOTIATE_SSL_CODE))


def gssenc_request() -> bytes:
    """Asks the server for GSSAPI encryption; it answers with one byte."""
    return _packet(uint32_bytes(NEGOTIATE_GSS_CODE))


def cancel_request(process_id: int, secret_key: bytes) -> bytes:
    """Asks the server, on a connection of its own, to cancel what `process_id` is doing."""
    return _packet(uint32_bytes(CANCEL_REQUEST_CODE) + int32_bytes(process_id) + secret_key)


def negotiate_protocol_version(minor: int, options: Iterable[bytes]) -> bytes:
    """Tells the client which 3.x we speak and which of its options we do not know.

    The manual calls the number a minor version; server and libpq exchange the whole one.
    """
    names = [c_string(option) for option in options]
    return frame_bytes(0x76, uint32_bytes(PROTOCOL_3_0 | minor) + int32_bytes(len(names)) + b"".join(names))


def _packet(content: bytes) -> bytes:
    return int32_bytes(len(content) + 4) + content
