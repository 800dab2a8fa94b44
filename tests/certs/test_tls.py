"""Real handshakes on loopback: Python's strict flags, revocation lists, keys on both sides."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from certs import CA
from certs.local import ClientPaths, FederationPaths, make_federation


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> FederationPaths:
    return make_federation(tmp_path_factory.mktemp("federation"), ["hospital-a", "hospital-b"])


def server_context(pair: Path, ca: Path, crl: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pair)
    context.load_verify_locations(cafile=str(crl))
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_LEAF
    return context


def client_context(ca: Path, pair: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if pair:
        context.load_cert_chain(pair)
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> str:
    """Connect once; the server answers with the client's identity, or the first error is raised."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer, args=(listener, server))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as raw,
                client.wrap_socket(raw, server_hostname=name) as tls,
            ):
                return tls.recv(200).decode()
        finally:
            thread.join()


def _answer(listener: socket.socket, context: ssl.SSLContext) -> None:
    raw, _ = listener.accept()
    raw.settimeout(5)
    try:
        with context.wrap_socket(raw, server_side=True) as tls:
            peer = tls.getpeercert() or {}
            names = peer.get("subjectAltName", ())
            tls.sendall(str(names[0][1]).encode())
    except (ssl.SSLError, OSError):
        raw.close()


def test_a_hospital_and_the_server_recognise_each_other(federation: FederationPaths) -> None:
    """With both certificates, TLS stands, and the server sees which site it is."""
    server, site = federation.aggregator, federation.sites["hospital-a"]
    context = server_context(server.pair, server.ca, server.crl)
    identity = handshake(context, client_context(site.ca, site.client.pair))
    assert identity == "fedward://hospital/hospital-a"
    assert handshake(context, client_context(site.ca, site.client.pair), "127.0.0.1") == identity


def test_without_a_certificate_nobody_gets_in(federation: FederationPaths) -> None:
    """A client without a certificate is refused in the handshake."""
    server = federation.aggregator
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(
            server_context(server.pair, server.ca, server.crl), client_context(server.ca, None)
        )


def test_a_hospital_cannot_pass_as_the_server(federation: FederationPaths) -> None:
    """A site that answers in the server's place is refused by the other site, for its usage."""
    rogue: ClientPaths = federation.sites["hospital-b"].client
    victim = federation.sites["hospital-a"]
    server = server_context(rogue.pair, rogue.ca, federation.crl)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, client_context(victim.ca, victim.client.pair))


def test_a_server_under_another_name_is_refused(federation: FederationPaths) -> None:
    """The server's certificate counts only for its own names."""
    server, site = federation.aggregator, federation.sites["hospital-a"]
    context = server_context(server.pair, server.ca, server.crl)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.example"):
        handshake(context, client_context(site.ca, site.client.pair), "other.example")


def test_a_revoked_hospital_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    """After the list is written, a new connection of the revoked site fails; the others' do not."""
    paths = make_federation(tmp_path, ["hospital-a", "hospital-b"])
    CA.load(paths.ca_folder).revoke("hospital-b")
    context = server_context(paths.aggregator.pair, paths.ca, paths.crl)
    good, bad = (paths.sites[name] for name in ("hospital-a", "hospital-b"))
    assert handshake(context, client_context(good.ca, good.client.pair)).endswith("hospital-a")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(context, client_context(bad.ca, bad.client.pair))


def test_both_roots_work_while_the_ca_changes(tmp_path: Path) -> None:
    """Old and new leaves meet in all four ways while both roots are trusted, strict and listed."""
    ca = CA.create(intermediate=True).save(tmp_path / "ca")
    old_root = tmp_path / "old.crt"
    old_root.write_bytes((tmp_path / "ca" / "ca.crt").read_bytes())
    ca.issue_server(["localhost"]).write(tmp_path, "old-server")
    ca.issue_client("hospital-a").write(tmp_path, "old-client")
    ca.begin_rollover()
    ca.issue_server(["localhost"]).write(tmp_path, "new-server")
    ca.issue_client("hospital-a").write(tmp_path, "new-client")
    trust, crl = tmp_path / "ca" / "trust.pem", tmp_path / "ca" / "crl.pem"
    for server in ("old-server", "new-server"):
        context = server_context(tmp_path / f"{server}.pem", trust, crl)
        for client in ("old-client", "new-client"):
            for roots in (trust, old_root):  # a site that was not told of the new root yet
                pair = tmp_path / f"{client}.pem"
                assert handshake(context, client_context(roots, pair)), (server, client, roots)
    ca.finish_rollover()
    context = server_context(tmp_path / "new-server.pem", trust, crl)
    assert handshake(context, client_context(trust, tmp_path / "new-client.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(context, client_context(trust, tmp_path / "old-client.pem"))
