"""Mutual TLS between two processes that know each other's one certificate.

    link --TLS 1.3, both sides pinned--> trainer

A pin is stronger than a CA here: nothing that anybody else signs is accepted, on either side. The
files are read for each connection, so a renewed pair needs no restart.
"""

import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .errors import SettingsError

HANDSHAKE_SECONDS = 10.0

# A peer whose machine is gone says nothing: noticed after 30 + 3 * 10 s of silence, also while a
# round computes for an hour and no byte is due.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


def connect(host: str, port: int, *, certificate: Path, key: Path, peer: Path) -> ssl.SSLSocket:
    """A connection to the one who holds the key of `peer`.

    Raises:
        OSError: nobody is there, or somebody else is (`ssl.SSLError`).
        SettingsError: a file cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, peer)
    stream = socket.create_connection((host, port), timeout=HANDSHAKE_SECONDS)
    return _secured(stream, context, peer, server=False)


def accept(stream: socket.socket, *, certificate: Path, key: Path, peer: Path) -> ssl.SSLSocket:
    """The secured form of a connection that arrived; closed when it is not from `peer`.

    Raises:
        OSError: the other side is not `peer` (`ssl.SSLError`), or went away.
        SettingsError: a file cannot be used.
    """
    try:
        context = _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, peer)
    except SettingsError:
        stream.close()
        raise
    return _secured(stream, context, peer, server=True)


def _secured(
    stream: socket.socket, context: ssl.SSLContext, peer: Path, *, server: bool
) -> ssl.SSLSocket:
    try:
        stream.settimeout(HANDSHAKE_SECONDS)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        secured = context.wrap_socket(stream, server_side=server)
    except OSError:
        stream.close()
        raise
    if secured.getpeercert(binary_form=True) not in _certificates(peer):
        secured.close()
        raise ssl.SSLError(f"the other side's certificate is not the one in {peer}")
    secured.settimeout(None)
    return secured


def _context(protocol: int, certificate: Path, key: Path, peer: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is compared, not a name in it
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the pin itself is the anchor
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cafile=peer)
    except OSError as error:
        raise SettingsError(
            f"{certificate}, {key} and {peer}: not a certificate, its key and the other side's "
            f"certificate: {error.strerror or error}"
        ) from error
    return context


def _certificates(path: Path) -> list[bytes]:
    """Two while one is being replaced by the other."""
    certificates = x509.load_pem_x509_certificates(path.read_bytes())
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]
