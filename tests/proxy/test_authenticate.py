"""Logins of agents: by real drivers, and by adversaries that write the bytes themselves."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2
import pytest
from psycopg import pq

from sqlwall.config import Config, Tls
from sqlwall.errors import AuthenticationError, ProtocolError, StoreError
from sqlwall.proxy.authenticate import AcceptSettings, AgentCredentials, accept_client
from sqlwall.proxy.scram import ScramClient
from sqlwall.proxy.startup import LoginRefusedError
from sqlwall.proxy.tls import client_side_context
from sqlwall.wire import authentication as auth
from sqlwall.wire import backend
from sqlwall.wire.frames import Frame, FrameReader, Side
from sqlwall.wire.startup import (
    gssenc_request,
    ssl_request,
    startup_message,
)
from tests.proxy.certificates import Identity, issue
from tests.proxy.logins import (
    AGENT,
    PASSWORD,
    SECRET,
    VERIFIER,
    Seen,
    listening,
    login_handler,
    serving,
)

PLAIN = AcceptSettings(SECRET)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return issue(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, authority: Identity) -> Identity:
    return issue(tmp_path_factory.mktemp("server"), "wall", signer=authority)


@pytest.fixture(scope="module")
def encrypted(shown: Identity) -> AcceptSettings:
    return accept(Tls(certificate=shown.certificate_file, key=shown.key_file))


def accept(tls: Tls) -> AcceptSettings:
    return AcceptSettings.of(Config(tls=tls), client_side_context(tls), secret=SECRET)


def dsn(port: int, **more: object) -> str:
    given = {"host": "127.0.0.1", "port": port, "user": AGENT, "password": PASSWORD, "dbname": "shop"} | more
    return psycopg.conninfo.make_conninfo("", **{key: str(value) for key, value in given.items()})


def echo(port: int, **more: object) -> str:
    """Log in with psycopg and send one simple query; what the server echoes."""
    with psycopg.connect(dsn(port, **more), autocommit=True) as connection:
        result = connection.pgconn.exec_(b"SELECT 1")
        assert result.status == pq.ExecStatus.TUPLES_OK
        return (result.get_value(0, 0) or b"").decode()


# -- drivers


@pytest.mark.parametrize("is_uvloop", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"sslmode": "disable"},
        {"sslmode": "prefer"},
        {"sslmode": "require", "channel_binding": "require"},
        {"sslmode": "require", "channel_binding": "disable"},
        {"sslmode": "require", "sslnegotiation": "direct", "channel_binding": "require"},
        {"sslmode": "require", "min_protocol_version": "3.2", "max_protocol_version": "latest"},
        {"sslmode": "disable", "max_protocol_version": "3.0", "require_auth": "scram-sha-256"},
        {"sslmode": "allow", "gssencmode": "prefer"},
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_libpq_logs_in_however_it_encrypts(
    encrypted: AcceptSettings, options: dict[str, str], is_uvloop: bool
) -> None:
    with serving(encrypted, is_uvloop=is_uvloop) as (port, seen):
        try:
            assert echo(port, **options) == "SELECT 1"
        except psycopg.ProgrammingError as error:
            pytest.skip(f"this libpq is too old: {error}")
    accepted = seen.accepted[0]
    assert accepted.is_tls is (options["sslmode"] not in ("disable", "allow"))
    assert accepted.parameters["database"] == "shop"
    assert accepted.agent.name == AGENT
    if "min_protocol_version" in options:
        assert accepted.protocol == (3, 2)


def test_verify_full_is_satisfied_by_the_configured_certificate(
    encrypted: AcceptSettings, authority: Identity
) -> None:
    with serving(encrypted) as (port, _):
        assert echo(port, sslmode="verify-full", sslrootcert=authority.certificate_file) == "SELECT 1"


@pytest.mark.parametrize("sslmode", ["disable", "require"])
async def test_asyncpg_logs_in(encrypted: AcceptSettings, sslmode: str) -> None:
    with serving(encrypted) as (port, seen):
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=port,
            user=AGENT,
            password=PASSWORD,
            database="shop",
            ssl=sslmode,
            server_settings={"application_name": "report", "jit": "off"},
        )
        connection.terminate()
    assert seen.accepted[0].parameters["client_encoding"] == "UTF8"
    assert seen.accepted[0].parameters["application_name"] == "report"
    assert seen.accepted[0].is_tls is (sslmode == "require")


def test_pg8000_logs_in_with_channel_binding(encrypted: AcceptSettings, authority: Identity) -> None:
    context = ssl.create_default_context(cafile=authority.certificate_file)
    context.check_hostname = False
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with serving(encrypted) as (port, seen):
        connection = pg8000.dbapi.connect(
            AGENT, host="127.0.0.1", port=port, database="shop", password=PASSWORD, ssl_context=context
        )
        connection.close()
    assert seen.accepted[0].is_tls


@pytest.mark.parametrize("sslmode", ["disable", "require"])
def test_psycopg2_logs_in(encrypted: AcceptSettings, sslmode: str) -> None:
    with serving(encrypted) as (port, seen):
        connection = psycopg2.connect(dsn(port, sslmode=sslmode), client_encoding="utf8")
        connection.close()
    assert seen.accepted[0].parameters["client_encoding"] == "UTF8"


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(encrypted: AcceptSettings) -> None:
    with serving(encrypted) as (port, seen):
        for user, password in ((AGENT, "wrong"), ("nobody", PASSWORD)):
            with pytest.raises(psycopg.OperationalError) as caught:
                psycopg.connect(dsn(port, user=user, password=password, sslmode="require"))
            assert f'FATAL:  password authentication failed for user "{user}"' in str(caught.value)
    assert [type(failure) for failure in seen.failures] == [AuthenticationError, AuthenticationError]


def test_required_tls_turns_plain_text_away_and_says_what_to_write(shown: Identity) -> None:
    settings = accept(Tls(certificate=shown.certificate_file, key=shown.key_file, require=True))
    with serving(settings) as (port, _):
        with pytest.raises(psycopg.OperationalError, match="sslmode=require"):
            psycopg.connect(dsn(port, sslmode="disable"))
        assert echo(port, sslmode="allow") == "SELECT 1"


def test_a_cancel_request_arrives_with_its_key(encrypted: AcceptSettings) -> None:
    with serving(encrypted) as (port, seen):
        for options in ({"sslmode": "disable"}, {"sslmode": "require"}):
            with psycopg.connect(dsn(port, **options)) as connection:
                connection.cancel_safe(timeout=5)
    assert [(cancel.process_id, cancel.secret) for cancel in seen.cancels] == [(4711, b"kkkk")] * 2


@pytest.mark.parametrize(
    "case",
    [
        ("require", AGENT, True),
        ("require", "somebody", True),
        ("require", None, False),
        ("match", AGENT, True),
        ("match", "somebody", False),
        ("optional", None, True),
        ("optional", AGENT, True),
    ],
)
def test_client_certificates_are_asked_for_as_configured(
    tmp_path: Path, shown: Identity, authority: Identity, case: tuple[str, str | None, bool]
) -> None:
    mode, shows, is_let_in = case
    settings = accept(
        Tls(
            certificate=shown.certificate_file,
            key=shown.key_file,
            client_ca=authority.certificate_file,
            client_certificate=mode,
        )
    )
    options: dict[str, object] = {
        "sslmode": "require",
        "sslcert": tmp_path / "none",
        "sslkey": tmp_path / "none",
    }
    if shows is not None:
        own = issue(tmp_path, shows, signer=authority)
        options |= {"sslcert": own.certificate_file, "sslkey": own.key_file}
    with serving(settings) as (port, _):
        if is_let_in:
            assert echo(port, **options) == "SELECT 1"
        else:
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(dsn(port, **options))
        if mode != "optional":
            with pytest.raises(psycopg.OperationalError, match="encrypted connections only"):
                psycopg.connect(dsn(port, sslmode="disable"))


def test_a_client_certificate_of_another_authority_is_refused(
    tmp_path: Path, shown: Identity, authority: Identity
) -> None:
    stranger = issue(tmp_path, AGENT, signer=issue(tmp_path, "other authority"))
    for mode in ("require", "optional"):
        settings = accept(
            Tls(
                certificate=shown.certificate_file,
                key=shown.key_file,
                client_ca=authority.certificate_file,
                client_certificate=mode,
            )
        )
        with serving(settings) as (port, _), pytest.raises(psycopg.OperationalError):
            psycopg.connect(
                dsn(port, sslmode="require", sslcert=stranger.certificate_file, sslkey=stranger.key_file)
            )


# -- adversaries


class Raw:
    """A client that writes bytes, on plain streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._frames = FrameReader(Side.BACKEND)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def byte(self) -> bytes:
        return await self.reader.readexactly(1)

    async def frame(self) -> Frame:
        header = await self.reader.readexactly(5)
        return Frame(header[0], header + await self.reader.readexactly(int.from_bytes(header[1:], "big") - 4))

    async def fatal(self) -> backend.Diagnostics:
        """The ErrorResponse that ends the connection, past everything ahead of it."""
        while True:
            frame = await self.frame()
            if frame.type_code == backend.ERROR_RESPONSE:
                found = backend.decode_diagnostics(frame)
                assert found.severity == "FATAL"
                assert await self.reader.read() == b""
                return found

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self.writer.start_tls(context)


