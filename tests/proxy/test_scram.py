"""Both sides of SCRAM: against RFC 7677's example, against each other, and against messages that are almost right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import AuthenticationError, ProtocolError
from sqlwall.proxy.scram import (
    MAX_ITERATIONS,
    SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS,
    ChannelBindingPolicy,
    ScramClient,
    ScramServer,
    saslprep,
)
from sqlwall.store.scram import Verifier

PASSWORD = "pencil"
VERIFIER = Verifier.of_password(PASSWORD, salt=b"0123456789abcdef", iterations=16)
SECRET = b"s" * 32
BINDING = b"b" * 32


def server(verifier: Verifier | None = VERIFIER, binding: bytes | None = None) -> ScramServer:
    return ScramServer("agent", verifier, nonce="server", secret=SECRET, binding=binding)


def client(
    password: str = PASSWORD, offered: tuple[str, ...] = (SCRAM_SHA_256,), **more: object
) -> ScramClient:
    return ScramClient(password, offered, nonce="client", **more)  # type: ignore[arg-type]


def play(one: ScramClient, other: ScramServer) -> None:
    one.verify(other.final(one.respond(other.first(one.mechanism, one.first()))))


def test_the_clients_proof_is_that_of_rfc_7677() -> None:
    """RFC 7677, section 3; PostgreSQL's client leaves the name empty, so only the server's message is comparable."""
    one = ScramClient("pencil", (SCRAM_SHA_256,), nonce="rOprNGfwEbeRWgbNEkqO")
    assert one.first() == b"n,,n=,r=rOprNGfwEbeRWgbNEkqO"
    answer = one.respond(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert answer.startswith(b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=")


def test_the_right_password_passes_in_both_directions() -> None:
    one = client()
    play(one, server())
    assert one.is_verified


def test_the_certificate_is_part_of_the_proof() -> None:
    other = server(binding=BINDING)
    one = client(offered=other.mechanisms, binding=BINDING, policy=ChannelBindingPolicy.REQUIRE)
    assert one.mechanism == SCRAM_SHA_256_PLUS
    play(one, other)
    with pytest.raises(ProtocolError, match="channel binding check failed"):
        play(client(offered=other.mechanisms, binding=b"x" * 32), server(binding=BINDING))


@given(st.text(min_size=1, max_size=20))
def test_no_other_password_passes(password: str) -> None:
    if saslprep(password) == PASSWORD:
        return
    try:
        one = client(password)
        play(one, server())
    except AuthenticationError:
        return
    raise AssertionError("let in")


def test_nobody_has_a_password() -> None:
    with pytest.raises(AuthenticationError):
        play(client(), server(None))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_message_of_a_client_raises_anything_else(first: bytes, final: bytes) -> None:
    other = server()
    with pytest.raises((ProtocolError, AuthenticationError)):
        other.first(SCRAM_SHA_256, first)
        other.final(final)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_message_of_a_server_raises_anything_else(first: bytes, final: bytes) -> None:
    one = client()
    with pytest.raises(AuthenticationError):
        one.respond(first)
        one.verify(final)


@pytest.mark.parametrize(
    ("mechanism", "message", "words"),
    [
        (SCRAM_SHA_256, b"", "malformed"),
        (SCRAM_SHA_256, b"n,,", "user name"),
        (SCRAM_SHA_256, b"n,,n=,r=", "nonce"),
        (SCRAM_SHA_256, b"n,,n=,r=\xc3\xa4", "nonce"),
        (SCRAM_SHA_256, b"n,,n=,r=a\0b", "malformed"),
        (SCRAM_SHA_256, b"n,,m=x,n=,r=abc", "extension"),
        (SCRAM_SHA_256, b"n,a=root,n=,r=abc", "authorization identity"),
        (SCRAM_SHA_256, b"x,,n=,r=abc", "flag"),
        (SCRAM_SHA_256, b"p=tls-server-end-point,,n=,r=abc", "without SCRAM-SHA-256-PLUS"),
        (SCRAM_SHA_256, b"y,,n=,r=abc", "negotiation"),
        (SCRAM_SHA_256_PLUS, b"n,,n=,r=abc", "missing"),
        (SCRAM_SHA_256_PLUS, b"y,,n=,r=abc", "missing"),
        (SCRAM_SHA_256_PLUS, b"p=tls-unique,,n=,r=abc", "unsupported"),
        ("SCRAM-SHA-1", b"n,,n=,r=abc", "mechanism"),
    ],
)
def test_a_first_message_that_is_not_right_is_refused(mechanism: str, message: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        server(binding=BINDING).first(mechanism, message)


def test_plus_without_an_offer_is_refused() -> None:
    with pytest.raises(ProtocolError, match="mechanism"):
        server().first(SCRAM_SHA_256_PLUS, b"p=tls-server-end-point,,n=,r=abc")


def test_a_proof_for_another_nonce_or_header_is_refused() -> None:
    one, other = client(), server()
    proof = one.respond(other.first(SCRAM_SHA_256, one.first()))
    with pytest.raises(ProtocolError, match="nonce"):
        again = ScramServer("agent", VERIFIER, nonce="other", secret=SECRET)
        again.first(SCRAM_SHA_256, one.first())
        again.final(proof)
    with pytest.raises(ProtocolError, match="channel binding"):
        more = server()
        more.first(SCRAM_SHA_256, one.first())
        more.final(proof.replace(b"c=biws", b"c=eSws"))


def test_a_failed_exchange_cannot_be_tried_again() -> None:
    other = server()
    one = client("wrong")
    proof = one.respond(other.first(SCRAM_SHA_256, one.first()))
    with pytest.raises(AuthenticationError):
        other.final(proof)
    with pytest.raises(ProtocolError, match="unexpected"):
        other.final(proof)
    with pytest.raises(ProtocolError, match="unexpected"):
        other.first(SCRAM_SHA_256, one.first())


def test_an_unknown_name_is_asked_the_same_every_time() -> None:
    messages = {server(None).first(SCRAM_SHA_256, b"n,,n=,r=abc") for _ in range(3)}
    assert len(messages) == 1
    other = ScramServer("somebody", None, nonce="server", secret=SECRET)
    assert other.first(SCRAM_SHA_256, b"n,,n=,r=abc") not in messages


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"r=clientserver,s=AAAA,i=0", "malformed"),
        (b"r=clientserver,s=AAAA,i=-1", "malformed"),
        (b"r=clientserver,s=AAAA,i=" + str(MAX_ITERATIONS + 1).encode(), "more than"),
        (b"r=clientserver,s=AAAA,i=99999999999999", "malformed"),
        (b"r=clientserver,s=,i=4096", "malformed"),
        (b"r=clientserver,s=*,i=4096", "malformed"),
        (b"r=client,s=AAAA,i=4096", "extend"),
        (b"r=server,s=AAAA,i=4096", "extend"),
        (b"e=other-error", "malformed"),
        (b"m=x,r=clientserver,s=AAAA,i=1", "malformed"),
    ],
)
def test_a_server_that_is_not_right_is_refused(message: bytes, words: str) -> None:
    with pytest.raises(AuthenticationError, match=words):
        client().respond(message)


def test_a_server_that_cannot_prove_itself_is_refused() -> None:
    other = server()
    for final in (b"v=" + b"A" * 43 + b"=", b"e=no", b"", b"v=*"):
        one = client()
        one.respond(server().first(SCRAM_SHA_256, one.first()))
        with pytest.raises(AuthenticationError):
            one.verify(final)
        assert not one.is_verified
    assert other is not None


def test_a_client_that_could_bind_says_so_when_it_was_not_asked() -> None:
    assert client(binding=BINDING).first().startswith(b"y,,")
    assert client(binding=BINDING, policy=ChannelBindingPolicy.DISABLE).first().startswith(b"n,,")
    assert client().first().startswith(b"n,,")


def test_required_binding_is_not_given_up() -> None:
    for binding in (None, BINDING):
        with pytest.raises(AuthenticationError, match="channel_binding=require"):
            client(binding=binding, policy=ChannelBindingPolicy.REQUIRE)


@pytest.mark.parametrize(
    ("given_password", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0007", "\u0007"),
        ("\u0627\u0031", "\u0627\u0031"),
    ],
)
def test_saslprep_is_rfc_4013_and_falls_back_to_the_raw_password(given_password: str, prepared: str) -> None:
    assert saslprep(given_password) == prepared
