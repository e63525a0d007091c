"""Which startup parameters pass, how they are spelt afterwards, and what is said of the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.proxy.startup import LoginRefusedError, startup_parameters
from sqlwall.wire.startup import PROTOCOL_3_0, StartupMessage

USER = (b"user", b"agent")


def judge(*parameters: tuple[bytes, bytes]) -> dict[str, str]:
    return startup_parameters(StartupMessage(PROTOCOL_3_0, (USER, *parameters)))


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        (b"client_encoding", b"'utf-8'", {"client_encoding": "UTF8"}),
        (b"client_encoding", b"Unicode", {"client_encoding": "UTF8"}),
        (b"datestyle", b"ISO", {"DateStyle": "ISO"}),
        (b"TIMEZONE", b"Europe/Berlin", {"TimeZone": "Europe/Berlin"}),
        (b"extra_float_digits", b"3", {"extra_float_digits": "3"}),
        (b"search_path", b"a, b", {"search_path": "a, b"}),
        (b"statement_timeout", b"30s", {"statement_timeout": "30s"}),
        (b"application_name", "Bericht\nÄ".encode(), {"application_name": "Bericht\nÄ"}),
        (b"options", b"", {}),
        (b"options", b"  ", {}),
        (b"replication", b"false", {}),
        (b"standard_conforming_strings", b"on", {}),
        (b"default_transaction_read_only", b"true", {}),
        (b"_pq_.anything", b"x", {}),
        (b"database", b"", {}),
    ],
)
def test_what_is_harmless_passes(name: bytes, value: bytes, accepted: dict[str, str]) -> None:
    assert judge((name, value)) == {"user": "agent", "database": "agent"} | accepted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"options", b"-c role=postgres"),
        (b"OPTIONS", b"-c role=postgres"),
        (b"USER", b"postgres"),
        (b"role", b"postgres"),
        (b"session_authorization", b"postgres"),
        (b"session_preload_libraries", b"x"),
        (b"local_preload_libraries", b"x"),
        (b"standard_conforming_strings", b"off"),
        (b"default_transaction_read_only", b"off"),
        (b"backslash_quote", b"on"),
        (b"client_encoding", b"SQL_ASCII"),
        (b"client_encoding", b""),
        (b"statement_timeout", b"0"),
        (b"statement_timeout", b"00"),
        (b"statement_timeout", b"0.0001ms"),
        (b"statement_timeout", b"-1"),
        (b"statement_timeout", b" 0x0"),
        (b"lock_timeout", "١".encode()),
        (b"search_path", b"a\nb"),
        (b"TimeZone", b"\x1b[2J"),
        (b"extra_float_digits", b"99"),
        (b"jit", b"maybe"),
        (b"replication", b"true"),
        (b"replication", b""),
        (b"database", b"\xff"),
        (b"_pq_.x", b"\xff"),
    ],
)
def test_what_could_change_policy_or_meaning_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(LoginRefusedError) as caught:
        judge((name, value))
    refusal = caught.value.refusal
    assert refusal.severity == "FATAL"
    assert name.decode().lower() in refusal.message.lower()
    assert caught.value.sqlstate == refusal.sqlstate


@pytest.mark.parametrize("name", [b"user", b"database", b"search_path", b"_pq_.x"])
def test_nothing_is_said_twice(name: bytes) -> None:
    with pytest.raises(LoginRefusedError, match="more than once"):
        judge((name.upper(), b"a"), (name, b"a"))


@pytest.mark.parametrize("parameters", [(), ((b"user", b""),), ((b"database", b"x"),)])
def test_a_name_is_needed(parameters: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(LoginRefusedError, match="no PostgreSQL user name"):
        startup_parameters(StartupMessage(PROTOCOL_3_0, parameters))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=30)), max_size=4))
def test_a_startup_packet_is_accepted_or_refused_and_nothing_else(pairs: list[tuple[bytes, bytes]]) -> None:
    parameters = tuple((name.replace(b"\0", b"x"), value.replace(b"\0", b"x")) for name, value in pairs)
    try:
        found = judge(*parameters)
    except LoginRefusedError as refused:
        assert len(refused.refusal.message) < 300
        assert refused.refusal.to_bytes()
    else:
        assert "options" not in found
        assert found["user"]
