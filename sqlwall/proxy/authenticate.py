"""A client's login, up to the point where it has proven who it is.

Encryption, the startup packet, SCRAM: as ProcessSSLStartup() and ProcessStartupPacket() in tcop/backend_startup.c and
ClientAuthentication() in libpq/auth.c. AuthenticationOk is the caller's to send, once the server's login has worked:
then its failure is a login error for the client as well. The caller bounds the whole of it in time.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from sqlwall.config import Config, Tls
from sqlwall.errors import AuthenticationError, ConfigError, Problem, ProtocolError, StoreError
from sqlwall.proxy import tls
from sqlwall.proxy.pipe import Pipe
from sqlwall.proxy.scram import NONCE_LENGTH, ScramServer
from sqlwall.proxy.startup import LoginRefusedError, observed_parameters, startup_parameters
from sqlwall.session.refusal import Refusal, ending
from sqlwall.store.scram import Verifier
from sqlwall.wire import authentication as auth
from sqlwall.wire import sqlstate
from sqlwall.wire.frames import AuthenticationReader, Frame
from sqlwall.wire.startup import (
    TLS_HANDSHAKE,
    CancelRequest,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    StartupReader,
    negotiate_protocol_version,
)

logger = logging.getLogger(__name__)

__all__ = [
    "AcceptSettings",
    "Accepted",
    "AgentCredentials",
    "CancelAsked",
    "ClientCertificate",
    "FindAgent",
    "LoginRefusedError",
    "accept_client",
    "startup_parameters",
]


class ClientCertificate(Enum):
    """What is asked of an agent's certificate where one can be checked."""

    OPTIONAL = "optional"
    REQUIRE = "require"
    MATCH = "match"  # its common name is the agent's name


@dataclass(frozen=True, slots=True)
class AgentCredentials:
    """An agent as far as its login goes. `connection_limit` None is the wall's default."""

    name: str
    verifier: Verifier
    connection_limit: int | None = None
    is_observed: bool = False  # its ruleset forwards everything: startup parameters are not judged


#: The credentials of an active agent, None for any other name. Raises StoreError.
FindAgent = Callable[[str], Awaitable[AgentCredentials | None]]


