"""Judging a leaf, its chain and the roots it should lead to, with one sentence for each fault.

OpenSSL judges the same files at the handshake; it says "certificate verify failed". This module
says which file, which value and what would be right, before the process starts. It follows
RFC 5280, section 6, without policies and name constraints, which a study's CA does not use.
"""

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from certs import keys
from certs._x509 import stamp
from certs.sentences import refuse

# What this module, and OpenSSL, understand; any other critical extension must be refused
# (RFC 5280, 4.2).
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}

_USAGES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "a TLS server",
    ExtendedKeyUsageOID.CLIENT_AUTH: "a TLS client",
}


@dataclass(frozen=True)
class Judged:
    """Where the certificates came from, and when they are judged."""

    file: Path | str
    ca: Path | str
    now: dt.datetime


def judge_chain(
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    usage: x509.ObjectIdentifier,
    judged: Judged,
) -> list[x509.Certificate]:
    """The path from the leaf to the root to which `chain` (leaf first) leads, if every link holds.

    The path can be shorter than the chain: while a CA is replaced, a server also sends the new
    root signed by the old, which only those need who do not know the new root yet.

    Raises:
        CertError: `cert-*`, `ca-not-root`.
    """
    judge_roots(roots, judged)
    for certificate in chain:
        _judge_form(certificate, judged.file)
    leaf = chain[0]
    if len(chain) > 1 and is_authority(leaf) and any(not is_authority(c) for c in chain[1:]):
        raise refuse("cert-order", file=judged.file)
    _judge_leaf(leaf, roots, usage, judged)
    _judge_order(chain, roots, judged)
    return _judge_path(chain, roots, judged)


def judge_roots(roots: Sequence[x509.Certificate], judged: Judged) -> None:
    """Refuse a file of roots that holds anything else, or roots that have all ended."""
    for root in roots:
        _judge_form(root, judged.ca)
        if not is_authority(root) or not issued(root, root):
            raise refuse("ca-not-root", file=judged.ca, subject=name_of(root))
    current = [root for root in roots if root.not_valid_after_utc > judged.now]
    for root in current or roots:
        judge_times(root, judged.ca, judged.now)


