"""TLS of the page's own server: what `tls_server_config` of a web.config.yml asks for, as far as Python's ssl can."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_mlops.sdk.web_config import Section

KEYS = (
    "cert", "key", "client_ca", "cert_file", "key_file", "client_auth_type", "client_ca_file", "client_allowed_sans",
    "min_version", "max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences",
)  # fmt: skip
"""What `tls_server_config` may say."""

_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_ALWAYS_WITH_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_CIPHERS = {
    f"TLS_ECDHE_{key}_WITH_{suite}": f"ECDHE-{key}-{name}"
    for key in ("ECDSA", "RSA")
    for suite, name in {
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
    }.items()
}
"""Go's names of the suites it holds safe, which the file uses, and OpenSSL's."""


def context_of(section: Section) -> ssl.SSLContext:
    """The context of a server with this `tls_server_config`.

    Errors:  ValueError that names the file, the key, the value and what was expected.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Renegotiation only costs the server; compression leaks; tickets would outlive a change of the configuration.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    _set_versions(context, section)
    _set_ciphers(context, section)
    _set_curve(context, section)
    _load_certificate(context, section)
    _set_client_auth(context, section)
    return context


def handshake(connection: ssl.SSLSocket, timeout_s: float, allowed: frozenset[str] | None) -> None:
    """Agree on TLS with a client, who must have one of the allowed names, if there are any.

    Errors:  OSError if it fails, takes too long, or the name is none of them.
    """
    connection.settimeout(timeout_s)
    connection.do_handshake()
    if allowed is not None and not allowed & names_of_client(connection):
        raise ssl.SSLCertVerificationError("the client's certificate has none of client_allowed_sans")


def first_byte(connection: socket.socket, timeout_s: float) -> bytes:
    """The first byte that a client sends, which stays unread; none if it has left.

    Errors:  OSError if it takes too long or the connection fails.
    """
    connection.settimeout(timeout_s)
    return connection.recv(1, socket.MSG_PEEK)


def say_goodbye(connection: socket.socket) -> None:
    """Tell a TLS client that nothing more comes, without waiting for what it says."""
    if isinstance(connection, ssl.SSLSocket):
        # It always fails, as the client's own goodbye is not there yet; or the client is gone.
        with suppress(OSError, ValueError):
            connection.settimeout(0)
            connection.unwrap()


def names_of_client(connection: ssl.SSLSocket) -> set[str]:
    """The names in a verified client's certificate: DNS, IP, e-mail and URI."""
    found = set()
    certificate: Any = connection.getpeercert() or {}
    for kind, value in certificate.get("subjectAltName", ()):
        found.add(str(ipaddress.ip_address(str(value).strip())) if kind == "IP Address" else str(value))
    return found


def allowed_names(section: Section) -> frozenset[str] | None:
    """The names of which a client's certificate must have one; None if any will do."""
    names = section.texts("client_allowed_sans")
    if names is None:
        return None
    if not names:
        section.fail("client_allowed_sans", names, "at least one name")
    if section.text("client_auth_type") != "RequireAndVerifyClientCert":
        section.fail(
            "client_allowed_sans", names, "client_auth_type: RequireAndVerifyClientCert, or there is no name to look at"
        )
    return frozenset(names)


def _set_versions(context: ssl.SSLContext, section: Section) -> None:
    versions = []
    for key, default in (("min_version", "TLS12"), ("max_version", "TLS13")):
        name = section.text(key) or default
        if name not in _VERSIONS:
            why = "; OpenSSL no longer speaks the older ones" if name in {"TLS10", "TLS11"} else ""
            section.fail(key, name, f"TLS12 or TLS13{why}")
        versions.append(_VERSIONS[name])
    if versions[0] > versions[1]:
        section.fail("max_version", section.text("max_version"), "a version that is not below min_version")
    context.minimum_version, context.maximum_version = versions