@asynccontextmanager
async def raw(settings: AcceptSettings, seconds: float = 10) -> AsyncIterator[tuple[Raw, Seen]]:
    seen = Seen()
    async with listening(login_handler(settings, seen, seconds)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Raw(reader, writer), seen
        finally:
            writer.close()


@pytest.fixture
def insecure() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


HELLO = startup_message([(b"user", AGENT.encode()), (b"database", b"shop")])


async def prove(client: Raw, scram: ScramClient, final: bytes | None = None) -> Frame:
    """Answer the SASL request; what the server says to the proof."""
    client.send(auth.sasl_initial_response(scram.mechanism.encode(), scram.first()))
    challenge = auth.decode_authentication(await client.frame())
    assert isinstance(challenge, auth.AuthenticationSASLContinue)
    answer = scram.respond(challenge.data)
    client.send(auth.sasl_response(final if final is not None else answer))
    return await client.frame()


async def mechanisms(client: Raw) -> tuple[str, ...]:
    request = auth.decode_authentication(await client.frame())
    assert isinstance(request, auth.AuthenticationSASL)
    return tuple(name.decode() for name in request.mechanisms)


async def test_a_login_byte_by_byte_is_a_login() -> None:
    async with raw(PLAIN) as (client, seen):
        for byte in HELLO:
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        scram = ScramClient(PASSWORD, await mechanisms(client), nonce="abc")
        final = auth.decode_authentication(await prove(client, scram))
        assert isinstance(final, auth.AuthenticationSASLFinal)
        scram.verify(final.data)
        assert (await client.frame()).raw == auth.authentication_ok()
    assert len(seen.accepted) == 1


async def test_bytes_behind_the_last_answer_wait_in_the_pipe() -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(HELLO)
        scram = ScramClient(PASSWORD, await mechanisms(client), nonce="abc")
        client.send(auth.sasl_initial_response(scram.mechanism.encode(), scram.first()))
        challenge = auth.decode_authentication(await client.frame())
        assert isinstance(challenge, auth.AuthenticationSASLContinue)
        client.send(auth.sasl_response(scram.respond(challenge.data)) + b"Q\0\0\0\x08hi!\0")
        frames = [await client.frame() for _ in range(12)]
    row = next(frame for frame in frames if frame.type_code == backend.DATA_ROW)
    assert backend.decode_data_row(row) == (b"hi!",)
    assert len(seen.accepted) == 1


@pytest.mark.parametrize("request_bytes", [ssl_request(), gssenc_request()])
async def test_clear_bytes_behind_a_request_for_encryption_end_the_connection(
    encrypted: AcceptSettings, request_bytes: bytes
) -> None:
    async with raw(encrypted) as (client, seen):
        client.send(request_bytes + HELLO)
        assert (await client.fatal()).sqlstate == "08P01"
    assert isinstance(seen.failures[0], ProtocolError)


async def test_clear_bytes_injected_before_the_handshake_break_it(encrypted: AcceptSettings) -> None:
    async with raw(encrypted) as (client, seen):
        client.send(ssl_request())
        assert await client.byte() == b"S"
        client.send(HELLO)
        rest = await client.reader.read()
        assert b"R\0\0\0" not in rest
    assert isinstance(seen.failures[0], ConnectionError)
    assert not seen.accepted


async def test_ssl_is_asked_for_once(encrypted: AcceptSettings) -> None:
    async with raw(PLAIN) as (client, _):
        client.send(ssl_request())
        assert await client.byte() == b"N"
        client.send(gssenc_request())
        assert await client.byte() == b"N"
        client.send(ssl_request())
        assert "unsupported frontend protocol 1234.5679" in (await client.fatal()).message.decode()


async def test_neither_ssl_nor_gss_is_asked_for_inside_tls(
    encrypted: AcceptSettings, insecure: ssl.SSLContext
) -> None:
    for again in (ssl_request(), gssenc_request()):
        async with raw(encrypted) as (client, _):
            client.send(ssl_request())
            assert await client.byte() == b"S"
            await client.start_tls(insecure)
            client.send(again)
            assert b"unsupported frontend protocol" in (await client.fatal()).message


async def test_direct_tls_without_the_protocol_s_name_is_refused(
    encrypted: AcceptSettings, insecure: ssl.SSLContext
) -> None:
    for names in ([], ["h2"]):
        seen = Seen()
        if names:
            insecure.set_alpn_protocols(names)
        async with listening(login_handler(encrypted, seen)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=insecure)
            client = Raw(reader, writer)
            client.send(HELLO)
            assert b"ALPN" in (await client.fatal()).message
            writer.close()
        assert isinstance(seen.failures[0], ProtocolError)


async def test_a_split_direct_handshake_is_put_together(
    encrypted: AcceptSettings, insecure: ssl.SSLContext
) -> None:
    """The first bytes were read as plain text; they must reach TLS ahead of the rest."""
    insecure.set_alpn_protocols(["postgresql"])
    seen = Seen()
    async with listening(login_handler(encrypted, seen)) as port:

        def handshake() -> None:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = insecure.wrap_bio(incoming, outgoing)
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                hello = outgoing.read()
                for cut in (hello[:1], hello[1:7], hello[7:60], hello[60:]):
                    plain.sendall(cut)
                while True:
                    incoming.write(plain.recv(65536))
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        pass
                tls.write(HELLO)
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
                assert tls.read(9)[:1] == b"R"

        await asyncio.to_thread(handshake)


async def test_direct_tls_without_a_certificate_is_just_closed() -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(b"\x16\x03\x01\x00\x05hello")
        assert await client.reader.read() == b""
    assert isinstance(seen.failures[0], ConnectionError)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x00\x00\x00\x09\x00\x03\x00\x00\x01",
        b"\x00\x00\x00\x08\x00\x02\x00\x00",
        startup_message([(b"user", b"x")])[:-1] + b"x",
    ],
)
async def test_a_malformed_first_packet_ends_with_an_error(packet: bytes) -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(packet)
        assert (await client.fatal()).sqlstate in ("08P01", "0A000")
    assert isinstance(seen.failures[0], ProtocolError)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x00\x00\x00\x07\x00\x03\x00",
        b"\x00\x00\x27\x15\x00\x03\x00\x00",
        b"\xff\xff\xff\xff\x00\x03\x00\x00",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x00\x00\x00\x0c\x04\xd2\x16\x2e\x00\x00\x00\x01",
    ],
)
async def test_what_is_hardly_from_a_client_is_closed_without_a_word(packet: bytes) -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(packet)
        assert await client.reader.read() == b""
    assert isinstance(seen.failures[0], ProtocolError)


