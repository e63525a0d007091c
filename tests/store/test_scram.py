"""Verifiers: those that PostgreSQL itself makes and takes, and nothing that is almost one."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from sqlwall.errors import ConfigError, StoreError
from sqlwall.store.scram import Verifier
from tests.postgres import Server

#: RFC 7677, section 3: password "pencil".
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
EXCHANGE = (
    b"n=user,r=rOprNGfwEbeRWgbNEkqO,"
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
)
PROOF = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
SIGNATURE = base64.b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")

PASSWORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)


def proof_of(password: str, salt: bytes, iterations: int, message: bytes) -> bytes:
    """ClientProof, from the RFC's own formulas."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
    return bytes(a ^ b for a, b in zip(key, signature, strict=True))


def test_the_proof_of_rfc_7677_is_accepted() -> None:
    verifier = Verifier.of_password("pencil", salt=SALT)
    assert verifier.accepts(PROOF, EXCHANGE)
    assert verifier.server_signature(EXCHANGE) == SIGNATURE


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_proof_of_another_length_is_not_accepted(length: int) -> None:
    assert not Verifier.of_password("pencil", salt=SALT).accepts((PROOF + b"x")[:length], EXCHANGE)


def test_every_flipped_bit_of_a_proof_is_refused() -> None:
    verifier = Verifier.of_password("pencil", salt=SALT)
    for bit in range(8 * len(PROOF)):
        other = bytearray(PROOF)
        other[bit // 8] ^= 1 << bit % 8
        assert not verifier.accepts(bytes(other), EXCHANGE)
    assert not verifier.accepts(PROOF, EXCHANGE + b" ")


@given(PASSWORDS, PASSWORDS, st.binary(min_size=1, max_size=20), st.binary(max_size=40))
def test_only_the_password_is_accepted(password: str, other: str, salt: bytes, message: bytes) -> None:
    verifier = Verifier.of_password(password, salt=salt, iterations=3)
    assert verifier.accepts(proof_of(password, salt, 3, message), message)
    assert verifier.accepts(proof_of(other, salt, 3, message), message) == (other == password)


@given(PASSWORDS, st.integers(1, 9))
def test_a_verifier_comes_back_from_its_text(password: str, iterations: int) -> None:
    verifier = Verifier.of_password(password, iterations=iterations)
    assert Verifier.parse(verifier.text()) == verifier


def test_salts_differ() -> None:
    assert Verifier.of_password("x").salt != Verifier.of_password("x").salt


@pytest.mark.parametrize("password", ["", "pass\0word", "pass\nword", "é", "\x7f"])
def test_a_password_that_saslprep_might_change_is_refused(password: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        Verifier.of_password(password)


GOOD = Verifier.of_password("pencil", salt=SALT).text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pencil",
        "md5" + "0" * 32,
        GOOD + "=",
        GOOD + ":x",
        GOOD + "$",
        GOOD.replace("SHA-256", "SHA-1"),
        GOOD.replace("4096", "0"),
        GOOD.replace("4096", "-1"),
        GOOD.replace("4096", "x"),
        GOOD.replace("4096", "²"),
        GOOD.replace("4096", str(2**31)),
        GOOD.replace("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
        GOOD.replace("W22Z", "W2 2Z"),
        GOOD.replace("W22Z", "é22Z"),
        GOOD[:-8],
        GOOD.replace("$", ":"),
    ],
)  # fmt: skip
def test_anything_else_is_damaged_and_not_repeated(text: str) -> None:
    with pytest.raises(
        StoreError, match=r"^a stored SCRAM verifier is damaged; rotate the agent's password$"
    ):
        Verifier.parse(text)


@given(st.text(max_size=120) | st.text(alphabet="SCRAM-SHA-256$:0123456789=+/ab", max_size=140))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        Verifier.parse(text)
    except StoreError:
        return


def test_a_mock_is_always_the_same_for_a_name_and_looks_like_any_other() -> None:
    one, again = Verifier.mock("ada", b"seed"), Verifier.mock("ada", b"seed")
    other, elsewhere = Verifier.mock("bob", b"seed"), Verifier.mock("ada", b"other seed")
    assert one == again
    assert len({one.salt, other.salt, elsewhere.salt}) == 3
    real = Verifier.of_password("x")
    assert (one.iterations, len(one.salt)) == (real.iterations, len(real.salt))
    assert Verifier.parse(one.text()) == one


@given(st.text(max_size=10) | st.just("\ud800"))
def test_a_mock_accepts_nobody(name: str) -> None:
    mock = Verifier.mock(name, b"seed")
    for password in (name, "", "seed"):
        assert not mock.accepts(
            proof_of(password.encode("utf-8", "replace").decode(), mock.salt, 1, b"m"), b"m"
        )


def test_a_verifier_does_not_show_its_keys() -> None:
    shown = repr(Verifier.of_password("pencil", salt=SALT))
    assert shown == "Verifier(iterations=4096)"


def test_postgresql_takes_a_verifier_of_ours_and_we_take_one_of_its(postgres: Server) -> None:
    role = sql.Identifier("sqlwall_test_scram")
    with postgres.connect() as connection:
        connection.execute("SET password_encryption = 'scram-sha-256'")
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                role, sql.Literal(Verifier.of_password("pencil").text())
            )
        )
        try:
            with postgres.connect(user="sqlwall_test_scram", password="pencil") as other:
                assert other.execute("SELECT current_user").fetchone() == ("sqlwall_test_scram",)
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 'stencil'").format(role))
            row = connection.execute(
                "SELECT rolpassword FROM pg_authid WHERE rolname = 'sqlwall_test_scram'"
            ).fetchone()
            assert row is not None
            theirs = Verifier.parse(row[0])
            again = Verifier.of_password("stencil", salt=theirs.salt, iterations=theirs.iterations)
            assert again == theirs
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(role))
