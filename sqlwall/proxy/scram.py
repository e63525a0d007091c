"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides, bytes in and bytes out.

RFC 5802 and 7677 as PostgreSQL speaks them (manual, chapter 54.3; src/common/scram-common.c and
src/backend/libpq/auth-scram.c). Nonces and secrets are given by the caller. Knows nothing of frames and sockets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import stringprep
import unicodedata
from enum import Enum, auto

from sqlwall.errors import AuthenticationError, ProtocolError
from sqlwall.store.scram import Verifier

SCRAM_SHA_256 = "SCRAM-SHA-256"
SCRAM_SHA_256_PLUS = "SCRAM-SHA-256-PLUS"

KEY_LENGTH = 32
#: SCRAM_RAW_NONCE_LEN of scram-common.h: what the caller's random nonce should hold before it is encoded.
NONCE_LENGTH = 18
#: A server that names more iterations than this would stall the event loop for a second or more.
MAX_ITERATIONS = 1_000_000
#: PG_MAX_SASL_MESSAGE_LENGTH of auth-sasl.c.
MAX_MESSAGE_LENGTH = 1024

_END_POINT = b"p=tls-server-end-point,,"
_NONCE = re.compile(r"[\x21-\x2b\x2d-\x7e]+", re.ASCII)


class _Step(Enum):
    FIRST = auto()
    FINAL = auto()
    DONE = auto()


class ScramServer:
    """Judges one client's proof against a verifier.

    `binding` is the hash of our own certificate, or None where TLS is off or the certificate has none. Without a
    verifier the exchange runs to its end like any other and then fails.
    """

    def __init__(
        self, user: str, verifier: Verifier | None, *, nonce: str, secret: bytes, binding: bytes | None = None
    ) -> None:
        assert _NONCE.fullmatch(nonce)
        stand_in = Verifier.mock(user, secret)  # always computed: a known name must not take less time
        self._verifier = verifier or stand_in
        self._is_known = verifier is not None
        self._nonce = nonce
        self._binding = binding
        self._step = _Step.FIRST
        self._expected_binding = b""
        self._client_first_bare = ""
        self._server_first = ""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What to offer, the best first, as PostgreSQL orders them."""
        return (SCRAM_SHA_256,) if self._binding is None else (SCRAM_SHA_256_PLUS, SCRAM_SHA_256)

    def first(self, mechanism: str, message: bytes) -> bytes:
        """Take client-first-message, give server-first-message."""
        self._advance(_Step.FIRST, _Step.FINAL)
        if mechanism not in self.mechanisms:
            raise ProtocolError("client selected an invalid SASL authentication mechanism")
        header, bare = _split_client_first(_text(message))
        self._expected_binding = self._check_header(mechanism, header)
        name, nonce, *_ = [*bare.split(","), ""]
        if not name.startswith("n="):
            raise ProtocolError("malformed SCRAM message: the user name is missing")
        client_nonce = _attribute("r", nonce)
        if not _NONCE.fullmatch(client_nonce):
            raise ProtocolError("malformed SCRAM message: non-printable characters in the nonce")
        self._nonce = client_nonce + self._nonce
        self._client_first_bare = bare
        self._server_first = (
            f"r={self._nonce},s={_encode64(self._verifier.salt)},i={self._verifier.iterations}"
        )
        return self._server_first.encode("ascii")

    def final(self, message: bytes) -> bytes:
        """Take client-final-message, give server-final-message; AuthenticationError if the proof is wrong."""
        self._advance(_Step.FINAL, _Step.DONE)
        text = _text(message)
        without_proof, separator, proof_text = text.partition(",p=")
        attributes = without_proof.split(",")
        if not separator or len(attributes) < 2:
            raise ProtocolError("malformed SCRAM message: the proof is missing")
        binding = _attribute("c", attributes[0])
        if not hmac.compare_digest(binding.encode(), _encode64(self._expected_binding).encode()):
            raise ProtocolError("SCRAM channel binding check failed", "28000")
        nonce = _attribute("r", attributes[1])
        if not hmac.compare_digest(nonce.encode(), self._nonce.encode()):
            raise ProtocolError("invalid SCRAM response: the nonce does not match")
        proof = _decode64_message(proof_text)
        if len(proof) != KEY_LENGTH:
            raise ProtocolError("malformed SCRAM message: malformed proof")
        transcript = f"{self._client_first_bare},{self._server_first},{without_proof}".encode()
        return self._judge(transcript, proof)

    def _judge(self, transcript: bytes, proof: bytes) -> bytes:
        is_proven = self._verifier.accepts(proof, transcript)
        server_signature = self._verifier.server_signature(transcript)
        if is_proven and self._is_known:
            return b"v=" + _encode64(server_signature).encode()
        raise AuthenticationError("password authentication failed")

    def _check_header(self, mechanism: str, header: str) -> bytes:
        """Judge the GS2 header (RFC 5802, section 6); the bytes that the client must repeat in its last message."""
        flag, authzid, _ = header.split(",")
        if flag == "y":
            if mechanism == SCRAM_SHA_256_PLUS:
                raise ProtocolError("malformed SCRAM message: channel binding data is missing")
            if self._binding is not None:
                # Somebody removed -PLUS from our offer: the client must not go on without its binding.
                raise ProtocolError("SCRAM channel binding negotiation error", "28000")
        elif flag == "n":
            if mechanism == SCRAM_SHA_256_PLUS:
                raise ProtocolError("malformed SCRAM message: channel binding data is missing")
        elif flag.startswith("p="):
            if mechanism != SCRAM_SHA_256_PLUS:
                raise ProtocolError("malformed SCRAM message: channel binding without SCRAM-SHA-256-PLUS")
            if flag != "p=tls-server-end-point":
                raise ProtocolError("unsupported SCRAM channel-binding type")
        else:
            raise ProtocolError("malformed SCRAM message: unexpected channel-binding flag")
        if authzid:
            raise ProtocolError("client uses authorization identity, but it is not supported", "0A000")
        if mechanism == SCRAM_SHA_256_PLUS:
            assert self._binding is not None
            return header.encode() + self._binding
        return header.encode()

    def _advance(self, expected: _Step, following: _Step) -> None:
        if self._step is not expected:
            self._step = _Step.DONE
            raise ProtocolError("unexpected SASL message")
        # An exception after this leaves the exchange past its step: no message can be tried twice.
        self._step = following


class ChannelBindingPolicy(Enum):
    """libpq's `channel_binding`."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"


