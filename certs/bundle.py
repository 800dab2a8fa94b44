"""What a hospital gets back: its certificate, whom to trust, where to connect. No secret.

The CA that signed the certificate signs the whole bundle too, so one comparison by telephone, of
the CA's fingerprint, vouches for every field: the aggregator's address and the study's signing key
as well as the certificate.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certs import _pem, _x509, keys
from certs._chain import issued
from certs._documents import Form
from certs._x509 import stamp
from certs.ca import CA
from certs.leaf import Leaf
from certs.names import check_site
from certs.request import Request
from certs.sentences import refuse

FORM = Form(
    kind="bundle",
    version=1,
    fields=(
        "site",
        "made",
        "certificate",
        "trust",
        "links",
        "study_key",
        "node_key",
        "signing_key",
        "aggregator",
        "control_plane",
        "crl_url",
    ),
    signatures=("ca",),
)


@dataclass(frozen=True)
class Study:
    """What every hospital of a study is told, beside its certificate."""

    study_key: ed25519.Ed25519PublicKey  # what the server sends down is signed with it
    aggregator: str  # host:port
    control_plane: str = ""  # URL
    crl_url: str = ""

    def check(self, source: object) -> None:
        """Refuse an address with spaces or control characters, or no aggregator at all.

        A hospital's screen shows these beside the CA's fingerprint, before anything is believed:
        they must not be able to paint another fingerprint there.

        Raises:
            CertError: `bundle-fields`.
        """
        for name in ("aggregator", "control_plane", "crl_url"):
            value: str = getattr(self, name)
            if len(value) > 300 or any(not "!" <= character <= "~" for character in value):
                raise refuse("bundle-fields", file=source, why=f"field {name!r} is no address")
        if not self.aggregator:
            raise refuse("bundle-fields", file=source, why="field 'aggregator' is empty")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose form is right and which is signed by the CA inside it."""

    site: str
    made: dt.datetime
    chain: tuple[x509.Certificate, ...]  # the leaf first
    trust: tuple[x509.Certificate, ...]  # roots, the current one first
    links: tuple[x509.Certificate, ...]  # the new root signed by the old, during a change of CA
    study: Study
    node_key: ec.EllipticCurvePublicKey
    signing_key: ed25519.Ed25519PublicKey

    @property
    def trust_pem(self) -> bytes:
        """The roots as PEM."""
        return _x509.pem(*self.trust)

    @property
    def certificate_pem(self) -> bytes:
        """The leaf and its chain as PEM."""
        return _x509.pem(*self.chain)


def build_bundle(
    ca: CA, leaf: Leaf, site: str, node_key: str, signing_key: str, study: Study, now: dt.datetime
) -> bytes:
    """The text of a bundle, signed by the CA that signed `leaf`.

    Raises:
        CertError: `ca-offline`, `key-*`.
    """
    fields = {
        "site": site,
        "made": stamp(now),
        "certificate": leaf.certificate_pem.decode(),
        "trust": ca.trust_pem.decode(),
        "links": ca.links_pem.decode(),
        "study_key": keys.public_pem(study.study_key).decode(),
        "node_key": node_key,
        "signing_key": signing_key,
        "aggregator": study.aggregator,
        "control_plane": study.control_plane,
        "crl_url": study.crl_url or ca.crl_url,
    }
    return FORM.dump(fields, {"ca": ca.sign_bytes(FORM.statement(fields))})


def bundle_for(ca: CA, leaf: Leaf, request: Request, study: Study, now: dt.datetime) -> bytes:
    """The bundle that answers `request` with `leaf`."""
    signing = keys.public_pem(request.keys.signing).decode()
    return build_bundle(ca, leaf, request.site, request.node_line, signing, study, now)


def parse_bundle(data: bytes, source: object) -> Bundle:
    """The bundle in `data`; `source` names it. Whether its CA is the right one is not known yet.

    Raises:
        CertError: `bundle-*`, `name-site`, `cert-garbage` and its like.
    """
    if b"PRIVATE KEY-----" in data:
        raise refuse("bundle-secret", file=source)
    fields, proof = FORM.load(data, source)
    site = check_site(fields["site"])
    try:
        made = _x509.parse_stamp(fields["made"])
    except ValueError as error:
        raise refuse("bundle-fields", file=source, why="field 'made' is no time") from error
    study_key = keys.parse_signing_public(fields["study_key"].encode(), source)
    study = Study(study_key, fields["aggregator"], fields["control_plane"], fields["crl_url"])
    study.check(source)
    chain = _pem.parse_certificates(fields["certificate"].encode(), source)
    trust = _pem.parse_certificates(fields["trust"].encode(), source)
    links = _pem.parse_certificates(fields["links"].encode(), source) if fields["links"] else []
    if not _signed_by_issuer(FORM.statement(fields), proof["ca"], chain, trust):
        raise refuse("bundle-proof", file=source)
    return Bundle(
        site=site,
        made=made,
        chain=tuple(chain),
        trust=tuple(trust),
        links=tuple(links),
        study=study,
        node_key=keys.parse_node_public(fields["node_key"].encode(), source),
        signing_key=keys.parse_signing_public(fields["signing_key"].encode(), source),
    )


def _signed_by_issuer(
    statement: bytes,
    signature: bytes,
    chain: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
) -> bool:
    """Whether the bundle is signed by the key that signed its leaf."""
    return any(
        issued(chain[0], authority) and keys.signed_by(authority.public_key(), signature, statement)
        for authority in [*chain[1:], *trust]
    )
