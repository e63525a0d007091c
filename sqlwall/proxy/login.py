"""One login to a PostgreSQL server over a pipe whose encryption is settled: from the startup packet to ReadyForQuery.

The order of messages is that of PQconnectPoll() in libpq's fe-connect.c, and so are the limits on what an
unauthenticated server may send. A server that skips a step of its own proof is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from dataclasses import dataclass, field
from typing import Final

from sqlwall.errors import AuthenticationError, ProtocolError, UpstreamError
from sqlwall.proxy.pipe import Pipe
from sqlwall.proxy.scram import NONCE_LENGTH, SCRAM_SHA_256_PLUS, ChannelBindingPolicy, ScramClient
from sqlwall.wire import authentication as auth
from sqlwall.wire import backend, sqlstate
from sqlwall.wire.frames import HEADER_LENGTH, Frame

logger = logging.getLogger(__name__)

#: MAX_ERRLEN of fe-connect.c: the longest message before authentication; libpq allows requests even less.
MAX_UNAUTHENTICATED_LENGTH: Final = 30_000
#: ParameterStatus and NoticeResponse have no limit of their own; a login has no use for more.
MAX_LOGIN_MESSAGE_LENGTH: Final = 1024 * 1024
#: Messages of a login. A server that sends more is not logging us in.
MAX_LOGIN_MESSAGES: Final = 1000


class LoginError(UpstreamError):
    """The server answered the login with an ErrorResponse; `frame` is all of it, for the log only.

    `is_early` says that it had not asked for any proof: then another kind of encryption may be worth a try.
    """

    def __init__(self, diagnostics: backend.Diagnostics, frame: bytes, *, is_early: bool) -> None:
        self.reason: Final = _printable(diagnostics.message)
        super().__init__(f"the server refused the login: {self.reason}", diagnostics.sqlstate)
        self.frame: Final = frame
        self.is_early: Final = is_early


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a login may use, and what it must insist on. `binding` is the hash of the server's certificate."""

    user: str
    password: str = field(repr=False)
    binding: bytes | None = field(repr=False)
    policy: ChannelBindingPolicy
    require_auth: str = ""


@dataclass(slots=True)
class Greeting:
    """What the server says of itself between AuthenticationOk and ReadyForQuery."""

    parameter_status: dict[bytes, bytes] = field(default_factory=dict)
    process_id: int = 0
    secret_key: bytes = b""


