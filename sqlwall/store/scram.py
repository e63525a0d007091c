"""SCRAM-SHA-256 verifiers in PostgreSQL's notation: what the store keeps instead of a password.

RFC 5802, RFC 7677; the notation is that of pg_authid.rolpassword (PostgreSQL manual, chapter 52). The exchange itself
belongs to whoever speaks to the client. Passwords are printable ASCII, for which SASLprep changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from sqlwall.errors import ConfigError, StoreError

#: PostgreSQL's SCRAM_SHA_256_DEFAULT_ITERATIONS and SCRAM_DEFAULT_SALT_LEN.
ITERATIONS: Final = 4096
SALT_BYTES: Final = 16
_KEY_BYTES: Final = hashlib.sha256().digest_size
_MECHANISM: Final = "SCRAM-SHA-256"


@dataclass(frozen=True, slots=True, repr=False)
class Verifier:
    """Enough to check a client and to prove ourselves to it, not enough to log in as it."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return f"Verifier(iterations={self.iterations})"

    @classmethod
    def of_password(
        cls, password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS
    ) -> Verifier:
        """Derive a verifier. Raises ConfigError for a password that is empty or not printable ASCII."""
        if not (password and password.isascii() and password.isprintable()):
            raise ConfigError("password: printable ASCII characters only")
        salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(iterations, salt, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @classmethod
    def mock(cls, name: str, seed: bytes) -> Verifier:
        """For a name that is no agent's: always the same salt for the same name, and no proof that it accepts.

        PostgreSQL's mock_scram_secret does the same, so that an unknown name cannot be told from a wrong password.
        """
        identity = name.encode("utf-8", "surrogatepass")
        salt = _hmac(seed, b"salt " + identity)[:SALT_BYTES]
        return cls(
            ITERATIONS, salt, _hmac(seed, b"stored key " + identity), _hmac(seed, b"server key " + identity)
        )

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read `text()` back. Raises StoreError if it is anything else; the text is not repeated."""
        try:
            mechanism, parameters, keys = text.split("$")
            iterations, salt = parameters.split(":")
            stored_key, server_key = keys.split(":")
            verifier = cls(_count(iterations), _decode(salt), _decode(stored_key), _decode(server_key))
        except (ValueError, binascii.Error):
            raise StoreError("a stored SCRAM verifier is damaged; rotate the agent's password") from None
        well_formed = len(verifier.stored_key) == len(verifier.server_key) == _KEY_BYTES and verifier.salt
        if mechanism != _MECHANISM or not well_formed:
            raise StoreError("a stored SCRAM verifier is damaged; rotate the agent's password")
        return verifier

    def text(self) -> str:
        """``SCRAM-SHA-256$4096:salt$StoredKey:ServerKey``, base64 where bytes."""
        salt, stored_key, server_key = map(_encode, (self.salt, self.stored_key, self.server_key))
        return f"{_MECHANISM}${self.iterations}:{salt}${stored_key}:{server_key}"

    def accepts(self, proof: bytes, auth_message: bytes) -> bool:
        """Whether ClientProof shows knowledge of the password for this exchange (RFC 5802, section 3)."""
        if len(proof) != _KEY_BYTES:
            return False
        signature = _hmac(self.stored_key, auth_message)
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        return hmac.compare_digest(hashlib.sha256(client_key).digest(), self.stored_key)

    def server_signature(self, auth_message: bytes) -> bytes:
        """What proves to the client that we hold its verifier."""
        return _hmac(self.server_key, auth_message)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 2**31 - 1):
        raise ValueError("not an iteration count")
    return int(text)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