@pytest.mark.parametrize("first", [b"", b"\x00", HELLO[:10], HELLO])
async def test_silence_ends_at_the_callers_timeout(first: bytes) -> None:
    async with raw(PLAIN, seconds=0.2) as (client, seen):
        client.send(first)
        await client.reader.read()
    assert isinstance(seen.failures[0], TimeoutError)


@pytest.mark.parametrize("first", [b"", b"\x00", HELLO[:10], HELLO])
async def test_a_client_that_leaves_is_a_connection_error(first: bytes) -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(first)
        client.writer.write_eof()
        await client.reader.read()
    assert isinstance(seen.failures[0], ConnectionError)


async def test_a_newer_minor_version_and_protocol_options_are_negotiated_down() -> None:
    async with raw(PLAIN) as (client, _):
        client.send(
            startup_message([(b"user", AGENT.encode()), (b"_pq_.compress", b"zstd")], protocol=0x0003270F)
        )
        frame = await client.frame()
        answer = backend.decode_negotiate_protocol_version(frame)
        assert answer == backend.NegotiateProtocolVersion(0x00030002, (b"_pq_.compress",))
        assert await mechanisms(client) == ("SCRAM-SHA-256",)


@pytest.mark.parametrize(
    ("parameters", "state", "named"),
    [
        ([(b"options", b"-c search_path=evil")], "42501", "options"),
        ([(b"replication", b"database")], "0A000", "replication"),
        ([(b"role", b"postgres")], "42501", "role"),
        ([(b"user", b"postgres")], "08P01", "user"),
        ([(b"SEARCH_PATH", b"a"), (b"search_path", b"b")], "08P01", "search_path"),
        ([(b"client_encoding", b"LATIN1")], "42501", "client_encoding"),
        ([(b"application_name", b"\xff")], "22021", "application_name"),
    ],
)
async def test_a_refused_startup_parameter_is_named(
    parameters: list[tuple[bytes, bytes]], state: str, named: str
) -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(startup_message([(b"user", AGENT.encode()), *parameters]))
        error = await client.fatal()
        assert error.sqlstate == state
        assert named in error.message.decode()
    assert isinstance(seen.failures[0], LoginRefusedError)


