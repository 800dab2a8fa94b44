"""Look at a process's own keys and certificates before it starts, and say what is wrong.

    check_server_files(cert, key, ca, name="fl.example.org")
    check_client_files(cert, key, ca, site="hospital-a")
    check_node_key(node_key, node_public)
    check_signing_key(signing_key, signing_public)

Each returns what a person or a metric wants to know (names, serial, not-after) or raises a
`CertError` with one sentence. `docs/security-refusals.md` lists the sentences.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from certs import _pem, keys
from certs._chain import Judged, is_authority, judge_chain, judge_list, judge_roots, name_of
from certs._x509 import CLIENT, SERVER, utc_now
from certs.fingerprints import certificate_fingerprint, fingerprint
from certs.names import Role, check_site, identity_uri, parse_identity
from certs.sentences import refuse


@dataclass(frozen=True)
class CertificateReport:
    """A certificate that passed, in the words of a metric and of a page."""

    file: Path
    subject: str
    names: tuple[str, ...]  # DNS names, addresses and URIs, as they stand in it
    serial: str  # lower-case hexadecimal
    not_before: dt.datetime  # UTC
    not_after: dt.datetime  # UTC: the earliest end on the way to the root; then it stops to work
    ca_fingerprint: str  # of the root that it leads to

    def warning(self, now: dt.datetime | None = None) -> int | None:
        """30, 7 or 1 when fewer than that many days are left; 0 when ended; None when all is well.

        These are the days at which `doctor`, readiness and the alerts speak.
        """
        left = self.seconds_left(now)
        return next((days for days in (0, 1, 7, 30) if left < days * 86400), None)

    def seconds_left(self, now: dt.datetime | None = None) -> float:
        """Seconds until `not_after`; negative afterwards."""
        return (self.not_after - (now or utc_now())).total_seconds()


@dataclass(frozen=True)
class KeyReport:
    """A node key or signing key that passed."""

    file: Path
    kind: str
    fingerprint: str  # of the public half


def check_server_files(
    cert: Path,
    key: Path,
    ca: Path,
    *,
    name: str = "",
    crl: Path | None = None,
    now: dt.datetime | None = None,
    group_may_read: bool = False,
) -> CertificateReport:
    """Check a server's certificate with its chain, its key, and the roots it should lead to.

    Args:
        cert: PEM, leaf first; may be the same file as `key` (HAProxy's form).
        key: PEM, not encrypted, 0600.
        ca: PEM, the roots that clients trust.
        name: a DNS name or address under which clients reach the server, when known.
        crl: PEM revocation lists, to learn that the certificate was revoked.
        now: the time, for tests.
        group_may_read: allow mode 0640 on the key, as Kubernetes mounts secrets.

    Raises:
        CertError: see `docs/security-refusals.md`.
    """
    report, leaf = _check_pair(cert, key, ca, SERVER, crl, now, group_may_read)
    if not report.names:
        raise refuse("cert-no-names", file=cert, subject=name_of(leaf))
    if name and not any(_covers(own, name) for own in report.names):
        raise refuse("cert-names", file=cert, got=", ".join(report.names), expected=name)
    return report


def check_client_files(
    cert: Path,
    key: Path,
    ca: Path,
    *,
    site: str = "",
    role: Role = Role.HOSPITAL,
    crl: Path | None = None,
    now: dt.datetime | None = None,
    group_may_read: bool = False,
) -> CertificateReport:
    """Check a client's certificate, its key, the roots, and that it names `site` in `role`.

    Args are those of `check_server_files`; with an empty `site`, any identity of ours passes.

    Raises:
        CertError: see `docs/security-refusals.md`.
    """
    report, leaf = _check_pair(cert, key, ca, CLIENT, crl, now, group_may_read)
    expected = identity_uri(role, check_site(site)) if site else "a fedward:// identity"
    identities = [name for name in report.names if parse_identity(name)]
    # Exactly one: with two, the edge and the registry could each believe another.
    if len(identities) != 1 or (site and identities != [expected]):
        got = ", ".join(report.names) or name_of(leaf)
        raise refuse("cert-identity", file=cert, got=got, expected=expected)
    return report


def check_ca_file(ca: Path, *, now: dt.datetime | None = None) -> list[CertificateReport]:
    """Check a file of roots to trust; one report each, in the file's order.

    Raises:
        CertError: `file-*`, `cert-*`, `ca-not-root`.
    """
    now = now or utc_now()
    roots = _pem.read_certificates(ca)
    judge_roots(roots, Judged(ca, ca, now))
    return [_report(ca, [root]) for root in roots]


def check_node_key(private: Path, public: Path | None = None) -> KeyReport:
    """Check a SuperNode's identity, and that the `.pub` file beside it is its other half.

    Raises:
        CertError: `file-*`, `key-*`, `node-key-*`, `node-public-key`.
    """
    key = keys.load_node_key(private)
    own = keys.spki(key.public_key())
    if public is not None and keys.spki(keys.load_node_public(public)) != own:
        raise refuse("node-key-swapped", file=public, key=private)
    return KeyReport(private, keys.describe(key), fingerprint(own))


def check_signing_key(private: Path, public: Path | None = None) -> KeyReport:
    """Check an Ed25519 signing key, and that the `.pub` file beside it is its other half.

    Raises:
        CertError: `file-*`, `key-*`, `signing-*`.
    """
    key = keys.load_signing_key(private)
    own = keys.spki(key.public_key())
    if public is not None and keys.spki(keys.load_signing_public(public)) != own:
        raise refuse("signing-key-swapped", file=public, key=private)
    return KeyReport(private, keys.describe(key), fingerprint(own))


def report_certificate(cert: Path) -> CertificateReport:
    """What a certificate's file says, unjudged: for a metric that must show expired ones too.

    Raises:
        CertError: `file-*`, `cert-garbage` and its like.
    """
    chain = _pem.read_certificates(cert, with_key=True)
    return _report(cert, chain)


def _check_pair(
    cert: Path,
    key: Path,
    ca: Path,
    usage: x509.ObjectIdentifier,
    crl: Path | None,
    now: dt.datetime | None,
    group_may_read: bool,
) -> tuple[CertificateReport, x509.Certificate]:
    judged = Judged(cert, ca, now or utc_now())
    chain = _pem.read_certificates(cert, with_key=cert == key)
    roots = _pem.read_certificates(ca)
    path = judge_chain(chain, roots, usage, judged)
    leaf = chain[0]
    private = keys.load_certificate_key(key, group_may_read=group_may_read)
    if keys.spki(private.public_key()) != keys.spki(leaf.public_key()):
        raise refuse("key-swapped", key=key, file=cert)
    if crl is not None:
        judge_list(leaf, path[1], _pem.read_lists(crl), crl, judged)
    return _report(cert, path), leaf


def _report(file: Path, path: list[x509.Certificate]) -> CertificateReport:
    leaf, top = path[0], path[-1]
    return CertificateReport(
        file=file,
        subject=leaf.subject.rfc4514_string(),
        names=certificate_names(leaf),
        serial=f"{leaf.serial_number:x}",
        not_before=leaf.not_valid_before_utc,
        not_after=min(certificate.not_valid_after_utc for certificate in path),
        ca_fingerprint=certificate_fingerprint(top) if is_authority(top) else "",
    )


def certificate_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The alternative names of a certificate as text, in its order; may be none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _covers(own: str, wanted: str) -> bool:
    """Whether the name `own` covers `wanted`; a star stands for one label (RFC 9525, 6.3)."""
    own, wanted = own.lower(), wanted.lower()
    if own.startswith("*.") and "." in wanted:
        return own[2:] == wanted.split(".", 1)[1]
    return own == wanted