def judge_times(certificate: x509.Certificate, file: object, now: dt.datetime) -> None:
    """Refuse a certificate that has ended, or has not begun: `cert-expired`, `cert-not-yet`."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    subject = name_of(certificate)
    if now > end:
        raise refuse("cert-expired", file=file, subject=subject, end=stamp(end), now=stamp(now))
    if now < begin:
        raise refuse("cert-not-yet", file=file, subject=subject, begin=stamp(begin), now=stamp(now))


def judge_list(
    leaf: x509.Certificate,
    issuer: x509.Certificate,
    lists: Sequence[x509.CertificateRevocationList],
    file: Path,
    judged: Judged,
) -> None:
    """Refuse a revoked leaf, or a list that cannot say: `cert-revoked`, `crl-*`."""
    own = next((crl for crl in lists if crl.issuer == issuer.subject), None)
    if own is None:
        raise refuse("crl-none", file=file, issuer=name_of(issuer))
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) or not (
        own.is_signature_valid(key)
    ):
        raise refuse("crl-forged", file=file, issuer=name_of(issuer))
    end = own.next_update_utc
    if end is None or judged.now > end:
        shown = stamp(end) if end else "no stated time"
        raise refuse("crl-expired", file=file, end=shown, now=stamp(judged.now))
    if judged.now < own.last_update_utc:
        begin = stamp(own.last_update_utc)
        raise refuse("crl-not-yet", file=file, begin=begin, now=stamp(judged.now))
    entry = own.get_revoked_certificate_by_serial_number(leaf.serial_number)
    if entry is not None:
        when = stamp(entry.revocation_date_utc)
        raise refuse("cert-revoked", file=judged.file, subject=name_of(leaf), when=when)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate says CA:TRUE and may sign certificates."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    usage = key_usage(certificate)
    return basic.ca and (usage is None or usage.key_cert_sign)


def key_usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    """The key usage extension, when there is one."""
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    """Whether `parent` is named as issuer in `child`, and its key signed it."""
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def name_of(certificate: x509.Certificate) -> str:
    """The subject on one line; what an attacker wrote in it is escaped by RFC 4514 and `repr`."""
    return repr(certificate.subject.rfc4514_string())


def _judge_form(certificate: x509.Certificate, file: object) -> None:
    """Version, extensions, signature algorithm and key strength: no clock, no other file."""
    subject = name_of(certificate)
    if certificate.version is not x509.Version.v3:
        raise refuse("cert-version", file=file, subject=subject)
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise refuse("cert-extensions", file=file, subject=subject) from error
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            oid = extension.oid.dotted_string
            raise refuse("cert-critical", file=file, subject=subject, oid=oid)
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.digest_size < 32:
        shown = algorithm.name.upper()
        raise refuse("cert-sha1", file=file, subject=subject, algorithm=shown)
    weakness = keys.weak_key(certificate.public_key())
    if weakness:
        raise refuse("key-weak", file=file, what=weakness)


def _judge_leaf(
    leaf: x509.Certificate,
    roots: Sequence[x509.Certificate],
    usage: x509.ObjectIdentifier,
    judged: Judged,
) -> None:
    subject = name_of(leaf)
    if leaf not in roots and issued(leaf, leaf):
        raise refuse("cert-self-signed", file=judged.file, subject=subject)
    if is_authority(leaf):
        raise refuse("cert-is-ca", file=judged.file, subject=subject)
    judge_times(leaf, judged.file, judged.now)
    try:
        found = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        found = []
    if usage not in found:
        got = " and ".join(_USAGES.get(oid, oid.dotted_string) for oid in found)
        expected = _USAGES[usage]
        raise refuse(
            "cert-usage",
            file=judged.file,
            subject=subject,
            got=got or "no stated use",
            expected=expected,
        )
    key = key_usage(leaf)
    if key is not None and not key.digital_signature:
        raise refuse("cert-key-usage", file=judged.file, subject=subject)


def _judge_order(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], judged: Judged
) -> None:
    """Each certificate must have signed the one before it: some TLS clients read in order."""
    for position, (child, parent) in enumerate(itertools.pairwise(chain)):
        if issued(child, parent):
            continue
        if any(issued(child, later) for later in chain[position + 2 :]):
            raise refuse("cert-order", file=judged.file)
        if parent.subject == child.issuer:
            raise refuse(
                "cert-forged", file=judged.file, subject=name_of(child), issuer=name_of(parent)
            )
        if any(issued(earlier, parent) for earlier in chain[:position]):
            raise refuse("cert-order", file=judged.file)
        raise refuse("cert-stray", file=judged.file, subject=name_of(parent))


def _judge_path(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], judged: Judged
) -> list[x509.Certificate]:
    """Walk up to the first certificate that a root signed, and check each signer on the way."""
    for depth, certificate in enumerate(chain):
        if depth:
            judge_times(certificate, judged.file, judged.now)
            _judge_signer(certificate, depth - 1, judged.file)
        root = next(
            (r for r in roots if issued(certificate, r) and r.not_valid_after_utc > judged.now),
            None,
        )
        if root is not None:
            _judge_signer(root, depth, judged.ca)
            return [*chain[: depth + 1], root]
    last = chain[-1]
    issuer = repr(last.issuer.rfc4514_string())
    named = any(root.subject == last.issuer and not issued(last, root) for root in roots)
    if named:
        raise refuse("cert-forged", file=judged.file, subject=name_of(last), issuer=issuer)
    raise refuse(
        "cert-wrong-ca", file=judged.file, subject=name_of(last), issuer=issuer, ca=judged.ca
    )


def _judge_signer(certificate: x509.Certificate, below: int, file: object) -> None:
    """A signer must be a CA, and leave room for the `below` CAs between it and the leaf."""
    basic = None
    if is_authority(certificate):
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if basic is None or (basic.path_length is not None and below > basic.path_length):
        raise refuse("cert-path", file=file, subject=name_of(certificate))
