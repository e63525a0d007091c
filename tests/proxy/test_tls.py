"""Contexts say what is wrong with a file, and the hash of a certificate is OpenSSL's."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from sqlwall.config import Tls
from sqlwall.errors import ConfigError
from sqlwall.proxy.tls import (
    certificate_der,
    channel_binding_hash,
    client_side_context,
    common_name,
    own_channel_binding_hash,
    upstream_context,
)
from tests.proxy.certificates import issue


@pytest.mark.parametrize(("digest", "name"), [(hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384")])
def test_the_binding_is_the_hash_of_the_signature(
    tmp_path: Path, digest: hashes.HashAlgorithm, name: str
) -> None:
    own = issue(tmp_path, "wall", digest=digest)
    assert channel_binding_hash(own.der) == hashlib.new(name, own.der).digest()
    assert own_channel_binding_hash(Tls(certificate=own.certificate_file)) == channel_binding_hash(own.der)


def test_ed25519_and_garbage_have_no_binding(tmp_path: Path) -> None:
    assert channel_binding_hash(issue(tmp_path, "ed", is_ed25519=True).der) is None
    assert channel_binding_hash(b"not a certificate") is None
    assert own_channel_binding_hash(Tls()) is None


def test_the_first_certificate_of_a_chain_is_the_one_shown(tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    own = issue(tmp_path, "wall", signer=authority)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(
        b"a comment\n" + own.certificate_file.read_bytes() + authority.certificate_file.read_bytes()
    )
    assert certificate_der(chain) == own.der
    assert common_name(own.der) == "wall"
    assert common_name(b"garbage") is None


def test_without_a_certificate_there_is_no_tls() -> None:
    assert client_side_context(Tls()) is None


def test_old_tls_can_be_ruled_out(tmp_path: Path) -> None:
    own = issue(tmp_path, "wall")
    context = client_side_context(
        Tls(certificate=own.certificate_file, key=own.key_file, min_version="TLSv1.3")
    )
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_every_broken_file_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    own, other = issue(tmp_path, "own"), issue(tmp_path, "other")
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("not PEM\n")
    cases = [
        (Tls(certificate=missing), "missing.pem: tls.certificate: No such file"),
        (
            Tls(certificate=own.certificate_file, key=missing),
            "missing.pem: key of tls.certificate: No such file",
        ),
        (Tls(certificate=own.certificate_file, key=other.key_file), "does not belong to the key in"),
        (Tls(certificate=own.certificate_file), "holds no certificate with its key"),
        (Tls(certificate=text, key=own.key_file), "not in PEM form"),
        (
            Tls(certificate=own.certificate_file, key=own.key_file, client_ca=text),
            "text.pem: tls.client_ca: holds no certificate",
        ),
    ]
    for given, words in cases:
        with pytest.raises(ConfigError) as caught:
            client_side_context(given)
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="holds no certificate"):
        certificate_der(text)


def test_a_key_with_a_passphrase_is_refused_without_asking(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    own = issue(tmp_path, "own")
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        own.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigError, match="passphrase"):
        client_side_context(Tls(certificate=own.certificate_file, key=locked))


@pytest.mark.parametrize(
    ("sslmode", "with_roots", "verify", "checks_host"),
    [
        ("allow", False, ssl.CERT_NONE, False),
        ("prefer", True, ssl.CERT_NONE, False),
        ("require", False, ssl.CERT_NONE, False),
        ("require", True, ssl.CERT_REQUIRED, False),
        ("verify-ca", True, ssl.CERT_REQUIRED, False),
        ("verify-full", True, ssl.CERT_REQUIRED, True),
    ],
)
def test_sslmode_decides_what_is_verified(
    tmp_path: Path, sslmode: str, with_roots: bool, verify: ssl.VerifyMode, checks_host: bool
) -> None:
    roots = issue(tmp_path, "authority").certificate_file if with_roots else None
    context = upstream_context(sslmode, root_certificates=roots)
    assert context is not None
    assert context.verify_mode is verify
    assert context.check_hostname is checks_host


def test_sslmodes_that_cannot_hold_are_refused() -> None:
    assert upstream_context("disable") is None
    with pytest.raises(ConfigError, match="sslrootcert"):
        upstream_context("verify-ca")
    with pytest.raises(ConfigError, match="verify-full"):
        upstream_context("require", root_certificates="system")
    assert upstream_context("verify-full", root_certificates="system") is not None
