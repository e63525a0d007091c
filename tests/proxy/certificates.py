"""A certificate authority of the tests, and files signed by it."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its key, in memory and as PEM files."""

    certificate: x509.Certificate
    private: Key
    certificate_file: Path
    key_file: Path

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def issue(
    folder: Path,
    name: str,
    *,
    signer: Identity | None = None,
    digest: hashes.HashAlgorithm | None = None,
    host: str = "127.0.0.1",
    is_ed25519: bool = False,
) -> Identity:
    """A certificate for `name` and `host`; without a signer it is an authority's own."""
    private: Key = (
        ed25519.Ed25519PrivateKey.generate() if is_ed25519 else ec.generate_private_key(ec.SECP256R1())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer is not None else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([alternative(host)]), critical=False)
    )
    signing = signer.private if signer is not None else private
    algorithm = None if isinstance(signing, ed25519.Ed25519PrivateKey) else digest or hashes.SHA256()
    certificate = builder.sign(signing, algorithm)
    certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    key_file.chmod(0o600)
    return Identity(certificate, private, certificate_file, key_file)


def alternative(host: str) -> x509.GeneralName:
    """A host as a certificate names it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