class Login:
    """The conversation. Raises UpstreamError, LoginError, ProtocolError, and ConnectionError."""

    def __init__(self, pipe: Pipe, given: Secrets) -> None:
        self._pipe = pipe
        self._given = given
        self._scram: ScramClient | None = None
        self._method = "none"  # libpq's word for what the server has asked for so far
        self._count = 0

    async def run(self, startup: bytes) -> Greeting:
        """Send the startup packet and answer until the session is ready. What comes behind stays in the pipe."""
        self._pipe.write(startup)
        try:
            await self._authenticate()
        except AuthenticationError as error:
            raise UpstreamError(str(error), sqlstate.INVALID_AUTHORIZATION_SPECIFICATION) from error
        return await self._read_greeting()

    async def _authenticate(self) -> None:
        while True:
            frame = await self._next(MAX_UNAUTHENTICATED_LENGTH)
            if frame.type_code == backend.NOTICE_RESPONSE:
                continue
            if frame.type_code == backend.NEGOTIATE_PROTOCOL_VERSION:
                raise UpstreamError("the server does not speak protocol 3.0", sqlstate.PROTOCOL_VIOLATION)
            request = auth.decode_authentication(frame)
            if isinstance(request, auth.AuthenticationOk):
                self._check_proofs()
                return
            await self._respond(request)

    async def _respond(self, request: auth.Authentication) -> None:
        match request:
            case auth.AuthenticationCleartextPassword():
                self._begin("password")
                if not self._pipe.is_tls and self._pipe.transport.get_extra_info("peername"):
                    logger.warning(
                        "the server asks for the password in plain text on an unencrypted connection"
                    )
                self._pipe.write(auth.password(self._password()))
            case auth.AuthenticationMD5Password(salt):
                self._begin("md5")
                self._pipe.write(auth.password(self._md5(salt)))
            case auth.AuthenticationSASL(mechanisms):
                self._begin("scram-sha-256")
                self._begin_scram(mechanisms)
            case auth.AuthenticationSASLContinue(data) if self._scram is not None:
                # PBKDF2 takes milliseconds, or what a hostile server says: not on the loop that others wait for
                answer = await asyncio.to_thread(self._scram.respond, data)
                self._pipe.write(auth.sasl_response(answer))
            case auth.AuthenticationSASLFinal(data) if self._scram is not None:
                self._scram.verify(data)
            case auth.AuthenticationUnsupported(method):
                raise UpstreamError(
                    f"the server asks for authentication method {method}, which sqlwall does not speak; "
                    "use scram-sha-256 in pg_hba.conf",
                    sqlstate.INVALID_AUTHORIZATION_SPECIFICATION,
                )
            case _:
                raise ProtocolError("unexpected authentication request from the server")

    def _begin(self, method: str) -> None:
        """One method per login: a second request would be for the same secret in a weaker form."""
        if self._method != "none":
            raise ProtocolError("the server asked for a second authentication method")
        self._method = method
        self._check_method()
        if method != "scram-sha-256" and self._given.policy is ChannelBindingPolicy.REQUIRE:
            raise AuthenticationError(
                "channel_binding=require, but the server asks for a plain or MD5 password"
            )

    def _check_method(self) -> None:
        listed = [method for method in self._given.require_auth.split(",") if method]
        if not listed:
            return
        is_excluded = listed[0].startswith("!")
        named = self._method in {method.removeprefix("!") for method in listed}
        if named == is_excluded:
            raise AuthenticationError(
                f"require_auth={self._given.require_auth}, but the server asks for {self._method}"
            )

    def _check_proofs(self) -> None:
        """AuthenticationOk: is what was required done, to the server's own proof?"""
        self._check_method()
        if self._scram is not None and not self._scram.is_verified:
            raise AuthenticationError("the server did not prove that it knows the password")
        if self._given.policy is ChannelBindingPolicy.REQUIRE and (
            self._scram is None or self._scram.mechanism != SCRAM_SHA_256_PLUS
        ):
            raise AuthenticationError(
                "channel_binding=require, but the server let us in without channel binding"
            )

    def _begin_scram(self, mechanisms: tuple[bytes, ...]) -> None:
        offered = tuple(mechanism.decode("ascii", "replace") for mechanism in mechanisms)
        self._scram = ScramClient(
            self._password().decode("utf-8"),
            offered,
            nonce=secrets.token_urlsafe(NONCE_LENGTH),
            binding=self._given.binding,
            policy=self._given.policy,
        )
        self._pipe.write(auth.sasl_initial_response(self._scram.mechanism.encode(), self._scram.first()))

    def _password(self) -> bytes:
        if not self._given.password:
            raise AuthenticationError(
                "the server asks for a password and none is configured (SQLWALL_UPSTREAM_PASSWORD, "
                "upstream.password_file, or the DSN)"
            )
        return self._given.password.encode("utf-8")

    def _md5(self, salt: bytes) -> bytes:
        """pg_md5_encrypt() twice: the protocol's choice of hash, not ours."""
        inner = hashlib.md5(self._password() + self._given.user.encode("utf-8"), usedforsecurity=False)
        outer = hashlib.md5(inner.hexdigest().encode() + salt, usedforsecurity=False)
        return b"md5" + outer.hexdigest().encode()

    async def _read_greeting(self) -> Greeting:
        greeting = Greeting()
        while True:
            frame = await self._next(MAX_LOGIN_MESSAGE_LENGTH)
            if frame.type_code == backend.PARAMETER_STATUS:
                status = backend.decode_parameter_status(frame)
                greeting.parameter_status[status.name] = status.value
            elif frame.type_code == backend.BACKEND_KEY_DATA:
                key = backend.decode_backend_key_data(frame)
                greeting.process_id, greeting.secret_key = key.process_id, key.secret_key
            elif frame.type_code == backend.READY_FOR_QUERY:
                if backend.decode_ready_for_query(frame) is not backend.TransactionStatus.IDLE:
                    raise ProtocolError("the server begins a session inside a transaction")
                return greeting
            elif frame.type_code != backend.NOTICE_RESPONSE:
                raise ProtocolError(f"unexpected message type {frame.type_code} from the server in its login")

    async def _next(self, limit: int) -> Frame:
        """The next message; an ErrorResponse ends the login."""
        self._count += 1
        if self._count > MAX_LOGIN_MESSAGES:
            raise ProtocolError("the server's login does not end")
        frame = await read_frame(self._pipe, limit)
        if frame.type_code == backend.ERROR_RESPONSE:
            raise LoginError(backend.decode_diagnostics(frame), frame.raw, is_early=self._method == "none")
        return frame


async def read_frame(pipe: Pipe, limit: int) -> Frame:
    """The next message and not a byte more. ProtocolError if it is longer than `limit`."""
    header = await pipe.read_exactly(HEADER_LENGTH)
    length = int.from_bytes(header[1:], "big")
    if not 4 <= length <= limit:
        raise ProtocolError("invalid message length from the server")
    return Frame(header[0], header + await pipe.read_exactly(length - 4))


def _printable(text: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in text.decode("utf-8", "replace"))[:1000]