class ScramClient:
    """Proves a password to a server and checks that the server knows it too.

    `binding` is the hash of the server's certificate, or None without TLS or where that certificate has none. Errors
    are AuthenticationError with words that are safe to show; the password is in none of them.
    """

    def __init__(
        self,
        password: str,
        offered: tuple[str, ...],
        *,
        nonce: str,
        binding: bytes | None = None,
        policy: ChannelBindingPolicy = ChannelBindingPolicy.PREFER,
    ) -> None:
        assert _NONCE.fullmatch(nonce)
        self._password = password
        self._nonce = nonce
        self._server_key = b""
        self._transcript = b""
        self._step = _Step.FIRST
        self.is_verified = False
        can_bind = binding is not None and policy is not ChannelBindingPolicy.DISABLE
        if can_bind and SCRAM_SHA_256_PLUS in offered:
            self.mechanism = SCRAM_SHA_256_PLUS
            self._header = _END_POINT
            self._binding = _END_POINT + (binding or b"")
        elif policy is ChannelBindingPolicy.REQUIRE:
            raise AuthenticationError(_why_unbound(binding))
        elif SCRAM_SHA_256 in offered:
            self.mechanism = SCRAM_SHA_256
            self._header = self._binding = b"y,," if can_bind else b"n,,"
        else:
            raise AuthenticationError(
                "the server offers none of the SASL mechanisms that sqlwall knows (SCRAM-SHA-256, SCRAM-SHA-256-PLUS)"
            )

    @property
    def _bare(self) -> str:
        return f"n=,r={self._nonce}"  # PostgreSQL takes the name from the startup packet

    def first(self) -> bytes:
        """Give client-first-message."""
        return self._header + self._bare.encode("ascii")

    def respond(self, server_first: bytes) -> bytes:
        """Take server-first-message, give client-final-message."""
        if self._step is not _Step.FIRST:
            raise AuthenticationError("the server repeated a step of the SCRAM exchange")
        self._step = _Step.FINAL
        text = _server_text(server_first)
        nonce, salt, iterations = self._read_server_first(text)
        salted = _salted_password(self._password, salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        self._server_key = _hmac(salted, b"Server Key")
        without_proof = f"c={_encode64(self._binding)},r={nonce}"
        self._transcript = f"{self._bare},{text},{without_proof}".encode("ascii")
        signature = _hmac(hashlib.sha256(client_key).digest(), self._transcript)
        return f"{without_proof},p={_encode64(_xor(client_key, signature))}".encode("ascii")

    def verify(self, server_final: bytes) -> None:
        """Take server-final-message; AuthenticationError unless it proves that the server holds our verifier."""
        if self._step is not _Step.FINAL:
            raise AuthenticationError("the server repeated a step of the SCRAM exchange")
        self._step = _Step.DONE
        text = _server_text(server_final)
        if text.startswith("e="):
            raise AuthenticationError("the server ended the SCRAM exchange with an error")
        try:
            signature = _decode64(_attribute("v", text.split(",")[0]))
        except (ProtocolError, ValueError):
            raise AuthenticationError("the server sent a malformed SCRAM message") from None
        if not hmac.compare_digest(signature, _hmac(self._server_key, self._transcript)):
            raise AuthenticationError(
                "the server could not prove that it knows the password: is it the right server?"
            )
        self.is_verified = True

    def _read_server_first(self, text: str) -> tuple[str, bytes, int]:
        try:
            nonce_part, salt_part, iterations_part, *_ = text.split(",")
            nonce = _attribute("r", nonce_part)
            salt = _decode64(_attribute("s", salt_part))
            digits = _attribute("i", iterations_part)
        except (ProtocolError, ValueError):
            raise AuthenticationError("the server sent a malformed SCRAM message") from None
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce) or not _NONCE.fullmatch(nonce):
            raise AuthenticationError("the server sent a SCRAM nonce that does not extend ours")
        if not re.fullmatch(r"[1-9][0-9]{0,9}", digits, re.ASCII) or not salt:
            raise AuthenticationError("the server sent a malformed SCRAM message")
        if int(digits) > MAX_ITERATIONS:
            raise AuthenticationError(
                f"the server asks for {digits} SCRAM iterations, more than {MAX_ITERATIONS}"
            )
        return nonce, salt, int(digits)


