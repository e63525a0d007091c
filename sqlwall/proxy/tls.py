"""TLS contexts for both sides, and the hash of a certificate that ties a SCRAM login to it (RFC 5929).

The meanings of sslmode are libpq's (manual, chapter 34.19). Raises ConfigError, with the file that is to blame.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from sqlwall.config import Tls
from sqlwall.errors import ConfigError, Problem

#: IANA's name of the PostgreSQL protocol, needed for direct TLS.
ALPN = "postgresql"
#: The word for `sslrootcert` that means the system's certificates.
SYSTEM = "system"

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


def client_side_context(config: Tls) -> ssl.SSLContext | None:
    """The context for accepting agents; None where no certificate is configured."""
    if config.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[config.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = (
        0  # PostgreSQL's server gives none either; a resumed session would skip certificates
    )
    context.set_alpn_protocols([ALPN])
    _load_chain(context, config.certificate, config.key, "tls.certificate")
    if config.client_ca is not None:
        _load_authorities(context, config.client_ca, "tls.client_ca")
        is_needed = config.client_certificate != "optional"
        context.verify_mode = ssl.CERT_REQUIRED if is_needed else ssl.CERT_OPTIONAL
    return context


def upstream_context(
    sslmode: str,
    *,
    root_certificates: Path | str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> ssl.SSLContext | None:
    """The context for connecting to the server with this sslmode; None for `disable`."""
    if sslmode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if root_certificates is not None:
        if root_certificates == SYSTEM:
            if sslmode != "verify-full":
                raise ConfigError(f"sslrootcert=system needs sslmode=verify-full, not {sslmode}")
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        elif sslmode in ("require", "verify-ca", "verify-full"):
            _load_authorities(context, Path(root_certificates), "upstream.sslrootcert")
        if sslmode in (
            "require",
            "verify-ca",
            "verify-full",
        ):  # as libpq: `require` with a file is `verify-ca`
            context.verify_mode = ssl.CERT_REQUIRED
    elif sslmode in ("verify-ca", "verify-full"):
        raise ConfigError(f"sslmode={sslmode} needs upstream.sslrootcert: a file of certificates, or system")
    context.check_hostname = sslmode == "verify-full"
    if certificate is not None:
        _load_chain(context, certificate, key, "upstream.sslcert")
    return context


def channel_binding_hash(der: bytes) -> bytes | None:
    """`tls-server-end-point` of a certificate; None where its signature names no hash (Ed25519), as in PostgreSQL.

    RFC 5929, section 4.1: the hash of the signature, but SHA-256 in place of MD5 and SHA-1.
    """
    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    if algorithm is None:
        return None
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    try:
        return hashlib.new(name, der).digest()
    except ValueError:
        return None


def own_channel_binding_hash(config: Tls) -> bytes | None:
    """`channel_binding_hash` of the certificate that agents are shown."""
    if config.certificate is None:
        return None
    return channel_binding_hash(certificate_der(config.certificate))


def certificate_der(path: Path) -> bytes:
    """The first certificate of a PEM file: the one that is shown, as opposed to the chain behind it."""
    try:
        text = path.read_text("ascii", "replace")
        start = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", start) + len("-----END CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(text[start:end])
    except OSError as error:
        raise _problem("tls.certificate", path, error.strerror or "unreadable") from None
    except ValueError:
        raise _problem("tls.certificate", path, "holds no certificate in PEM form") from None


def common_name(der: bytes) -> str | None:
    """The one common name in a certificate's subject; None if there is none, several, or one with a NUL inside."""
    try:
        names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return None
    if len(names) != 1 or not isinstance(names[0].value, str) or "\0" in names[0].value:
        return None
    return names[0].value


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path | None, setting: str) -> None:
    _require_readable(certificate, setting)
    if key is not None:
        _require_readable(key, "key of " + setting)
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase(key or certificate))
    except ssl.SSLError as error:
        raise _problem(setting, certificate, _why_not_loaded(error, key)) from None


def _load_authorities(context: ssl.SSLContext, path: Path, setting: str) -> None:
    _require_readable(path, setting)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise _problem(setting, path, "holds no certificate in PEM form") from None


def _require_readable(path: Path, setting: str) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise _problem(setting, path, error.strerror or "unreadable") from None


def _no_passphrase(path: Path) -> Callable[[], str]:
    """OpenSSL would ask on the terminal of a server that may have none."""

    def refuse() -> str:
        raise _problem("tls.key", path, "is protected by a passphrase; give a key without one")

    return refuse


def _why_not_loaded(error: ssl.SSLError, key: Path | None) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"does not belong to the key in {key}"
    if key is None:
        return "holds no certificate with its key in PEM form; a key of its own is named beside it"
    return f"it or its key {key} is not in PEM form"


def _problem(setting: str, path: Path, why: str) -> ConfigError:
    return ConfigError(Problem(f"{setting}: {why}", str(path)))