@dataclass(frozen=True, slots=True)
class AcceptSettings:
    """How agents are received. `secret` makes up what unknown names are asked for: kept over restarts and the same in
    every worker, or asking twice would tell known names from unknown ones.
    """

    secret: bytes = field(repr=False)
    context: ssl.SSLContext | None = None
    binding: bytes | None = None
    is_tls_required: bool = False
    client_certificate: ClientCertificate | None = None

    @classmethod
    def of(
        cls, config: Config, context: ssl.SSLContext | None, *, secret: bytes | None = None
    ) -> AcceptSettings:
        """Of the configuration. Raises ConfigError. Without `secret` it comes of the TLS key, or is made up anew."""
        with_authority = context is not None and config.tls.client_ca is not None
        certificate = ClientCertificate(config.tls.client_certificate) if with_authority else None
        return cls(
            secret or _secret_of_key(config.tls),
            context,
            tls.own_channel_binding_hash(config.tls) if context is not None else None,
            config.tls.require or certificate in (ClientCertificate.REQUIRE, ClientCertificate.MATCH),
            certificate,
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """An agent that has proven who it is, and waits for AuthenticationOk. Bytes it sent since are in the pipe."""

    pipe: Pipe
    parameters: Mapping[str, str]
    agent: AgentCredentials
    protocol: tuple[int, int]
    is_tls: bool


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The client wants to cancel what the session of this key is doing. It gets no answer but the end."""

    process_id: int
    secret: bytes = field(repr=False)


async def accept_client(
    pipe: Pipe, settings: AcceptSettings, find_agent: FindAgent
) -> Accepted | CancelAsked:
    """Receive a client up to AuthenticationSASLFinal.

    Raises, with the client already told: AuthenticationError (wrong name or password), LoginRefusedError,
    ProtocolError, StoreError. ConnectionError if it has gone, or TLS came to nothing. The caller closes the pipe.
    """
    try:
        packet = await _first_packet(pipe, settings)
        if isinstance(packet, CancelRequest):
            return CancelAsked(packet.process_id, packet.secret_key)
        return await _log_in(pipe, settings, find_agent, packet)
    except LoginRefusedError as error:
        pipe.write(error.refusal.to_bytes())
        raise
    except ProtocolError as error:
        if not error.is_silent:
            pipe.write(ending(error.sqlstate, str(error)).to_bytes())
        raise
    except StoreError:
        pipe.write(
            ending(sqlstate.SYSTEM_ERROR, "sqlwall cannot check logins now; try again later").to_bytes()
        )
        raise


async def _first_packet(pipe: Pipe, settings: AcceptSettings) -> StartupMessage | CancelRequest:
    """Settle the encryption, each kind asked for at most once, and read what the client came for."""
    await _accept_direct_tls(pipe, settings)
    ssl_done = gss_done = pipe.is_tls
    while True:
        packet = await _read_packet(pipe, StartupReader(ssl_done=ssl_done, gss_done=gss_done))
        if isinstance(packet, (StartupMessage, CancelRequest)):
            return packet
        if isinstance(packet, GSSENCRequest):
            gss_done = True
            _require_silence(pipe, "GSSAPI encryption")
            pipe.write(b"N")
        else:
            assert isinstance(packet, SSLRequest)
            ssl_done = True
            _require_silence(pipe, "SSL")
            if settings.context is None:
                pipe.write(b"N")
                continue
            pipe.write(b"S")
            await pipe.start_tls(settings.context, server_side=True)
            gss_done = True


async def _accept_direct_tls(pipe: Pipe, settings: AcceptSettings) -> None:
    """TLS from the first byte (sslnegotiation=direct). ALPN must name PostgreSQL, as the server demands it."""
    begin = await pipe.receive()
    if not begin:
        raise ConnectionAbortedError("the client closed before it said anything")
    pipe.push_back(begin)
    if begin[0] != TLS_HANDSHAKE:
        return
    if settings.context is None:
        raise ConnectionAbortedError("direct TLS asked for, but no certificate is configured")
    await pipe.start_tls(settings.context, server_side=True)
    encrypted = pipe.ssl_object
    if encrypted is None or encrypted.selected_alpn_protocol() != tls.ALPN:
        raise ProtocolError(
            "received direct SSL connection request without ALPN protocol negotiation extension"
        )


async def _read_packet(
    pipe: Pipe, reader: StartupReader
) -> SSLRequest | GSSENCRequest | CancelRequest | StartupMessage:
    while True:
        data = await pipe.receive()
        if not data:
            raise ConnectionResetError("the client closed in the middle of its login")
        packet = reader.feed(data)
        if packet is not None:
            pipe.push_back(reader.rest)
            return packet


def _require_silence(pipe: Pipe, kind: str) -> None:
    """Bytes behind a request for encryption came from someone who could not read the answer (CVE-2021-23214)."""
    if pipe.take_rest():
        raise ProtocolError(f"received unencrypted data after {kind} request")


async def _log_in(
    pipe: Pipe, settings: AcceptSettings, find_agent: FindAgent, startup: StartupMessage
) -> Accepted:
    if startup.needs_negotiation:
        pipe.write(negotiate_protocol_version(startup.negotiated_minor, startup.protocol_options))
    if settings.is_tls_required and not pipe.is_tls:
        raise LoginRefusedError(
            Refusal(
                sqlstate.INVALID_AUTHORIZATION_SPECIFICATION,
                "sqlwall accepts encrypted connections only",
                hint="Add sslmode=require to the connection string.",
                severity="FATAL",
            )
        )
    user = observed_parameters(startup).get("user", "")
    agent = await find_agent(user) if user else None
    is_observed = agent is not None and agent.is_observed
    parameters = observed_parameters(startup) if is_observed else startup_parameters(startup)
    if not _has_right_certificate(pipe, settings, user):
        agent = None  # the exchange goes on and fails at its end, as for a wrong password
    try:
        agent = await _prove(pipe, settings, user, agent)
    except AuthenticationError:
        text = f'password authentication failed for user "{_printable(user)}"'
        pipe.write(ending(sqlstate.INVALID_PASSWORD, text).to_bytes())
        raise
    return Accepted(pipe, parameters, agent, (3, startup.negotiated_minor), pipe.is_tls)


async def _prove(
    pipe: Pipe, settings: AcceptSettings, user: str, agent: AgentCredentials | None
) -> AgentCredentials:
    """SCRAM, the same for names that exist and for those that do not, until its last step."""
    scram = ScramServer(
        user,
        agent.verifier if agent is not None else None,
        nonce=secrets.token_urlsafe(NONCE_LENGTH),
        secret=settings.secret,
        binding=settings.binding if pipe.is_tls else None,
    )
    answers = AuthenticationReader()
    pipe.write(auth.authentication_sasl([mechanism.encode() for mechanism in scram.mechanisms]))
    initial = auth.decode_sasl_initial_response(await _answer(pipe, answers))
    if initial.response is None:  # a client may leave its first message for a second answer
        pipe.write(auth.authentication_sasl_continue(b""))
        first = auth.decode_sasl_response(await _answer(pipe, answers)).data
    else:
        first = initial.response
    mechanism = initial.mechanism.decode("ascii", "replace")
    pipe.write(auth.authentication_sasl_continue(scram.first(mechanism, first)))
    proof = auth.decode_sasl_response(await _answer(pipe, answers)).data
    proven = scram.final(proof)
    if agent is None:  # final() has failed already; this line is for those who change it
        raise AuthenticationError("password authentication failed")
    pipe.write(auth.authentication_sasl_final(proven))
    pipe.push_back(answers.rest())
    return agent


async def _answer(pipe: Pipe, answers: AuthenticationReader) -> Frame:
    frame = answers.feed(b"")
    while frame is None:
        data = await pipe.receive()
        if not data:
            raise ConnectionResetError("the client closed in the middle of its login")
        frame = answers.feed(data)
    return frame


def _secret_of_key(config: Tls) -> bytes:
    """Not of a password: what unknown names are asked for would be a hash of it that everyone can see."""
    path = config.key or config.certificate
    if path is None:
        return secrets.token_bytes(32)
    try:
        return hmac.digest(b"sqlwall stand-in verifiers", path.read_bytes(), "sha256")
    except OSError as error:
        raise ConfigError(Problem(f"tls.key: {error.strerror}", str(path))) from None


def _has_right_certificate(pipe: Pipe, settings: AcceptSettings, user: str) -> bool:
    """Whether the certificate is this agent's, where that is asked. The handshake has checked who signed it."""
    if settings.client_certificate is not ClientCertificate.MATCH:
        return True
    encrypted = pipe.ssl_object
    der = encrypted.getpeercert(binary_form=True) if encrypted is not None else None
    if der is None or tls.common_name(der) != user:
        logger.warning("the client certificate does not name agent %r", user)
        return False
    return True


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:63])