async def test_the_answers_to_an_unknown_name_are_stable_and_look_like_any_other() -> None:
    challenges = []
    for user in (b"nobody", b"nobody", b"somebody", AGENT.encode()):
        async with raw(PLAIN) as (client, _):
            client.send(startup_message([(b"user", user)]))
            assert await mechanisms(client) == ("SCRAM-SHA-256",)
            client.send(auth.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=abc"))
            challenge = auth.decode_authentication(await client.frame())
            assert isinstance(challenge, auth.AuthenticationSASLContinue)
            challenges.append(dict(part.split(b"=", 1) for part in challenge.data.split(b",")))
    salts = [challenge[b"s"] for challenge in challenges]
    assert salts[0] == salts[1] != salts[2]
    assert len({len(salt) for salt in salts}) == 1
    assert {challenge[b"i"] for challenge in challenges} == {b"4096"}
    nonces = [challenge[b"r"] for challenge in challenges]
    assert len(set(nonces)) == 4  # never the same nonce twice


async def test_a_recorded_proof_does_not_work_again() -> None:
    async with raw(PLAIN) as (client, _):
        client.send(HELLO)
        scram = ScramClient(PASSWORD, await mechanisms(client), nonce="abc")
        client.send(auth.sasl_initial_response(b"SCRAM-SHA-256", scram.first()))
        challenge = auth.decode_authentication(await client.frame())
        assert isinstance(challenge, auth.AuthenticationSASLContinue)
        recorded = scram.respond(challenge.data)
    async with raw(PLAIN) as (client, seen):
        client.send(HELLO)
        again = ScramClient(PASSWORD, await mechanisms(client), nonce="abc")
        answer = await prove(client, again, final=recorded)
        assert backend.decode_diagnostics(answer).sqlstate == "08P01"
    assert not seen.accepted


async def test_a_client_that_could_bind_but_was_not_offered_it_is_refused(
    encrypted: AcceptSettings, insecure: ssl.SSLContext
) -> None:
    """`y,,` against our offer of -PLUS: somebody in between has changed the offer."""
    async with raw(encrypted) as (client, seen):
        client.send(ssl_request())
        assert await client.byte() == b"S"
        await client.start_tls(insecure)
        client.send(HELLO)
        assert await mechanisms(client) == ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
        client.send(auth.sasl_initial_response(b"SCRAM-SHA-256", b"y,,n=,r=abc"))
        assert b"channel binding" in (await client.fatal()).message
    assert not seen.accepted


async def test_a_binding_to_another_certificate_is_refused(
    encrypted: AcceptSettings, insecure: ssl.SSLContext
) -> None:
    """A man in the middle with a certificate of its own: the client is bound to that one."""
    async with raw(encrypted) as (client, seen):
        client.send(ssl_request())
        assert await client.byte() == b"S"
        await client.start_tls(insecure)
        client.send(HELLO)
        scram = ScramClient(PASSWORD, await mechanisms(client), nonce="abc", binding=b"\1" * 32)
        answer = await prove(client, scram)
        assert backend.decode_diagnostics(answer).message == b"SCRAM channel binding check failed"
    assert not seen.accepted


async def test_channel_binding_is_not_offered_in_clear(encrypted: AcceptSettings) -> None:
    async with raw(encrypted) as (client, _):
        client.send(HELLO)
        assert await mechanisms(client) == ("SCRAM-SHA-256",)
        client.send(auth.sasl_initial_response(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"))
        assert (await client.fatal()).sqlstate == "08P01"


@pytest.mark.parametrize(
    "answer",
    [
        b"Q\0\0\0\x0dSELECT 1\0",
        b"p\xff\xff\xff\xff",
        b"p\0\0\0\x03",
        auth.password(PASSWORD.encode()),
        auth.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=abc") + b"X\0\0\0\x04",
        auth.sasl_initial_response(b"SCRAM-SHA-1", b"n,,n=,r=abc"),
        auth.sasl_initial_response(b"SCRAM-SHA-256", b"n,a=postgres,n=,r=abc"),
        auth.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=" + b"x" * 2000),
    ],
)
async def test_nothing_but_sasl_is_heard_before_the_login(answer: bytes) -> None:
    async with raw(PLAIN) as (client, seen):
        client.send(HELLO)
        await mechanisms(client)
        client.send(answer)
        assert (await client.fatal()).sqlstate in ("08P01", "0A000")
    assert not seen.accepted
    assert isinstance(seen.failures[0], ProtocolError)


async def test_a_store_that_is_gone_closes_the_door() -> None:
    async def broken(name: str) -> AgentCredentials | None:
        raise StoreError("disk on fire")

    async def handle(pipe: object) -> None:
        with pytest.raises(StoreError):
            await accept_client(pipe, PLAIN, broken)  # type: ignore[arg-type]
        pipe.close()  # type: ignore[attr-defined]

    async with listening(handle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = Raw(reader, writer)
        client.send(HELLO)
        error = await client.fatal()
        assert error.sqlstate == "58000"
        assert b"fire" not in error.message
        writer.close()


def test_ed25519_certificates_have_no_binding_and_clients_still_log_in(tmp_path: Path) -> None:
    own = issue(tmp_path, "ed", is_ed25519=True)
    settings = accept(Tls(certificate=own.certificate_file, key=own.key_file))
    assert settings.binding is None
    with serving(settings) as (port, _):
        assert echo(port, sslmode="require", channel_binding="disable") == "SELECT 1"


def test_the_made_up_secret_depends_on_the_key_and_is_never_shown(shown: Identity) -> None:
    tls = Tls(certificate=shown.certificate_file, key=shown.key_file)
    settings = AcceptSettings.of(Config(tls=tls), client_side_context(tls))
    assert settings.secret == AcceptSettings.of(Config(tls=tls), client_side_context(tls)).secret
    assert settings.secret != AcceptSettings.of(Config(), None).secret
    assert repr(settings.secret) not in repr(settings)
    assert replace(settings, secret=b"x") != settings


def test_credentials_do_not_show_keys() -> None:
    shown = repr(AgentCredentials(AGENT, VERIFIER))
    assert repr(VERIFIER.stored_key) not in shown
    assert VERIFIER.text() not in shown