def _set_ciphers(context: ssl.SSLContext, section: Section) -> None:
    if section.boolean("prefer_server_cipher_suites", default=True):
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    names = section.texts("cipher_suites")
    if not names:
        return
    known = (*_CIPHERS, *_ALWAYS_WITH_TLS13)
    for name in names:
        if name not in known:
            section.fail("cipher_suites", name, f"one of {', '.join(known)}")
    older = [_CIPHERS[name] for name in names if name in _CIPHERS]
    if not older:
        # They are those of TLS 1.3, which are always on: nothing to choose.
        if context.minimum_version is not ssl.TLSVersion.TLSv1_3:
            section.fail("cipher_suites", names, "min_version: TLS13 as well, as these suites are those of TLS 1.3")
        return
    try:
        context.set_ciphers(":".join(older))
    except ssl.SSLError:
        section.fail("cipher_suites", names, "suites that this machine's OpenSSL offers")
    offered = {cipher["name"] for cipher in context.get_ciphers()}
    for name in names:
        if name in _CIPHERS and _CIPHERS[name] not in offered:
            section.fail("cipher_suites", name, "a suite that this machine's OpenSSL offers")


def _set_curve(context: ssl.SSLContext, section: Section) -> None:
    names = section.texts("curve_preferences")
    if not names:
        return
    for name in names:
        if name not in _CURVES:
            section.fail("curve_preferences", name, f"one of {', '.join(_CURVES)}")
    if len(names) > 1:
        section.fail("curve_preferences", names, "one curve, as Python's ssl cannot be told several")
    try:
        context.set_ecdh_curve(_CURVES[names[0]])
    except (ssl.SSLError, ValueError):
        section.fail("curve_preferences", names[0], "a curve that this machine's OpenSSL offers")


def _load_certificate(context: ssl.SSLContext, section: Section) -> None:
    certificate, key = _inline_or_file(section, "cert"), _inline_or_file(section, "key")
    for name, found in (("cert_file", certificate), ("key_file", key)):
        if found is None:
            section.fail(name, None, "the path of a PEM file, as TLS needs a certificate and its key")

    def refuse_passphrase() -> str:
        # Else OpenSSL would ask on the terminal.
        section.fail("key_file", section.text("key_file"), "a key without a passphrase")

    with _readable(section, "cert", certificate) as cert_path, _readable(section, "key", key) as key_path:
        try:
            context.load_cert_chain(cert_path, key_path, password=refuse_passphrase)
        except OSError as error:
            paths = [str(each) for each in (certificate, key) if isinstance(each, Path)]
            section.fail("cert and key", ", ".join(paths) or None, f"a PEM certificate and its key ({error})")


def _set_client_auth(context: ssl.SSLContext, section: Section) -> None:
    name = section.text("client_auth_type") or "NoClientCert"
    if name in _UNVERIFIED:
        section.fail(
            "client_auth_type", name, f"one of {', '.join(_CLIENT_AUTH)}, as Python's ssl asks for no certificate "
            "that it does not verify",
        )  # fmt: skip
    if name not in _CLIENT_AUTH:
        section.fail("client_auth_type", name, f"one of {', '.join(_CLIENT_AUTH)}")
    authority = _inline_or_file(section, "client_ca")
    if _CLIENT_AUTH[name] is ssl.CERT_NONE:
        if authority is not None:
            section.fail("client_ca_file", section.text("client_ca_file"), "a client_auth_type that verifies clients")
        return
    if authority is None:
        section.fail("client_ca_file", None, "the certificates that clients are verified with")
    if isinstance(authority, Path):
        section.read("client_ca_file", authority)
    try:
        if isinstance(authority, Path):
            context.load_verify_locations(cafile=authority)
        else:
            context.load_verify_locations(cadata=authority)
    except (OSError, ValueError) as error:
        section.fail("client_ca_file", section.text("client_ca_file"), f"certificates in PEM ({error})")
    # A certificate of the file is trusted by itself, as Go does: it need not be a root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = _CLIENT_AUTH[name]


def _inline_or_file(section: Section, key: str) -> Path | str | None:
    inline, path = section.secret(key), section.path(f"{key}_file")
    if inline is not None and path is not None:
        section.fail(f"{key}_file", str(path), f"either {key}_file or {key}, not both")
    return inline if path is None else path


@contextmanager
def _readable(section: Section, key: str, source: Path | str | None) -> Iterator[Path | str]:
    """A path at which OpenSSL finds a file, or a text without laying it down on a disk."""
    if isinstance(source, Path):
        section.read(f"{key}_file", source)
        yield source
        return
    data = (source or "").encode()
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        try:
            fits = os.write(writing, data) == len(data)
        except BlockingIOError:
            fits = False
        finally:
            os.close(writing)
        if not fits:
            section.fail(key, "...", f"a shorter one, or {key}_file")
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