def saslprep(password: str) -> str:
    """Normalise a password by RFC 4013 as PostgreSQL does: what the profile prohibits is used as it is.

    src/common/saslprep.c, pg_saslprep: its callers fall back to the raw password when it fails.
    """
    if password.isascii():
        return password
    spaced = (" " if stringprep.in_table_c12(c) else c for c in password)  # first: U+200B is in both tables
    mapped = "".join(c for c in spaced if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", mapped)
    if not prepared or any(_is_prohibited(c) for c in prepared) or not _is_bidi_clean(prepared):
        return password
    return prepared


def _is_prohibited(character: str) -> bool:
    return (
        stringprep.in_table_a1(character)
        or stringprep.in_table_c12(character)
        or stringprep.in_table_c21_c22(character)
        or stringprep.in_table_c3(character)
        or stringprep.in_table_c4(character)
        or stringprep.in_table_c5(character)
        or stringprep.in_table_c6(character)
        or stringprep.in_table_c7(character)
        or stringprep.in_table_c8(character)
        or stringprep.in_table_c9(character)
    )


def _is_bidi_clean(text: str) -> bool:
    """RFC 3454, section 6: right-to-left text stands alone, and begins and ends the string."""
    if not any(stringprep.in_table_d1(c) for c in text):
        return True
    if any(stringprep.in_table_d2(c) for c in text):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])


def _why_unbound(binding: bytes | None) -> str:
    if binding is None:
        return "channel_binding=require, but the connection has no TLS or the server's certificate has no hash for it"
    return "channel_binding=require, but the server does not offer SCRAM-SHA-256-PLUS"


def _salted_password(password: str, salt: bytes, iterations: int) -> bytes:
    prepared = saslprep(password).encode("utf-8", "surrogateescape")
    return hashlib.pbkdf2_hmac("sha256", prepared, salt, iterations)


def _split_client_first(text: str) -> tuple[str, str]:
    """The GS2 header with its last comma, and client-first-message-bare."""
    parts = text.split(",", 2)
    if len(parts) != 3:
        raise ProtocolError("malformed SCRAM message")
    flag, authzid, bare = parts
    if bare.startswith("m="):
        raise ProtocolError("client requires an unsupported SCRAM extension", "0A000")
    return f"{flag},{authzid},", bare


def _attribute(name: str, text: str) -> str:
    if not text.startswith(name + "="):
        raise ProtocolError(f'malformed SCRAM message: attribute "{name}" expected')
    return text[2:]


def _text(message: bytes) -> str:
    if not message or len(message) > MAX_MESSAGE_LENGTH or b"\0" in message:
        raise ProtocolError("malformed SCRAM message")
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("malformed SCRAM message") from None


def _server_text(message: bytes) -> str:
    if len(message) > MAX_MESSAGE_LENGTH or not message.isascii():
        raise AuthenticationError("the server sent a malformed SCRAM message")
    return message.decode("ascii")


def _decode64_message(text: str) -> bytes:
    try:
        return _decode64(text)
    except ValueError:
        raise ProtocolError("malformed SCRAM message: malformed proof") from None


def _decode64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


def _encode64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
