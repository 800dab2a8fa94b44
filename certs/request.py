"""A hospital's enrolment request: three public keys, a name, and proof that it holds all three.

The node key, the signing key and the key of the client certificate each sign the whole request,
so none of them can be copied from another hospital's request, and no field can be changed on the
way. Who made it is what the fingerprint says, read aloud by telephone.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certs import _x509, keys
from certs._documents import Form
from certs._x509 import stamp
from certs.errors import CertError
from certs.fingerprints import fingerprint
from certs.names import Role, check_site, identity_uri
from certs.sentences import refuse

FORM = Form(
    kind="request",
    version=1,
    fields=("site", "made", "csr", "node_key", "signing_key"),
    signatures=("client_key", "node_key", "signing_key"),
)

# As far as two clocks may differ; Flower itself refuses a node that is 5 s ahead.
_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True)
class SiteKeys:
    """The public halves of a site's three keys."""

    client: ec.EllipticCurvePublicKey
    node: ec.EllipticCurvePublicKey
    signing: ed25519.Ed25519PublicKey

    def digests(self) -> dict[str, str]:
        """SHA-256 of each, in hexadecimal, under the words that the sentences use."""
        return {
            "client key": keys.public_digest(self.client),
            "node key": keys.public_digest(self.node),
            "signing key": keys.public_digest(self.signing),
        }


@dataclass(frozen=True)
class Request:
    """A request whose proofs hold; whether its maker is who it says is for the fingerprint."""

    site: str
    made: dt.datetime
    csr: x509.CertificateSigningRequest
    keys: SiteKeys

    @property
    def fingerprint(self) -> str:
        """Of the name and the three keys: the same for every request of the same site and keys."""
        return identity_fingerprint(self.site, self.keys)

    @property
    def node_line(self) -> str:
        """The node's public key as one OpenSSH line, as Flower registers it."""
        return keys.node_public_line(self.keys.node, self.site).decode().strip()


def identity_fingerprint(site: str, site_keys: SiteKeys) -> str:
    """What the hospital reads to the coordinator: nothing in it depends on a software version."""
    lines = ["fedward site identity", site, *sorted(site_keys.digests().values())]
    return fingerprint("\n".join(lines).encode())


def build_request(
    site: str,
    client: ec.EllipticCurvePrivateKey,
    node: ec.EllipticCurvePrivateKey,
    signing: ed25519.Ed25519PrivateKey,
    *,
    now: dt.datetime,
) -> bytes:
    """The text of a request, signed by all three keys.

    Raises:
        CertError: `name-site`.
    """
    uri = x509.UniformResourceIdentifier(identity_uri(Role.HOSPITAL, check_site(site)))
    csr = _x509.request(_x509.subject(site, Role.HOSPITAL.value), client, [uri])
    fields = {
        "site": site,
        "made": stamp(now),
        "csr": _x509.pem(csr).decode(),
        "node_key": keys.node_public_line(node.public_key(), site).decode().strip(),
        "signing_key": keys.public_pem(signing.public_key()).decode(),
    }
    statement = FORM.statement(fields)
    proof = {
        "client_key": keys.sign_ec(client, statement),
        "node_key": keys.sign_ec(node, statement),
        "signing_key": signing.sign(statement),
    }
    return FORM.dump(fields, proof)


def parse_request(data: bytes, source: object, *, now: dt.datetime) -> Request:
    """The request in `data`, its form, names, keys and proofs checked; `source` names it.

    Raises:
        CertError: `request-*`, `name-site`.
    """
    fields, proof = FORM.load(data, source)
    site = check_site(fields["site"])
    made = _made(fields["made"], source, now)
    csr = _csr(fields["csr"], site, source)
    site_keys = SiteKeys(
        client=_client_key(csr, source),
        node=_node_key(fields["node_key"], source),
        signing=_signing_key(fields["signing_key"], source),
    )
    if len(set(site_keys.digests().values())) != 3:
        raise refuse("request-same-keys", file=source)
    statement = FORM.statement(fields)
    for which, key in (
        ("client_key", site_keys.client),
        ("node_key", site_keys.node),
        ("signing_key", site_keys.signing),
    ):
        if not keys.signed_by(key, proof[which], statement):
            raise refuse("request-proof", file=source, which=which.replace("_", " "))
    return Request(site, made, csr, site_keys)


def text_digest(data: bytes) -> str:
    """SHA-256 of a document's bytes, for the audit log."""
    return hashlib.sha256(data).hexdigest()


def _made(text: str, source: object, now: dt.datetime) -> dt.datetime:
    try:
        made = _x509.parse_stamp(text)
    except ValueError as error:
        raise refuse("request-fields", file=source, why="field 'made' is no time") from error
    if made > now + _SKEW:
        raise refuse("request-future", file=source, when=stamp(made), now=stamp(now))
    return made


def _csr(text: str, site: str, source: object) -> x509.CertificateSigningRequest:
    """The CSR, when it is signed by its key and asks for this site's name and nothing else."""
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        valid = csr.is_signature_valid
        extensions = list(csr.extensions)
        _ = (csr.public_key(), csr.subject)  # decoded when first asked: damage is found here
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension) as error:
        raise refuse("request-csr", file=source) from error
    except (UnsupportedAlgorithm, x509.UnsupportedGeneralNameType) as error:
        raise refuse("request-csr", file=source) from error
    if not valid:
        raise refuse("request-csr", file=source)
    if csr.subject != _x509.subject(site, Role.HOSPITAL.value):
        got = csr.subject.rfc4514_string()
        raise refuse("request-subject", file=source, site=site, got=got)
    for extension in extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            what = f"the extension {extension.oid.dotted_string}"
            raise refuse("request-asks", file=source, what=what)
        names = [str(name.value) for name in extension.value]
        if names != [identity_uri(Role.HOSPITAL, site)]:
            raise refuse("request-asks", file=source, what=", ".join(names) or "no name")
    return csr


def _client_key(csr: x509.CertificateSigningRequest, source: object) -> ec.EllipticCurvePublicKey:
    key = csr.public_key()
    why = keys.weak_key(key)
    if why:
        raise refuse("request-key", file=source, which="client key", why=f"{why} is too weak")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, keys.NODE_CURVES
    ):
        why = f"it is {keys.describe(key)}, and must be NIST EC"
        raise refuse("request-key", file=source, which="client key", why=why)
    return key


def _node_key(line: str, source: object) -> ec.EllipticCurvePublicKey:
    try:
        return keys.parse_node_public(line.encode(), source)
    except CertError as error:
        why = "it is no OpenSSH key of kind ecdsa-sha2-nistp256, -384 or -521"
        raise refuse("request-key", file=source, which="node key", why=why) from error


def _signing_key(text: str, source: object) -> ed25519.Ed25519PublicKey:
    try:
        return keys.parse_signing_public(text.encode(), source)
    except CertError as error:
        why = "it is no Ed25519 key in PEM"
        raise refuse("request-key", file=source, which="signing key", why=why) from error
